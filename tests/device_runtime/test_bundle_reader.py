"""A bundle is read back as written, or refused: whatever byte changed, whatever file is gone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunella.device_runtime.bundle import MANIFEST_NAME, BundleManifest, FileEntry, open_bundle
from prunella.device_runtime.errors import BundleError
from prunella.device_runtime.files import sha256

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


def test_any_json_in_any_field_is_refused_in_words(write_bundle):
    folder = write_bundle()
    file = folder / MANIFEST_NAME
    intact = json.loads(file.read_text())

    @SAME_FOLDER
    @given(key=st.sampled_from([*intact, "unknown"]), value=json_values)
    def change(key, value):
        file.write_text(json.dumps({**intact, key: value}))
        _refused(folder)

    change()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=50) | json_values.map(json.dumps))
def test_any_text_as_manifest_is_refused_in_words(tmp_path, text):
    shutil.rmtree(tmp_path / "odd", ignore_errors=True)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / MANIFEST_NAME).write_text(text, encoding="utf-8")
    _refused(tmp_path / "odd")
