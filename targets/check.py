"""What this machine lacks for a target."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from prunella.device_runtime.base.errors import EngineError
from prunella.device_runtime.bundle import Bundle
from prunella.device_runtime.engines.llama_library import llama_library
from prunella.device_runtime.engines.providers import missing_offload
from prunella.targets.detect import match_target
from prunella.targets.fit import fit_bundle
from prunella.targets.machine import Machine
from prunella.targets.profile import TargetProfile


@dataclass(frozen=True)
class Finding:
    """One thing that a target asks for, whether it is here, and what to do where it is not.

    `needed` is False for what only serves a target's second choice of engine.
    """

    what: str
    ok: bool
    detail: str
    needed: bool = True


def check_target(
    target: TargetProfile, machine: Machine, bundle: Bundle | None = None
) -> tuple[Finding, ...]:
    """Hold this machine and what is installed on it against a target, and a bundle against its memory budget."""
    findings = [_machine(target, machine)]
    for engine in target.engines:
        # ONNX Runtime also encodes the audio for llama.cpp.
        needed = engine in ("onnx", target.engines[0])
        found = _onnx(target) if engine == "onnx" else _llama(target)
        findings += [replace(finding, needed=needed) for finding in found]
    if target.memory.budget_mb and machine.memory_mb:
        enough = machine.memory_mb >= target.memory.budget_mb
        findings.append(
            Finding(
                "memory",
                enough,
                f"{machine.memory_mb} MB of RAM here, the budget is {target.memory.budget_mb} MB",
            )
        )
    if bundle is not None:
        fit = fit_bundle(target, bundle)
        findings.append(Finding("bundle", fit.fits, fit.describe()))
    return tuple(findings)


def _machine(target: TargetProfile, machine: Machine) -> Finding:
    match = match_target(target, machine)
    if match.fails:
        return Finding("machine", False, "; ".join(match.fails))
    return Finding("machine", True, "; ".join(match.holds) or "the target states no match rules")


def _onnx(target: TargetProfile) -> Iterator[Finding]:
    runtime = _import("onnxruntime")
    if runtime is None:
        yield Finding("onnxruntime", False, "not installed")
        return
    yield Finding("onnxruntime", True, runtime.__version__)
    present = runtime.get_available_providers()
    for name in target.providers:
        here = name in present
        detail = "built in" if here else f"not in this onnxruntime ({', '.join(present)})"
        yield Finding(name, here, detail)


def _llama(target: TargetProfile) -> Iterator[Finding]:
    try:
        library = llama_library()
    except EngineError as error:
        yield Finding("llama-cpp-python", False, str(error))
        return
    yield Finding("llama-cpp-python", True, library.__version__)
    for missing in missing_offload(library, target.llama):
        yield Finding(missing.name, False, missing.reason)
    lacking = [
        key
        for key in target.llama
        if not hasattr(library.llama_model_params, key) and not hasattr(library.llama_context_params, key)
    ]
    for key in lacking:
        yield Finding(f"llama.{key}", False, f"llama-cpp-python {library.__version__} has no such setting")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
