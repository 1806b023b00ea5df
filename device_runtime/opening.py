"""A bundle's folder to a `Transcriber`: the only module that knows which engines there are.

Graphs are loaded by native code, for tenths of a second. What Python has to do beside that, imports among it, it does
meanwhile: so little is imported up here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunella.device_runtime.base.beside import beside
from prunella.device_runtime.base.characters import has_half_characters
from prunella.device_runtime.base.cores import check_threads
from prunella.device_runtime.base.errors import BundleError, EngineError, UsageError
from prunella.device_runtime.bundle import Bundle, BundleManifest, open_bundle
from prunella.device_runtime.decoding.limits import check_effort
from prunella.device_runtime.transcript import DecodeOptions, Effort

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from prunella.device_runtime.decoding.engine import Engine
    from prunella.device_runtime.transcriber import Transcriber

_SHOWN = 40  # characters of a vocabulary that an error repeats
ENGINES = ("onnx", "gguf", "mtmd")  # mtmd: a bundle's GGUF files through llama.cpp alone, slower


def open_transcriber(
    bundle_path: str | Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    options: DecodeOptions | None = None,
    vocabulary: str = "",
    verify: bool = False,
    effort: Effort | None = None,
) -> Transcriber:
    """Open and verify a bundle, and load one of its engines.

    Args:
        bundle_path: the bundle's directory.
        engine: one of `ENGINES`; by default the first that the bundle prefers and this prunella has.
        threads: of the engine; by default the bundle's, 0 for one per physical core.
        options: in place of the bundle's.
        vocabulary: words that are likely to be said, for models whose prompt has a place for them.
        verify: hash every file, also those that an earlier opening hashed and that nobody has touched since.
        effort: "fast", "balanced" or "exact", see `Transcriber.with_options`; by default the bundle's.

    Raises:
        BundleError: missing or corrupt.
        EngineError: the bundle has no such engine, it cannot run here, or hears no letters, which the effort needs.
        UsageError: no engine or effort of this name exists, a number of threads out of range, or a vocabulary or an effort that
            the model does not take or has no room for.
    """
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"no engine '{engine}': choose one of {', '.join(ENGINES)}")
    check_threads(threads)
    check_effort(effort)
    bundle = open_bundle(bundle_path, remembered=not verify)
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
    tokenizer = None
    if vocabulary.strip():
        tokenizer = _read_tokenizer(tokenizer_file)
        manifest = _told(manifest, tokenizer, " ".join(vocabulary.split()))
        bundle = replace(bundle, manifest=manifest)
    opened = _open_engine(bundle, engine or usable[0], threads)
    from prunella.device_runtime.sound.speech_gate import open_speech_gate
    from prunella.device_runtime.transcriber import Transcriber

    tokenizer = tokenizer or _read_tokenizer(tokenizer_file)
    gate = open_speech_gate()
    ready = Transcriber(
        opened(), tokenizer, manifest.audio, manifest.prompt, options or manifest.decode, gate
    )
    return ready.with_options(effort=effort)


def _read_tokenizer(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        read: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise BundleError(f"{file} cannot be read ({error}): export the bundle again") from error
    return read


def _told(manifest: BundleManifest, tokenizer: Tokenizer, vocabulary: str) -> BundleManifest:
    """The manifest whose prompt has this vocabulary in its slot: engines prefill it once, with what is around it."""
    if has_half_characters(vocabulary):
        raise UsageError(f"the vocabulary {vocabulary[:_SHOWN]!a} is not UTF-8: write it as that")
    controls = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    meant = next((control for control in controls if control in vocabulary), None)
    if meant is not None:
        raise UsageError(f"the vocabulary holds {meant}, which the model takes for a command: leave it out")
    ids = tuple(tokenizer.encode(vocabulary, add_special_tokens=False).ids)
    prompt = manifest.prompt.with_vocabulary(vocabulary, ids)
    room = manifest.decoder.max_context - manifest.audio.longest_tokens(manifest.audio.max_seconds)
    room -= manifest.decode.token_cap(manifest.audio.max_seconds)
    if prompt.most_ids > room:
        raise UsageError(
            f"the vocabulary takes {len(ids)} tokens, and the bundle has room for {max(0, room - prompt.most_ids + len(ids))} "
            "beside 30 s of audio and its text: leave words out"
        )
    return replace(manifest, prompt=prompt)


def _open_engine(bundle: Bundle, name: str, threads: int | None) -> Callable[[], Engine]:
    """→ what waits for the engine. Each brings in a library that is an extra."""
    if name == "onnx":
        from prunella.device_runtime.engines.onnx_engine import OnnxEngine
        from prunella.device_runtime.engines.onnx_library import import_onnxruntime

        import_onnxruntime()  # here: two threads that import take turns
        return beside(lambda: OnnxEngine.open(bundle, threads=threads))
    from prunella.device_runtime.engines.gguf_engine import GgufEngine

    # OpenMP's threads belong to the one that first used them.
    engine = GgufEngine.open(bundle, threads=threads, audio_half="mtmd" if name == "mtmd" else "onnx")
    return lambda: engine
