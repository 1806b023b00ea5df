"""Hardware that is not there is announced, never silently replaced."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from prunella.cli import main
from prunella.device_runtime.base.errors import EngineError
from prunella.device_runtime.bundle import Provider, open_bundle, parse_manifest
from prunella.device_runtime.engines.onnx_engine import OnnxEngine
from prunella.device_runtime.engines.provider_options import split_llama_options
from prunella.device_runtime.engines.providers import (
    CPU,
    announce,
    for_decoder,
    missing_offload,
    open_session,
    require_all,
)

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


class Runtime:
    """An onnxruntime with CUDA built in; `broken` providers raise, `lost` ones vanish from the session."""

    __version__ = "9.9"

    def __init__(self, broken=(), lost=()):
        self.broken, self.lost, self.tried = broken, lost, []

    def get_available_providers(self):
        return [CUDA, CPU]

    def InferenceSession(self, path, settings, providers, enable_fallback):
        self.tried.append(providers)
        names = [name for name, _ in providers]
        for name in names:
            if name in self.broken:
                raise RuntimeError(f"{name} failed\nat line 7")
        return SimpleNamespace(get_providers=lambda: [name for name in names if name not in self.lost])


def test_options_reach_the_session_as_text(tmp_path):
    runtime = Runtime()
    provider = Provider(CUDA, {"device_id": 1, "use_tf32": False, "ModelCacheDirectory": f"{tmp_path}/made"})
    session, missing = open_session(runtime, tmp_path, None, [provider])
    assert missing == ()
    assert session.get_providers() == [CUDA, CPU]
    options = {"device_id": "1", "use_tf32": "0", "ModelCacheDirectory": f"{tmp_path}/made"}
    assert runtime.tried == [[(CUDA, options), (CPU, {})]]
    assert (tmp_path / "made").is_dir()


def test_not_built_in(tmp_path):
    session, (missing,) = open_session(Runtime(), tmp_path, None, [Provider(TENSORRT), Provider(CUDA)])
    assert session.get_providers() == [CUDA, CPU]
    assert missing.name == TENSORRT
    assert "has only CUDAExecutionProvider, CPUExecutionProvider" in str(missing)


def test_libraries_not_found(tmp_path):
    _, (missing,) = open_session(Runtime(lost=[CUDA]), tmp_path, None, [Provider(CUDA)])
    assert "could not load its libraries" in str(missing)


def test_failing_while_loading(tmp_path):
    runtime = Runtime(broken=[CUDA])
    session, (missing,) = open_session(runtime, tmp_path, None, [Provider(CUDA)])
    assert session.get_providers() == [CPU]
    assert missing.reason == "CUDAExecutionProvider failed"
    with pytest.raises(EngineError, match=r"onnxruntime 9\.9 cannot load .* failed"):
        open_session(Runtime(broken=[CPU]), tmp_path, None, [Provider(CUDA)])


def test_offload():
    built = SimpleNamespace(llama_supports_gpu_offload=lambda: True)
    bare = SimpleNamespace(llama_supports_gpu_offload=lambda: False)
    assert missing_offload(bare, {}) == missing_offload(bare, {"n_gpu_layers": 0}) == ()
    assert missing_offload(built, {"n_gpu_layers": -1}) == ()
    (missing,) = missing_offload(bare, {"n_gpu_layers": -1})
    assert "was built for the processor" in str(missing)
    assert split_llama_options({"n_gpu_layers": 3, "offload_kqv": True, "other": 1}) == (
        {"n_gpu_layers": 3},
        {"offload_kqv": True},
    )


def test_the_decoder_stays_where_its_operators_are():
    chosen = for_decoder([Provider(TENSORRT), Provider(CUDA, {"device_id": 1}), Provider(CPU)])
    assert chosen == (Provider(CUDA, {"device_id": 1}), Provider(CPU))


def test_announced_once(caplog):
    (missing,) = missing_offload(
        SimpleNamespace(llama_supports_gpu_offload=lambda: False), {"n_gpu_layers": 1}
    )
    assert announce([missing, missing]) == (missing,)
    assert len(caplog.records) == 1
    require_all(SimpleNamespace(missing=()))
    require_all(None)  # an engine that does not choose
    with pytest.raises(EngineError, match="or run it without --strict"):
        require_all(SimpleNamespace(missing=(missing,)))


@pytest.fixture(scope="module")
def cuda_bundle(small_speech_llm, tmp_path_factory):
    """A bundle that asks for CUDA, which the tests' onnxruntime does not have."""
    from prunella.export.export import export_float
    from prunella.targets.profile import load_target

    profile = replace(load_target("cuda-desktop"), engines=("onnx",), recipe="int8")
    out = tmp_path_factory.mktemp("cuda") / "bundle"
    return export_float(small_speech_llm, profile, out)


@pytest.mark.slow
def test_a_bundle_carries_the_choice_of_its_target(cuda_bundle):
    manifest = open_bundle(cuda_bundle.path).manifest
    assert [provider.name for provider in manifest.providers] == [CUDA, CPU]
    assert manifest.providers[0].options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert manifest.llama == {"n_gpu_layers": -1, "offload_kqv": True}
    assert manifest.precision == {"audio_encoder": "float", "embed_tokens": "float"}
    assert parse_manifest(manifest.dumps(), cuda_bundle.path) == manifest


def test_the_engine_says_so_and_runs(cuda_bundle, caplog):
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    engine = OnnxEngine.open(cuda_bundle, threads=1)
    assert [missing.name for missing in engine.missing] == [CUDA]
    assert len(caplog.records) == 1
    assert "CUDAExecutionProvider is not used: onnxruntime" in caplog.text


def test_strict(cuda_bundle, noise_manifest, capfd):
    clip = str(noise_manifest.parent / "7.wav")
    assert main(["transcribe", str(cuda_bundle.path), clip, "--strict"]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "CUDAExecutionProvider is not used" in captured.err
    line = ["eval", str(cuda_bundle.path), "--speech", str(noise_manifest), "--limit", "1"]
    assert main([*line, "--strict"]) == 1
    assert "CUDAExecutionProvider is not used" in capfd.readouterr().err
    assert main([*line, "--no-score"]) == 0
    assert main(["bench", *line[1:], "--strict"]) == 1
    assert "CUDAExecutionProvider is not used" in capfd.readouterr().err


def test_what_is_compiled_goes_into_our_cache_or_a_temporary_folder(tmp_path, monkeypatch, caplog):
    provider = Provider(TENSORRT, {"trt_engine_cache_path": "~/.cache/prunella/tensorrt", "other": "~/x"})
    runtime = Runtime()
    monkeypatch.setattr(runtime, "get_available_providers", lambda: [TENSORRT])
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("HOME", "/nonexistent")
    open_session(runtime, tmp_path, None, [provider])
    options = runtime.tried[-1][0][1]
    assert options == {
        "trt_engine_cache_path": str(tmp_path / "kept" / "tensorrt"),
        "other": "/nonexistent/x",
    }
    assert not caplog.records
    monkeypatch.setenv("PRUNELLA_CACHE", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    open_session(runtime, tmp_path, None, [provider])
    folder = runtime.tried[-1][0][1]["trt_engine_cache_path"]
    assert folder.startswith(f"{tmp_path}/prunella-")
    assert "PRUNELLA_CACHE" in caplog.text
