"""`prunella quantize --auto`: from small to large, resumable, and the table in the bundle."""

import json
from dataclasses import dataclass, replace

import pytest

from prunella.cli import main
from prunella.device_runtime.base.errors import ExportError, UsageError
from prunella.device_runtime.bundle import (
    AudioSpec,
    BundleManifest,
    DecoderSpec,
    PromptSpec,
    open_bundle,
)
from prunella.device_runtime.transcript import Transcript
from prunella.evaluation.manifest import read_manifest
from prunella.evaluation.systems import OpenedSystem
from prunella.quantize import smallest
from prunella.quantize.bundle_writer import seal_bundle
from prunella.quantize.smallest import KEY, candidate_recipes, quantize_smallest

pytestmark = pytest.mark.slow

# recipe: (bytes of its one large file, wrong words of every eight)
RECIPES = {"int4-mixed": (1_000, 3), "int4": (3_000, 1), "int8": (2_000, 2), "Q4_0": (4_000, 0)}


def _graphs(folder):
    """Empty files of every engine: recipes differ in one file of weights."""
    names = [
        "onnx/audio_encoder.onnx",
        "onnx/embed_tokens.onnx",
        "onnx/decoder_model_merged.onnx",
        "gguf/decoder-F16.gguf",
    ]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


@dataclass
class Speaker:
    """Transcribes the clips of `noise_manifest` with so many of the eight texts wrong."""

    wrong: int
    calls: list[int]

    def transcribe(self, samples):
        index = round((len(samples) / 16_000 - 0.4) / 0.25)
        self.calls.append(index)
        text = f"Noise, number {'x' if index < self.wrong else index * 37}."
        return Transcript(text)


@pytest.fixture
def calls():
    return {}


@pytest.fixture
def float_bundle(tmp_path):
    folder = tmp_path / "fp32"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    _graphs(folder)
    manifest = BundleManifest(
        name="tiny",
        family="ultravox",
        target="x86-cpu",
        engines=("onnx", "gguf"),
        recipe="fp32+F16",
        audio=AudioSpec(),
        prompt=PromptSpec.around_audio("", "", (), (), (2,)),
        decoder=DecoderSpec(2, 4, 1, 4, 8),
        provenance={"base_model": "tiny"},
    )
    seal_bundle(manifest, folder)
    return open_bundle(folder)


@pytest.fixture
def written(monkeypatch, calls):
    """Fakes of what writes and of what opens a bundle; the list of recipes that were written."""
    names = []

    def requantize(bundle, recipe, out):
        names.append(recipe)
        if recipe == "IQ4_XS":
            raise ExportError("IQ4_XS: lost too much")
        out.mkdir(parents=True)
        _graphs(out)
        (out / "weights").write_bytes(bytes(RECIPES[recipe][0]))
        seal_bundle(replace(bundle.manifest, recipe=recipe), out)
        return open_bundle(out)

    def open_system(path, *, threads=None):
        recipe = open_bundle(path).manifest.recipe
        wrong = RECIPES[recipe][1] if recipe in RECIPES else 0
        return OpenedSystem(path, Speaker(wrong, calls.setdefault(recipe, [])), recipe, None)

    monkeypatch.setattr(smallest, "requantize", requantize)
    monkeypatch.setattr(smallest, "open_system", open_system)
    return names


def search(bundle, manifest, out, points, recipes=tuple(RECIPES)):
    return quantize_smallest(
        bundle, out, read_manifest(manifest), max_wer_increase=points / 100, recipes=recipes
    )


def test_the_smallest_that_passes(float_bundle, noise_manifest, written, calls, tmp_path):
    # Of three words in each of eight clips, one wrong is 4.2 points.
    found, table = search(float_bundle, noise_manifest, tmp_path / "out", 9)
    assert found.manifest.recipe == "int8"
    assert [(a.recipe, a.verdict) for a in table.attempts] == [
        ("int4-mixed", "too many errors"),
        ("int8", "kept"),
        ("int4", "larger than needed"),
        ("Q4_0", "larger than needed"),
    ]
    assert table.attempts[0].increase == pytest.approx(3 / 24)
    assert set(calls) == {"fp32+F16", "int4-mixed", "int8"}  # larger ones are not measured
    kept = open_bundle(tmp_path / "out").manifest.provenance
    assert kept["base_model"] == "tiny"
    assert [row["recipe"] for row in kept[KEY]["attempts"]] == ["int4-mixed", "int8", "int4", "Q4_0"]
    assert kept[KEY]["max_wer_increase"] == 0.09
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp32", "out"]


def test_none_that_passes_then_a_weaker_demand_without_new_work(
    float_bundle, noise_manifest, written, calls, tmp_path
):
    with pytest.raises(ExportError, match=r"no recipe stays within 4 points .* nearest is int4 with \+4\.2"):
        search(float_bundle, noise_manifest, tmp_path / "out", 4, ("int4-mixed", "int4", "int8"))
    assert not (tmp_path / "out").exists()
    heard = {name: len(of) for name, of in calls.items()}
    assert set(heard.values()) == {8}
    found, _ = search(float_bundle, noise_manifest, tmp_path / "out", 5, ("int4-mixed", "int4", "int8"))
    assert found.manifest.recipe == "int4"
    assert {name: len(of) for name, of in calls.items()} == heard
    assert written == ["int4-mixed", "int4", "int8"]


def test_a_damaged_candidate_is_written_again(float_bundle, noise_manifest, written, tmp_path):
    with pytest.raises(ExportError):
        search(float_bundle, noise_manifest, tmp_path / "out", 1, ("int4",))
    (weights,) = tmp_path.glob(".out.search-*/int4/weights")
    weights.write_bytes(b"short")
    with pytest.raises(ExportError):
        search(float_bundle, noise_manifest, tmp_path / "out", 1, ("int4",))
    assert written == ["int4", "int4"] and weights.stat().st_size > len(b"short")


def test_another_bundle_starts_anew(float_bundle, noise_manifest, written, tmp_path):
    with pytest.raises(ExportError):
        search(float_bundle, noise_manifest, tmp_path / "out", 1, ("int4",))
    seal_bundle(replace(float_bundle.manifest, name="other"), float_bundle.path)
    search(open_bundle(float_bundle.path), noise_manifest, tmp_path / "out", 5, ("int4",))
    assert written == ["int4", "int4"]
    assert not list(tmp_path.glob(".out.search-*"))


def test_what_cannot_be_written_does_not_stop_the_search(float_bundle, noise_manifest, written, tmp_path):
    found, table = search(float_bundle, noise_manifest, tmp_path / "out", 0, ("IQ4_XS", "Q4_0"))
    assert found.manifest.recipe == "Q4_0"
    assert table.attempts[0].verdict == "IQ4_XS: lost too much"
    assert "lost too much" in table.table()
    with pytest.raises(ExportError, match="no recipe could be written"):
        search(float_bundle, noise_manifest, tmp_path / "other", 0, ("IQ4_XS",))


def test_candidates_are_those_of_engines_and_target(float_bundle):
    both = candidate_recipes(float_bundle)
    assert {"int4", "int8", "Q4_0", "Q8_0"} <= set(both)
    assert not {"fp32", "F16", "F32"} & set(both)
    onnx = replace(float_bundle, manifest=replace(float_bundle.manifest, engines=("onnx",)))
    assert candidate_recipes(onnx) == ("int8", "int4", "int4-mixed")
    apple = replace(float_bundle, manifest=replace(onnx.manifest, target="apple-silicon"))
    assert candidate_recipes(apple) == ("int8", "int4")
    unknown = replace(float_bundle, manifest=replace(onnx.manifest, target="my-board"))
    assert candidate_recipes(unknown) == ("int8", "int4", "int4-mixed")


def test_bad_demands(float_bundle, noise_manifest, written, tmp_path):
    with pytest.raises(UsageError, match="give 0 or more"):
        search(float_bundle, noise_manifest, tmp_path / "out", -1)
    with pytest.raises(UsageError, match="no recipe 'int3'"):
        search(float_bundle, noise_manifest, tmp_path / "out", 1, ("int3",))
    assert written == []


def test_the_verb(small_speech_llm, noise_manifest, tmp_path, capsys):
    from prunella.export.export import export_float

    export_float(small_speech_llm, "x86-cpu", tmp_path / "fp32")
    line = ["quantize", str(tmp_path / "fp32"), "--auto", "-o", str(tmp_path / "out")]
    assert main(line) == 2
    assert "give --speech MANIFEST" in capsys.readouterr().err
    line += ["--speech", str(noise_manifest), "--limit", "2", "--recipes", "int8,int4-mixed"]
    assert main([*line, "--max-wer-increase", "10000", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'out'}\n"
    assert "larger than needed" in captured.err
    manifest = json.loads((tmp_path / "out/bundle.json").read_text())
    attempts = manifest["provenance"][KEY]["attempts"]
    assert [row["bytes"] for row in attempts] == sorted(row["bytes"] for row in attempts)
    assert manifest["recipe"] == attempts[0]["recipe"]
    assert attempts[0]["wer"] is not None
    assert main(["info", str(tmp_path / "out")]) == 0
    assert f"{KEY}.float_wer" in capsys.readouterr().out
