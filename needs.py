"""Which libraries a command will need, told from its words before it is imported: minutes of work never end in a missing one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from prunella.device_runtime.base.errors import PrunellaError
from prunella.device_runtime.base.model_names import BASELINE, EMBEDDED
from prunella.device_runtime.base.ready_bundle import find_ready_bundle

HELP = ("-h", "--help")  # asks nothing of the work
_MODEL = ("torch", "transformers", "safetensors", "peft")
_PRUNE = (*_MODEL, "scipy")
_EXPORT = (*_MODEL, "onnx", "onnxscript", "onnxruntime", "onnxruntime_genai")
_HEAL = (*_MODEL, "accelerate", "scipy")
_JUDGE = ("jiwer", "whisper_normalizer")
_SERVE = ("starlette", "uvicorn", "multipart", "websockets")
_ENGINES = {"onnx": ("onnxruntime",), "gguf": ("llama_cpp",), "mtmd": ("llama_cpp",)}
_RECIPES = {"onnx": ("onnx", "onnxruntime"), "gguf": ("llama_cpp", "gguf")}  # to write bundles for an engine


def needed_modules(verb: str, words: Sequence[str]) -> tuple[str, ...]:
    """Import names of what `prunella VERB WORDS...` will need, as far as its words tell. Nothing that is wrong with them is said here."""
    if verb not in _VERBS or set(HELP) & set(words):
        return ()
    try:
        return tuple(dict.fromkeys(_VERBS[verb](words)))
    except (PrunellaError, OSError, ValueError):
        return ()  # the verb itself says what is wrong


def recipe_modules(recipe: str) -> tuple[str, ...]:
    """What writing bundles of a recipe needs beside the model."""
    from prunella.quantize.bundle_recipe import find_bundle_recipe  # rooms open when their verb is called

    engines = find_bundle_recipe(recipe).engines
    return tuple(name for engine in ("onnx", *engines) for name in _RECIPES[engine])


def _recipe_of(target: str) -> str:
    from prunella.targets.profile import load_target

    return load_target(target).recipe


def _build(words: Sequence[str]) -> tuple[str, ...]:
    target = _value(words, "--target")
    recipe = recipe_modules(_recipe_of(target)) if target else ()
    baseline = () if _has(words, "--no-baseline") else ("faster_whisper",)
    heal = _heal(words) if "--heal" in words else ()
    return (*_EXPORT, *_PRUNE, "matplotlib", *_JUDGE, *recipe, *baseline, *heal)


def _export(words: Sequence[str]) -> tuple[str, ...]:
    recipe, target = _value(words, "--recipe"), _value(words, "--target")
    if recipe is None and target is not None:
        recipe = _recipe_of(target)
    return (*_EXPORT, *(recipe_modules(recipe) if recipe else ()))


def _quantize(words: Sequence[str]) -> tuple[str, ...]:
    recipe = _value(words, "--recipe")
    judged = (*_JUDGE, *_systems(words)) if _has(words, "--auto") else ()
    return (*(recipe_modules(recipe) if recipe else ("onnx",)), *judged)


def _heal(words: Sequence[str]) -> tuple[str, ...]:
    streamed = any(word.startswith("hf:") for word in words)
    return (*_HEAL, *(("datasets",) if streamed else ()))


def _synth(words: Sequence[str]) -> tuple[str, ...]:
    return ("hibari", "scipy") if "hibari" in (_value(words, "--voices") or "") else ()


def _serve(words: Sequence[str]) -> tuple[str, ...]:
    own = (
        *(("wyoming",) if _has(words, "--wyoming") else ()),
        *(("cryptography",) if _has(words, "--tls") else ()),
    )
    return (*_SERVE, *own, *_bundle(words))


def _eval(words: Sequence[str]) -> tuple[str, ...]:
    return (*_JUDGE, *_systems(words))


def _bundle(words: Sequence[str]) -> tuple[str, ...]:
    """Of the bundle among the words, or of the installed one; a model is none, as whoever opens it says."""
    ready = find_ready_bundle()
    words = [word for word in words if not _is_model(word)]
    return _systems(words) or (_systems([*words, str(ready)]) if ready else ())


def _systems(words: Sequence[str]) -> tuple[str, ...]:
    """Of the bundles and models among the words, whichever of them they are."""
    found: list[str] = []
    asked = _value(words, "--engine")
    for word in words:
        folder, _, engine = word.rpartition("@")
        if not (folder and (Path(folder) / "bundle.json").is_file()):
            folder, engine = word, asked or ""
        manifest = Path(folder) / "bundle.json"
        if word == BASELINE:
            found.append("faster_whisper")
        elif _is_model(folder):
            found += _MODEL
        elif manifest.is_file():
            found += _ENGINES.get(engine or _first_engine(manifest), ())
    return tuple(found)


def _is_model(word: str) -> bool:
    return word in (*EMBEDDED, BASELINE) or (Path(word) / "decoder" / "config.json").is_file()


def _first_engine(manifest: Path) -> str:
    """Of a bundle; empty where its manifest does not say, which whoever opens it reports."""
    try:
        engines = json.loads(manifest.read_text(encoding="utf-8"))["engines"]
        return str(engines[0])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""


def _value(words: Sequence[str], option: str) -> str | None:
    """What stands behind an option, as `--option VALUE` or `--option=VALUE`, shortened as argparse takes it."""
    for at, word in enumerate(words):
        if _is(word, option) and "=" in word:
            return word.partition("=")[2]
        if _is(word, option) and at + 1 < len(words):
            return words[at + 1]
    return None


def _has(words: Sequence[str], option: str) -> bool:
    return any(_is(word, option) for word in words)


def _is(word: str, option: str) -> bool:
    name = word.partition("=")[0]
    return name.startswith("--") and len(name) > 2 and option.startswith(name)


_VERBS: dict[str, Callable[[Sequence[str]], tuple[str, ...]]] = {
    "analyze": lambda words: (*_PRUNE, "matplotlib"),
    "prune": lambda words: _PRUNE,
    "heal": _heal,
    "synth": _synth,
    "export": _export,
    "verify": lambda words: (*_MODEL, "onnxruntime", *_systems(words)),
    "quantize": _quantize,
    "build": _build,
    "transcribe": _bundle,
    "listen": _bundle,
    "serve": _serve,
    "eval": _eval,
    "bench": _systems,
    "pack": lambda words: ("cyclonedx", "packaging"),
    "fit": lambda words: ("onnxruntime",) if _has(words, "--calibrate") else (),
    "models": lambda words: _MODEL if "fetch" in words else (),
}
