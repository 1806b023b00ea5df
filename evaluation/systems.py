"""Whatever can be evaluated: a bundle, a model folder, a Hub id or the native baseline, by one name.

What opens them imports what it needs when it is called, so that a bundle is measured without loading torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from prunella._version import __version__
from prunella.device_runtime.base.cores import check_threads, physical_cores
from prunella.device_runtime.base.errors import EngineError, UsageError
from prunella.device_runtime.base.extras import explained
from prunella.device_runtime.base.files import sha256
from prunella.device_runtime.base.model_names import BASELINE as BASELINE
from prunella.device_runtime.base.suggestions import path_hint
from prunella.device_runtime.bundle import MANIFEST_NAME, open_bundle
from prunella.device_runtime.decoding.limits import check_beams, check_effort
from prunella.device_runtime.transcript import Effort, Transcript
from prunella.opener_registry import OPENERS, Opener, register_opener

TRIMMED = "trimmed"
# What of an installation decides the texts beside prunella itself.
_LIBRARIES = {
    "bundle": ("onnxruntime", "onnxruntime-gpu", "llama-cpp-python", "tokenizers", "numpy", "soxr"),
    "baseline": ("faster-whisper", "ctranslate2", "tokenizers", "numpy", "soxr"),
    "model": ("torch", "transformers", "tokenizers", "numpy", "soxr"),
}


class System(Protocol):
    """The one thing that evaluation asks for; `score(samples, text) -> (nll_sum, tokens)` is used where offered."""

    def transcribe(self, samples: npt.NDArray[np.float32]) -> Transcript:
        """(n,) mono float32 at 16 kHz → its text."""
        ...


@dataclass(frozen=True)
class OpenedSystem:
    """A system ready to transcribe. `fingerprint` changes whenever its files, its options or the code that runs it do."""

    name: str
    system: System
    fingerprint: str
    disk_bytes: int | None  # None where it is not a folder on this machine


def open_system(
    name_or_path: str,
    *,
    guards: bool = True,
    threads: int | None = None,
    beams: int | None = None,
    language: str | None = None,
    effort: Effort | None = None,
) -> OpenedSystem:
    """Open a system by name.

    Args:
        name_or_path: a bundle's folder (with `@ENGINE` behind it for another engine than the bundle's first),
            `whisper-tiny.en`, a checkpoint folder, `reference` or a Hub id (with `@trimmed` behind it for a model of whole
            windows that is to hear recordings as long as they are, as `heal --trim-audio` teaches it).
        guards: False switches the repeat stop and the silence gate off (Whisper has none of ours).
        threads: CPU threads, 0 for one per physical core; by default the system's own choice.
        beams: transcripts that bundles and models follow at once, 0 for as many as pay; by default their own choice.
        language: that is spoken, by its code or English name, of bundles and models that take one.
        effort: "fast", "balanced" or "exact", of bundles and models with a CTC head; by default their own.

    Raises:
        UsageError: a path that does not exist, a number of beams or threads out of range, or a language that it does not take.
        EngineError: what the system needs is not installed.
        PrunellaError: what the opener itself raises.
    """
    check_threads(threads)
    check_beams(beams)
    check_effort(effort)
    name, engine = split_engine(name_or_path)
    kind = system_kind(name)
    how = {} if engine is None else {"trimmed": True} if kind == "model" else {"engine": engine}
    if threads == 0 and kind != "bundle":  # a bundle's engines say so themselves
        threads = physical_cores()
    try:
        system = OPENERS[kind].open(name, threads=threads, **how)
    except ImportError as error:
        if (error.name or "").startswith("prunella"):
            raise
        raise explained(error, f"'{name_or_path}' is a {kind}, which") from error
    if (with_options := getattr(system, "with_options", None)) is not None:
        asked = {} if effort is None else {"effort": effort}
        system = with_options(beams=beams, guards=None if guards else False, **asked)
    elif effort not in (None, "exact"):
        raise UsageError(f"'{name_or_path}' has no CTC head: leave --effort out")
    if language is not None:
        if (with_language := getattr(system, "with_language", None)) is None:
            raise UsageError(f"'{name_or_path}' takes no language: leave --language out")
        system = with_language(language)
    folder = getattr(system, "path", None) if kind == "baseline" else Path(name)
    fingerprint = _fingerprint(name, kind, engine, guards, beams, language, effort)
    return OpenedSystem(name_or_path, system, fingerprint, _disk_bytes(folder))


def split_engine(name: str) -> tuple[str, str | None]:
    """`BUNDLE@ENGINE` → the bundle's folder and the engine, `MODEL@trimmed` alike; all else comes back whole, with None."""
    folder, _, engine = name.rpartition("@")
    found = (Path(folder) / MANIFEST_NAME).exists() or engine == TRIMMED
    return (folder, engine) if folder and found else (name, None)


def system_kind(name_or_path: str) -> str:
    """`bundle`, `baseline` or `model`.

    Raises:
        UsageError: it looks like a path and nothing is there.
    """
    if name_or_path == BASELINE:
        return "baseline"
    path = Path(name_or_path)
    if path.is_dir():
        return "bundle" if (path / MANIFEST_NAME).exists() else "model"
    # A Hub id is `name` or `owner/name`; anything else was meant as a path.
    if path.exists() or name_or_path.startswith((".", "/", "~")) or len(path.parts) > 2:
        raise UsageError(
            f"no bundle or model folder at {name_or_path}{path_hint(name_or_path)}: give a bundle, a checkpoint folder, 'reference', "
            f"a Hub id or '{BASELINE}'"
        )
    return "model"


def check_system(name: str) -> None:
    """See that a system is there, without opening it: a bundle's files by size, a model of the Hub is downloaded.

    Raises:
        PrunellaError: it is not, or has no such engine.
    """
    folder, engine = split_engine(name)
    kind = system_kind(folder)
    if kind == "bundle":
        engines = open_bundle(folder, verify=False).manifest.engines
        if engine not in (None, "mtmd", *engines):
            raise EngineError(f"{folder} has no engine {engine} (it has {', '.join(engines)})")
    elif kind == "model":
        OPENERS[kind].find(folder)


def _open_bundle(name: str, **options: Any) -> System:
    from prunella.device_runtime.opening import open_transcriber

    return open_transcriber(name, **options)


def _open_baseline(name: str, **options: Any) -> System:
    from prunella.evaluation.whisper_baseline import open_whisper_tiny_en

    return open_whisper_tiny_en(name, **options)


def _fingerprint(
    name: str,
    kind: str,
    engine: str | None,
    guards: bool,
    beams: int | None,
    language: str | None,
    effort: str | None,
) -> str:
    if kind == "bundle":
        content: Any = sha256(Path(name) / MANIFEST_NAME)
    elif kind == "model":
        # `reference` or a Hub id may be other weights tomorrow: what it stands for counts.
        path = OPENERS[kind].find(name)
        stats = {str(f.relative_to(path)): f.stat() for f in sorted(path.rglob("*")) if f.is_file()}
        content = [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()]
    else:
        content = name
    # Another decoding code may hear another text in the same files.
    versions = {"prunella": __version__} | {library: _version(library) for library in _LIBRARIES[kind]}
    # Records of before there were languages and efforts still count.
    told = [] if language is None else [language]
    told += [] if effort is None else [f"effort {effort}"]
    body = json.dumps([kind, engine, content, guards, beams, versions, *told])
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _disk_bytes(folder: Path | None) -> int | None:
    if folder is None or not folder.is_dir():
        return None
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# Of models, which are a room above: `prunella/openers.py`.
register_opener("bundle", Opener(_open_bundle, Path))
register_opener("baseline", Opener(_open_baseline, Path))
