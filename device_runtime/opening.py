"""A bundle's folder to a `Transcriber`: the only module that knows which engines there are."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from prunella.device_runtime.base.cores import check_threads
from prunella.device_runtime.base.errors import BundleError, EngineError, UsageError
from prunella.device_runtime.bundle import Bundle, open_bundle
from prunella.device_runtime.decoding.engine import Engine
from prunella.device_runtime.sound.speech_gate import open_speech_gate
from prunella.device_runtime.transcriber import Transcriber
from prunella.device_runtime.transcript import DecodeOptions

ENGINES = ("onnx", "gguf", "mtmd")  # mtmd: a bundle's GGUF files through llama.cpp alone, slower


def open_transcriber(
    bundle_path: str | Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    options: DecodeOptions | None = None,
) -> Transcriber:
    """Open and verify a bundle, and load one of its engines.

    Args:
        bundle_path: the bundle's directory.
        engine: one of `ENGINES`; by default the first that the bundle prefers and this prunella has.
        threads: of the engine; by default the bundle's, 0 for one per physical core.
        options: in place of the bundle's.

    Raises:
        BundleError: missing or corrupt.
        EngineError: the bundle has no such engine, or it cannot run here.
        UsageError: no engine of this name exists, or a number of threads out of range.
    """
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"no engine '{engine}': choose one of {', '.join(ENGINES)}")
    check_threads(threads)
    bundle = open_bundle(bundle_path)
    manifest = bundle.manifest
    usable = [name for name in manifest.engines if name in ENGINES]
    usable += ["mtmd"] if "gguf" in usable else []
    if engine not in (None, *usable) or not usable:
        has = ", ".join(usable or manifest.engines) or "none"
        raise EngineError(
            f"{bundle_path} has no engine {engine or 'that this prunella runs'} (it has {has}): "
            f"export the model for a target that uses {'gguf' if engine == 'mtmd' else engine or 'onnx'}"
        )
    tokenizer_file = bundle.file("tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise BundleError(f"{tokenizer_file} cannot be read ({error}): export the bundle again") from error
    chosen = _open_engine(bundle, engine or usable[0], threads)
    return Transcriber(
        chosen, tokenizer, manifest.audio, manifest.prompt, options or manifest.decode, open_speech_gate()
    )


def _open_engine(bundle: Bundle, name: str, threads: int | None) -> Engine:
    """Each brings in a library that is an extra."""
    if name == "onnx":
        from prunella.device_runtime.engines.onnx_engine import OnnxEngine

        return OnnxEngine.open(bundle, threads=threads)
    from prunella.device_runtime.engines.gguf_engine import GgufEngine

    return GgufEngine.open(bundle, threads=threads, audio_half="mtmd" if name == "mtmd" else "onnx")
