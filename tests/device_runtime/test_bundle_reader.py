"""A bundle is read back as written, or refused: whatever byte changed, whatever file is gone."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunella.cli import main
from prunella.device_runtime.base.errors import BundleError
from prunella.device_runtime.base.files import sha256
from prunella.device_runtime.bundle import MANIFEST_NAME, BundleManifest, FileEntry, open_bundle

SAME_FOLDER = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _refused(folder, match=None):
    with pytest.raises(BundleError, match=match) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)


def _rewrite(folder, **changes) -> None:
    manifest = open_bundle(folder).manifest
    (folder / MANIFEST_NAME).write_text(replace(manifest, **changes).dumps())


def test_an_intact_bundle_is_read_back(write_bundle):
    folder = write_bundle()
    bundle = open_bundle(folder)
    assert isinstance(bundle.manifest, BundleManifest)
    assert bundle.manifest.dumps() == (folder / MANIFEST_NAME).read_text()
    assert bundle.manifest.prompt.eos_ids == (2,)
    assert bundle.file("onnx/decoder_model_merged.onnx").read_bytes() == bytes(range(200))
    assert bundle.total_bytes == sum(
        f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST_NAME
    )
    with pytest.raises(BundleError, match="gguf"):
        bundle.file("gguf/decoder.gguf")


@pytest.mark.parametrize("name", [MANIFEST_NAME, "tokenizer.json", "onnx/decoder_model_merged.onnx"])
def test_a_changed_byte_anywhere_is_seen(write_bundle, name):
    folder = write_bundle()
    file = folder / name
    intact = file.read_bytes()

    @SAME_FOLDER
    @given(position=st.integers(0, len(intact) - 1), mask=st.integers(1, 255))
    def change(position, mask):
        changed = bytearray(intact)
        changed[position] ^= mask
        file.write_bytes(changed)
        _refused(folder)

    change()
    file.write_bytes(intact)
    open_bundle(folder)


@pytest.mark.parametrize("name", [MANIFEST_NAME, "tokenizer.json", "onnx/decoder_model_merged.onnx"])
def test_a_file_cut_short_or_gone_is_seen(write_bundle, name):
    folder = write_bundle()
    file = folder / name
    intact = file.read_bytes()
    for length in (0, 1, len(intact) // 2, len(intact) - 1):
        file.write_bytes(intact[:length])
        _refused(folder)
    file.write_bytes(intact + b" ")
    _refused(folder)
    file.unlink()
    _refused(folder, match="missing|holds no")


@pytest.mark.parametrize("name", ["../outside", "onnx/../../outside", "{absolute}", "link", "nul\0byte"])
def test_files_outside_the_bundle_are_refused(write_bundle, tmp_path, name):
    folder = write_bundle()
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    (folder / "link").symlink_to(outside)
    name = name.format(absolute=outside)
    _rewrite(folder, files={**open_bundle(folder).manifest.files, name: FileEntry(sha256(outside), 6)})
    _refused(folder, match="do not trust")


def test_what_is_no_bundle_is_said(write_bundle, tmp_path):
    _refused(tmp_path / "nowhere", match="does not exist")
    (tmp_path / "file").touch()
    _refused(tmp_path / "file", match="is a file")
    (tmp_path / "folder").mkdir()
    _refused(tmp_path / "folder", match="prunella export")


def test_another_schema_version_is_named(write_bundle):
    folder = write_bundle()
    _rewrite(folder, schema_version=99)
    _refused(folder, match="version 99")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def _sealed(folder, body) -> None:
    """Write a manifest whose checksum is right, whatever it says: it is against accidents only."""
    body = {key: value for key, value in body.items() if key != "manifest_sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**body, "manifest_sha256": digest}, indent=2, sort_keys=True) + "\n"
    (folder / MANIFEST_NAME).write_text(text)


FREE = ("provenance",)  # any object


@pytest.mark.parametrize("deep", [400, 900, 9_000])
def test_a_manifest_that_nests_too_deep_is_refused_in_words(write_bundle, deep):
    folder = write_bundle()
    text = (folder / MANIFEST_NAME).read_text()
    (folder / MANIFEST_NAME).write_text(text.replace('"13:16"', "[" * deep + "]" * deep))
    _refused(folder)


def test_half_a_character_and_values_without_end_are_refused_in_a_line_that_can_be_read(write_bundle):
    folder = write_bundle()
    intact = json.loads((folder / MANIFEST_NAME).read_text())
    for changes in (
        {"audio": {**intact["audio"], "max_seconds": "\ud800"}},
        {"schema_version": "x" * 5_000},
        {"engines": ["x" * 5_000]},
        {"audio": {"x" * 5_000: 1}},
        {"files": {**intact["files"], "../" + "x" * 5_000: {"sha256": "0" * 64, "bytes": 1}}},
    ):
        _sealed(folder, intact | changes)
        with pytest.raises(BundleError) as caught:
            open_bundle(folder)
        assert len(str(caught.value)) < 1_000 + len(str(folder))


def test_any_json_in_any_field_is_refused_in_words_or_is_what_the_field_takes(write_bundle):
    folder = write_bundle()
    intact = json.loads((folder / MANIFEST_NAME).read_text())
    parts = [part for part, value in intact.items() if isinstance(value, dict) and part not in FREE]
    fields = [(key,) for key in [*intact, "unknown"]]
    fields += [(part, key) for part in parts for key in [*intact[part], "unknown"]]
    fields += [("files", "tokenizer.json", key) for key in ("sha256", "bytes", "unknown")]
    seen = {"refused": 0, "taken": 0}

    @settings(SAME_FOLDER, max_examples=400)
    @given(field=st.sampled_from(fields), value=json_values)
    def change(field, value):
        body = copy.deepcopy(intact)
        holder = functools.reduce(dict.__getitem__, field[:-1], body)
        holder[field[-1]] = value
        _sealed(folder, body)
        try:
            manifest = open_bundle(folder).manifest
        except BundleError as error:
            assert "\n" not in str(error)
            seen["refused"] += 1
        else:
            # What was written again says the same, NaN in the provenance too.
            kept, wanted = json.loads(manifest.dumps())["provenance"], body["provenance"]
            assert json.dumps(kept, sort_keys=True) == json.dumps(wanted, sort_keys=True)
            assert manifest.decoder.num_layers >= 1 and manifest.prompt.eos_ids and manifest.engines
            seen["taken"] += 1

    change()
    assert seen["refused"] and seen["taken"], seen  # both happen, so that either could be wrong


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("decoder.num_layers", 0),
        ("audio.sampling_rate", 10**400),
        # What would take all memory, or never end, where it was believed.
        ("audio.sampling_rate", 1),
        ("audio.features.num_mel_bins", 2**31),
        ("audio.samples_per_token", 2**31),
        ("audio.features.extra", 2**31),
        ("audio.features.multiple", 2**24),
        ("audio.features.min_samples", 2**24),
        ("audio.features.frame_multiple", 2**16),
        ("audio.features.num_mel_bins", 2**12),
        ("audio.max_seconds", 86_400),
        ("decoder.max_context", 2**26),
        ("decoder.max_context", 200),  # no room for a piece of audio
        ("decoder.head_dim", 2**31),
        ("decode.beams", 2**31),
        ("threads", 2**31),
        ("prompt.eos_ids", [10**6]),
        ("prompt.segments.0.text", "\ud800"),
        ("decode.beams", "\ud800"),
        ("decoder.head_dim", "64"),
        ("decoder.head_dim", -1),
        ("decoder.vocab_size", 1.5),
        ("decoder.max_context", True),
        ("decode.beams", 0),
        ("decode.guards", 1),
        ("decode.max_tokens_per_second", 0),
        ("decode.max_tokens_per_second", float("nan")),
        ("decode.speech_probability", 1.5),
        ("decode.draft_sure", float("inf")),
        ("decode.draft_blank", -2),
        ("prompt.eos_ids", []),
        ("prompt.segments.0.ids", [-1]),
        ("prompt.before_text", "no such key"),
        ("audio.features.kind", "cepstra"),
        ("audio.features.bins", 80),
        ("audio.features.valid", "some"),
        ("prompt.segments", []),
        ("prompt.segments", [{"kind": "audio"}, {"kind": "audio"}]),
        ("prompt.segments", [{"kind": "language"}, {"kind": "audio"}]),
        ("prompt.segments", [{"kind": "vocabulary"}, {"kind": "vocabulary"}, {"kind": "audio"}]),
        ("prompt.segments.0.kind", "video"),
        ("prompt.language", "en"),
        ("prompt.languages", [{"code": "en", "name": "English", "text": "", "ids": [10**6]}]),
        (
            "prompt.segments",
            [{"kind": "audio"}, {"kind": "language"}, {"kind": "language"}],
        ),
        ("prompt.time_marks", [{"after": place, "text": "2", "ids": [1]} for place in (5, 5)]),
        ("prompt.time_marks", [{"after": 5, "text": "2", "ids": [10**6]}]),
        ("prompt.time_marks", [{"after": -1, "text": "2", "ids": [1]}]),
        ("prompt.languages.0.code", ""),
        ("prompt.languages.0.name", ""),
        ("prompt.languages.0.ids", [-1]),
        ("prompt.answer", "sung"),
        ("prompt.text_style", "UPPER"),
        ("audio.samples_per_token", 0),
        ("audio.max_seconds", 0),
        ("audio.ctc_alphabet", None),
        ("engines", []),
        ("engines", ["tensorrt"]),
        ("threads", -1),
        ("providers", [{"options": {}}]),
        ("llama", {"n_ctx": [1]}),
        ("files.tokenizer.json", {"sha256": "short", "bytes": 1}),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_path(write_bundle, field, value):
    folder = write_bundle()
    body = json.loads((folder / MANIFEST_NAME).read_text())
    if field.startswith("prompt.languages."):
        body["prompt"]["languages"] = [{"code": "en", "name": "English", "text": "", "ids": [1]}]
        body["prompt"]["segments"].append({"kind": "language"})
    part = field.partition(".")[0]
    *way, last = field.split(".") if part != "files" else ("files", field.partition(".")[2])
    inner = body
    for step in way:
        inner = inner[int(step) if step.isdigit() else step]
    inner[last] = value
    _sealed(folder, body)
    where = "files[...]" if part == "files" else field
    # A list's place is named or not, by whoever finds the fault.
    _refused(folder, match=re.sub(r"\\\.\d+", r"\\[.*?\\]", re.escape(f"`$.{where}")))


@pytest.mark.parametrize("key", ["name", "audio", "prompt", "decoder", "engines", "recipe"])
def test_a_key_that_is_missing_is_named(write_bundle, key):
    folder = write_bundle()
    body = json.loads((folder / MANIFEST_NAME).read_text())
    del body[key]
    _sealed(folder, body)
    _refused(folder, match=f"`{key}`")


@pytest.mark.parametrize(
    ("engines", "lost"),
    [
        (("onnx",), "onnx/audio_encoder.onnx"),
        (("onnx",), "onnx/embed_tokens.onnx"),
        (("onnx",), "onnx/decoder_model_merged.onnx"),
        (("onnx", "gguf"), "gguf/decoder-"),
    ],
)
@pytest.mark.parametrize("on_disk", [True, False])
def test_a_graph_that_the_manifest_lacks_is_noticed(write_bundle, capsys, engines, lost, on_disk):
    folder = write_bundle()
    files = {name: entry for name, entry in open_bundle(folder).manifest.files.items() if name != lost}
    _rewrite(folder, files=files, engines=engines)
    if not on_disk:
        (folder / lost).unlink(missing_ok=True)
    _refused(folder, match=lost)
    assert main(["info", str(folder)]) == 1
    assert lost in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["onnx/decoder_model_merged.onnx_data", "onnx/more.onnx", "gguf/decoder-Q4_0.gguf"]
)
def test_a_graph_that_no_checksum_stands_for_is_noticed(write_bundle, capsys, name):
    folder = write_bundle()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).with_name(f"._{Path(name).name}").touch()  # as macOS leaves on a stick
    open_bundle(folder)
    (folder / name).touch()
    _refused(folder, match=f"lists no {name}")
    assert main(["info", str(folder)]) == 1
    assert name in capsys.readouterr().err


def test_info_moves_nobodys_cursor(write_bundle, capsys):
    folder = write_bundle()
    _rewrite(folder, name="good\x1b[2J\u202e name é 名")
    assert main(["info", str(folder)]) == 0
    assert "good\\x1b[2J\\u202e name é 名\n" in capsys.readouterr().out


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=50) | json_values.map(json.dumps))
def test_any_text_as_manifest_is_refused_in_words(tmp_path, text):
    shutil.rmtree(tmp_path / "odd", ignore_errors=True)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / MANIFEST_NAME).write_text(text, encoding="utf-8")
    _refused(tmp_path / "odd")


V1_AUDIO = {
    "ctc_alphabet": " ab",
    "extra_padding": 800,
    "max_seconds": 29.5,
    "num_mel_bins": 80,
    "samples_per_token": 1_600,
    "sampling_rate": 16_000,
}
V1_PROMPT = {
    "after_audio": "<|im_end|>",
    "after_ids": [2],
    "before_audio": "<|im_start|>user\n",
    "before_ids": [1, 5],
    "eos_ids": [2],
    "text_style": "lower",
}


def _version_1(folder) -> dict:
    """The manifest as prunella 0.1.0 wrote it."""
    body = json.loads((folder / MANIFEST_NAME).read_text())
    body.pop("mmproj", None)
    return {**body, "schema_version": 1, "audio": V1_AUDIO, "prompt": V1_PROMPT}


def test_a_bundle_of_schema_version_1_opens(write_bundle, capsys):
    folder = write_bundle()
    _sealed(folder, _version_1(folder))
    manifest = open_bundle(folder).manifest
    assert (manifest.prompt.before_ids, manifest.prompt.after_ids) == ((1, 5), (2,))
    assert manifest.prompt.before_audio == "<|im_start|>user\n" and manifest.prompt.text_style == "lower"
    assert (manifest.prompt.languages, manifest.prompt.answer) == ((), "as-is")
    audio = manifest.audio
    assert (audio.features.multiple, audio.features.extra, audio.features.num_mel_bins) == (1_600, 800, 80)
    assert audio.features.padded(1_601) == 4_000 and audio.features.valid == "all"
    assert (audio.samples_per_token, audio.ctc_alphabet) == (1_600, " ab")
    # Written again it is of today's version, and says the same.
    assert main(["info", str(folder)]) == 0
    assert "80 bins" in capsys.readouterr().out
    (folder / MANIFEST_NAME).write_text(manifest.dumps())
    assert open_bundle(folder).manifest == manifest


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("audio", "samples_per_token", 2**24),
        ("audio", "extra_padding", -1),
        ("audio", "num_mel_bins", "80"),
        ("audio", "features", {}),
        ("prompt", "before_ids", [10**6]),
        ("prompt", "segments", []),
        ("prompt", "after_audio", 5),
        (None, "audio", []),
        (None, "prompt", None),
    ],
)
def test_what_does_not_fit_in_version_1_is_refused_in_words(write_bundle, part, key, value):
    folder = write_bundle()
    body = copy.deepcopy(_version_1(folder))
    (body if part is None else body[part])[key] = value
    _sealed(folder, body)
    _refused(folder, match="does not fit")
    if part is not None:
        del body[part][key]
        _sealed(folder, body)
        if key in ("before_ids", "after_audio"):
            _refused(folder, match=key)


def test_an_opening_may_remember_and_info_never_does(write_bundle, monkeypatch, tmp_path):
    from prunella.device_runtime.base import private_cache, verified_files

    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setattr(private_cache, "private_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(verified_files, "_SETTLED_NS", -(10**12))
    hashed = []
    monkeypatch.setattr(verified_files, "sha256", lambda path: hashed.append(path) or sha256(path))
    folder = write_bundle()
    count = len(open_bundle(folder, remembered=True).manifest.files)
    for _ in range(2):
        open_bundle(folder, remembered=True)
        assert len(hashed) == count
    assert main(["info", str(folder)]) == 0 and len(hashed) == 2 * count
    graph = folder / "onnx" / "decoder_model_merged.onnx"
    graph.write_bytes(bytes(len(graph.read_bytes())))
    with pytest.raises(BundleError, match="corrupt"):
        open_bundle(folder, remembered=True)
