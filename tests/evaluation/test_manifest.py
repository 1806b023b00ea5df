import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from prunella.device_runtime.base.errors import AudioError, ManifestError, UsageError
from prunella.evaluation.manifest import SpeechManifest, Utterance, read_manifest

CLIPS = Path(__file__).parents[2] / "examples" / "clips"


def write(folder: Path, *lines: object) -> Path:
    (folder / "a.wav").write_bytes(b"RIFF")
    path = folder / "speech.jsonl"
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8"
    )
    return path


def row(**changes: object) -> dict[str, object]:
    return {"audio_filepath": "a.wav", "duration": 1.5, "text": "hello", **changes}


@pytest.mark.parametrize(("name", "clips"), [("evaluation", 11), ("calibration", 70)])
def test_the_committed_manifests_are_clean(name, clips):
    manifest = read_manifest(CLIPS / f"{name}.jsonl")
    assert len(manifest) == clips
    assert manifest.problems == ()
    assert manifest.seconds > 30


def test_rows_may_name_their_language(tmp_path):
    manifest = read_manifest(write(tmp_path, row(language="de"), row(), row(language=None)))
    assert [one.language for one in manifest.utterances] == ["de", "", ""]
    assert [one.language for one in manifest.in_language("fr").utterances] == ["de", "fr", "fr"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ({"audio_filepath": "a.wav", "text": "x"}, "no duration"),
        ({"duration": 1}, "no audio_filepath, text"),
        (row(audio_filepath="missing.wav"), "missing.wav does not exist"),
        (row(audio_filepath=""), "not a file name"),
        (row(audio_filepath=7), "not a file name"),
        (row(language=7), "language 7 is no code"),
        (row(text="  "), "text is empty"),
        (row(text=None), "text is empty"),
        (row(duration=0), "positive number"),
        (row(duration="1"), "positive number"),
        (row(duration=True), "positive number"),
        (row(duration=float("nan")), "positive number"),
        (row(duration=float("inf")), "positive number"),
        (row(duration=10**400), "positive number"),
        (row(offset=1e308), "not a number of seconds"),
        (row(audio_filepath="a" * 5_000), "cannot be opened"),
        (row(text="a \ud800"), "half of a character"),
        (row(source="\udfff"), "half of a character"),
        (row(audio_filepath="a\nb"), r"a\nb does not exist"),
    ],
)
def test_a_bad_row_is_reported_by_line_and_skipped(tmp_path, bad, why):
    path = write(tmp_path, row(text="first"), "", bad, row(text="last"))
    report = io.StringIO()
    manifest = read_manifest(path, report=report)
    assert [u.text for u in manifest.utterances] == ["first", "last"]
    (problem,) = manifest.problems
    assert problem.startswith(f"{path}:3: ") and why in problem
    assert problem in report.getvalue()


def test_many_problems_are_summed_up(tmp_path):
    report = io.StringIO()
    manifest = read_manifest(write(tmp_path, row(), *["?"] * 25), report=report)
    assert len(manifest.problems) == 25
    assert len(report.getvalue().splitlines()) == 11
    assert "15 more" in report.getvalue()


@pytest.mark.parametrize("lines", [[], ["nonsense"], [row(text="")]])
def test_nothing_usable_is_an_error(tmp_path, lines):
    with pytest.raises(ManifestError, match="no usable row"):
        read_manifest(write(tmp_path, *lines))


def test_a_manifest_that_is_no_text_file_is_an_error(tmp_path):
    with pytest.raises(ManifestError, match="does not exist"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="is not a file"):
        read_manifest(tmp_path)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(binary)


def test_optional_keys_and_line_separators_in_a_text(tmp_path):
    odd = json.dumps(row(text="a\u2028b", speaker=12, source=None), ensure_ascii=False)
    (utterance,) = read_manifest(write(tmp_path, odd)).utterances
    assert (utterance.source, utterance.speaker, utterance.text) == ("unknown", "12", "a\u2028b")
    assert utterance.audio == tmp_path / "a.wav"


def manifest_of(*rows: tuple[str, float]) -> SpeechManifest:
    utterances = [
        Utterance(str(i), Path(str(i)), seconds, "x", source) for i, (source, seconds) in enumerate(rows)
    ]
    return SpeechManifest(Path("m.jsonl"), tuple(utterances))


def ids(manifest: SpeechManifest) -> list[int]:
    return [int(u.id) for u in manifest.utterances]


def test_selection_filters_before_it_counts():
    manifest = manifest_of(("a", 20), ("a", 5), ("b", 3), ("a", 6), ("a", 7), ("b", 4))
    assert ids(manifest.select(max_seconds=18, limit=2)) == [1, 2, 3, 5]
    assert ids(manifest.select(sources=["b"], limit=1)) == [2]
    assert manifest.sources == ("a", "b")
    with pytest.raises(UsageError, match="no source 'c': it has a, b"):
        manifest.select(sources=["c"])
    with pytest.raises(ManifestError, match=r"shortest takes 3\.0 s"):
        manifest.select(max_seconds=1)
    for bad in ({"limit": 0}, {"max_seconds": 0.0}, {"max_seconds": float("nan")}):
        with pytest.raises(UsageError):
            manifest.select(**bad)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**32))
def test_a_sample_is_a_subset_in_file_order_that_the_seed_decides(size, count, seed):
    manifest = manifest_of(*[("a", 1.0)] * size)
    chosen = ids(manifest.sample(count, seed=seed))
    assert len(chosen) == min(size, count)
    assert chosen == sorted(set(chosen))
    assert chosen == ids(manifest.sample(count, seed=seed))


def test_seeds_differ():
    manifest = manifest_of(*[("a", 1.0)] * 100)
    assert ids(manifest.sample(10, seed=1)) != ids(manifest.sample(10, seed=2))


def test_a_limit_with_a_seed_draws_from_every_source():
    manifest = manifest_of(*[("a", 1.0), ("b", 1.0)] * 50)
    drawn = ids(manifest.limit(5, seed=1))
    assert sum(i % 2 == 0 for i in drawn) == sum(i % 2 for i in drawn) == 5
    assert drawn == sorted(drawn) == ids(manifest.select(limit=5, seed=1))
    assert drawn != ids(manifest.limit(5, seed=2)) != ids(manifest.limit(5))
    assert ids(manifest.limit(5)) == list(range(10))
    # A source's draw does not depend on which others are there.
    assert ids(manifest.only(["a"]).limit(5, seed=1)) == [i for i in drawn if i % 2 == 0]


def test_a_segment_without_a_sample_is_an_error(tmp_path):
    path = write(tmp_path, row(offset=0.5, duration=1e-9))
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000, format="WAV")
    with pytest.raises(AudioError, match="shorter than one sample"):
        read_manifest(path).utterances[0].load()


def test_a_segment_is_cut_out_of_its_file(tmp_path):
    path = write(
        tmp_path,
        row(offset=0.5, duration=0.25),
        row(offset=0, duration=0.25),
        row(duration=0.25),
        row(offset=9, duration=1),
    )
    ramp = np.arange(8_000, dtype=np.float32) / 8_000
    soundfile.write(tmp_path / "a.wav", np.repeat(ramp, 2), 16_000, subtype="FLOAT", format="WAV")
    segment, first, whole, behind = read_manifest(path).utterances
    np.testing.assert_allclose(segment.load(), np.repeat(ramp, 2)[8_000:12_000])
    np.testing.assert_allclose(first.load(), np.repeat(ramp, 2)[:4_000])
    assert len(whole.load()) == 16_000
    assert len({segment.id, first.id, whole.id}) == 3
    with pytest.raises(AudioError, match="behind the end"):
        behind.load()


@pytest.mark.parametrize(
    "change", [{"offset": -1}, {"offset": "1"}, {"text": "..."}, {"text": "[noise] <unk>"}]
)
def test_a_segment_or_text_that_is_none_is_skipped(tmp_path, change):
    report = io.StringIO()
    manifest = read_manifest(write(tmp_path, row(), row(**change)), report=report)
    assert len(manifest) == 1 and "speech.jsonl:2: " in report.getvalue()


def test_a_sample_of_fewer_than_no_clips_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a sample of -1 clips"):
        SpeechManifest(tmp_path, ()).sample(-1)


def test_a_segment_that_ends_behind_its_file_is_named_not_cut_short(tmp_path):
    """Its text says more than is there."""
    path = write(tmp_path, row(offset=0.5, duration=0.9), row(offset=0.5, duration=1.5))
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000, format="WAV")
    rounded, beyond = read_manifest(path).utterances
    assert len(rounded.load()) == 8_000
    with pytest.raises(AudioError, match=r"ends behind the end of its file \(1\.00 s\)"):
        beyond.load()
