import sys

import pytest

from prunella.cli import VERBS, main
from prunella.needs import needed_modules

JETSON = ["--target", "jetson-orin-nano"]


def _needs(verb, *words):
    return set(needed_modules(verb, words))


def test_what_a_command_needs_follows_from_its_words(tmp_path):
    assert "llama_cpp" in _needs("build", "reference", *JETSON, "--drop", "6")
    assert "llama_cpp" not in _needs("build", "reference", "--target=x86-cpu", "--drop", "6")
    assert "faster_whisper" in _needs("build", "reference", *JETSON)
    assert "faster_whisper" not in _needs("build", "reference", *JETSON, "--no-baseline")
    assert "datasets" in _needs("heal", "m", "--speech", "hf:librispeech:train")
    assert "llama_cpp" in _needs("export", "m", *JETSON)
    assert "llama_cpp" not in _needs("export", "m", *JETSON, "--recipe", "int4")
    assert "llama_cpp" in _needs("quantize", "b", "--recipe", "q4_0")
    assert "hibari" in _needs("synth", "s", "--voices=hibari:heart") and not _needs("synth", "s")
    assert "cryptography" in _needs("serve", "b", "--tls") and "wyoming" in _needs(
        "serve", "b", "--wyoming=10300"
    )
    assert "llama_cpp" in _needs("export", "m", "--targ=jetson-orin-nano")  # as argparse takes it
    assert "wyoming" in _needs("serve", "b", "--wyo")
    assert "torch" in _needs("models", "fetch") and not _needs("models", "list")
    (tmp_path / "bundle.json").write_text('{"engines": ["gguf", "onnx"]}')
    bundle = str(tmp_path)
    assert _needs("bench", bundle) == {"llama_cpp"} and _needs("bench", f"{bundle}@onnx") == {"onnxruntime"}
    assert _needs("transcribe", bundle, "x.wav", "--engine", "onnx") == {"onnxruntime"}
    assert _needs("verify", bundle, "m") >= {"torch", "llama_cpp", "onnxruntime"}
    assert _needs("eval", "reference") >= {"jiwer", "torch"}
    assert _needs("eval", "whisper-tiny.en") >= {"jiwer", "faster_whisper"}


@pytest.mark.parametrize("verb", VERBS)
def test_help_and_nonsense_need_nothing(verb, tmp_path):
    assert not needed_modules(verb, ["x", "--help"])
    (tmp_path / "bundle.json").write_text("[]")
    needed_modules(
        verb, [str(tmp_path), "--target", "--recipe", "no", "--engine", "--target=/dev/null.toml", "\0", ""]
    )


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "3", '{"engines": []}', '{"engines": 5}', '{"engines": {}}', "[" * 100_000, "\udc80"],
)
def test_a_damaged_bundle_is_named_by_whoever_opens_it(text, tmp_path, capsys):
    (tmp_path / "bundle.json").write_text(text, errors="surrogateescape")
    assert needed_modules("bench", [str(tmp_path)]) == ()
    assert main(["transcribe", str(tmp_path), "x.wav"]) == 1
    assert "export" in capsys.readouterr().err


def test_a_build_for_llama_cpp_without_it_is_refused_before_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    out = tmp_path / "out"
    assert main(["build", "reference", *JETSON, "--drop", "6", "-o", str(out)]) == 1
    said = capsys.readouterr().err
    assert "llama-cpp-python" in said and "faster-whisper" in said and said.count("pip install") == 1
    assert "--no-baseline" in said and not out.exists()
