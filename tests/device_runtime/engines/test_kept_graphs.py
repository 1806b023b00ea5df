"""A graph is optimized once; what is kept of it says the same numbers, and is not believed where it may be another's."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunella.device_runtime.base import private_cache
from prunella.device_runtime.base.errors import BundleError, EngineError
from prunella.device_runtime.base.files import sha256
from prunella.device_runtime.bundle import Bundle, FileEntry, Provider, open_bundle
from prunella.device_runtime.engines import kept_graphs
from prunella.device_runtime.engines.kept_graphs import open_graph
from prunella.device_runtime.manifest_reader import parse_manifest

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
NAME = "onnx/audio_encoder.onnx"
_private_folder = private_cache.private_folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(private_cache, "private_folder", _private_folder)
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / private_cache.FOLDER


def _write_graph(folder: Path, seed: int = 0, *, apart: bool = True) -> None:
    """`y = relu(x @ w + b) * 1 * 1`, of which an optimizer leaves less."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    tensors = {"w": (8, 64), "b": (64,), "one": (1,)}
    values = {
        key: rng.standard_normal(shape).astype(np.float32) if key != "one" else np.ones(1, np.float32)
        for key, shape in tensors.items()
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Mul", ["r", "one"], ["s"]),
        helper.make_node("Identity", ["s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(value, key) for key, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / NAME
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    onnx.save_model(
        model, path, save_as_external_data=apart, location=f"{path.name}_data", size_threshold=1024
    )


@pytest.fixture
def bundle(write_bundle):
    """→ a bundle with a graph of this seed, written as it is asked for."""

    def make(seed: int = 0, *, apart: bool = True) -> Bundle:
        folder = write_bundle(f"bundle-{seed}-{apart}")
        _write_graph(folder, seed, apart=apart)
        manifest = parse_manifest((folder / "bundle.json").read_text(), folder)
        files = {
            file.relative_to(folder).as_posix(): FileEntry(sha256(file), file.stat().st_size)
            for file in folder.rglob("*")
            if file.is_file() and file.name != "bundle.json"
        }
        (folder / "bundle.json").write_text(replace(manifest, files=files).dumps())
        return open_bundle(folder)

    return make


def _run(bundle: Bundle, providers: tuple[Provider, ...] = ()) -> tuple[np.ndarray, bool]:
    """What the graph makes of fixed numbers, and whether it came out of the cache."""
    loaded = []

    class Runtime:
        __version__ = onnxruntime.__version__
        SessionOptions, GraphOptimizationLevel = (
            onnxruntime.SessionOptions,
            onnxruntime.GraphOptimizationLevel,
        )
        get_available_providers = staticmethod(onnxruntime.get_available_providers)

        @staticmethod
        def InferenceSession(model, *rest, **more):
            loaded.append(isinstance(model, bytes))
            return onnxruntime.InferenceSession(model, *rest, **more)

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session, missing = open_graph(Runtime, bundle, NAME, settings, providers)
    assert not missing
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    return session.run(None, {"x": x})[0], loaded[-1]


def _kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.onnx")) if cache.is_dir() else []


def test_a_later_start_loads_what_was_kept_and_says_the_same(cache, bundle):
    made = bundle()
    first, from_cache = _run(made)
    assert not from_cache and len(_kept(cache)) == 1
    for _ in range(2):
        again, from_cache = _run(made)
        assert from_cache and np.array_equal(first, again)
    assert not list(cache.glob(".*"))
    if os.name == "posix":
        assert _kept(cache)[0].stat().st_mode & 0o777 == 0o600


def test_files_that_nobody_hashed_are_never_taken_for_others(cache, bundle):
    """As a bundle's own gate opens them, before it is sealed: one model's graph would stand for the next one's."""
    for seed in (0, 1):
        sealed = bundle(seed)
        files = {name: FileEntry("", 0) for name in sealed.manifest.files}
        expected, _ = _run(sealed)
        found, from_cache = _run(replace(sealed, manifest=replace(sealed.manifest, files=files)))
        assert not from_cache and np.allclose(found, expected, atol=1e-5)
    assert len(_kept(cache)) == 2


def test_the_weights_stay_where_they_are(cache, bundle):
    made = bundle()
    _run(made)
    # 8 x 64 floats are not in it.
    assert _kept(cache)[0].stat().st_size < 2_048
    (made.path / f"{NAME}_data").unlink()
    with pytest.raises(EngineError):
        _run(made)


def test_other_files_are_other_graphs(cache, bundle):
    first, _ = _run(bundle(0))
    second, from_cache = _run(bundle(1))
    assert not from_cache and not np.array_equal(first, second) and len(_kept(cache)) == 2


@pytest.mark.parametrize("name", ["__version__", "_processor"])
def test_another_version_or_processor_optimizes_anew(cache, bundle, monkeypatch, name):
    made = bundle()
    _run(made)
    monkeypatch.setattr(kept_graphs, name, "other" if name == "__version__" else lambda: "other")
    assert not _run(made)[1] and len(_kept(cache)) == 2


@pytest.mark.parametrize(
    "spoil", [lambda kept: b"", lambda kept: kept[:-1], lambda kept: kept[:50] + b"x" + kept[51:]]
)
def test_a_damaged_one_is_made_anew(cache, bundle, spoil):
    made = bundle()
    first, _ = _run(made)
    (file,) = _kept(cache)
    file.write_bytes(spoil(file.read_bytes()))
    again, from_cache = _run(made)
    assert not from_cache and np.array_equal(first, again)
    assert _run(made)[1]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_one_that_others_can_write_is_not_loaded(cache, bundle):
    made = bundle()
    first, _ = _run(made)
    _kept(cache)[0].chmod(0o666)
    again, from_cache = _run(made)
    assert not from_cache and np.array_equal(first, again)
    cache.chmod(0o777)
    assert not _run(made)[1]


def test_one_that_cannot_be_loaded_is_passed_over(cache, bundle):
    import hashlib

    made = bundle()
    first, _ = _run(made)
    (file,) = _kept(cache)
    file.write_bytes(hashlib.sha256(b"no graph").digest() + b"no graph")
    again, from_cache = _run(made)
    assert not from_cache and np.array_equal(first, again)


def test_what_is_too_large_is_not_kept_and_not_tried_again(cache, bundle, monkeypatch):
    made = bundle()
    monkeypatch.setattr(kept_graphs, "_MOST_BYTES", (made.path / NAME).stat().st_size)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("too large to read"))
    for _ in range(2):
        assert not _run(made)[1]
    assert _kept(cache)[0].stat().st_size <= 32


def test_a_graph_with_its_weights_in_it_and_other_hardware_are_not_kept(cache, bundle, monkeypatch):
    assert not _run(bundle(apart=False))[1]
    made = bundle()
    monkeypatch.setattr(
        kept_graphs, "open_session", lambda runtime, graph, settings, providers: ("hardware", ())
    )
    found, _ = open_graph(
        onnxruntime, made, NAME, onnxruntime.SessionOptions(), (Provider("CUDAExecutionProvider"),)
    )
    assert found == "hardware" and not _kept(cache)


def test_without_a_cache_it_is_loaded_as_ever(bundle):
    assert not _run(bundle())[1]


def test_a_graph_that_is_not_there_is_said(cache, bundle):
    with pytest.raises(BundleError, match="nowhere"):
        open_graph(onnxruntime, bundle(), "onnx/nowhere.onnx", onnxruntime.SessionOptions())
