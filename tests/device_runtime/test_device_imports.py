"""The device runtime is light: no torch, no transformers, and quick to import."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import prunella.device_runtime

HEAVY = ("torch", "transformers", "onnx", "scipy", "peft", "jiwer", "matplotlib")


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_no_module_of_the_runtime_brings_in_torch():
    names = [
        module.name
        for module in pkgutil.walk_packages(prunella.device_runtime.__path__, "prunella.device_runtime.")
    ]
    assert {"prunella.device_runtime.transcriber", "prunella.device_runtime.servers.http_api"} <= set(names)
    code = f"import importlib, json, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(_run(code))
    assert not [name for name in HEAVY if name in loaded]


@pytest.mark.parametrize("module", ["prunella.device_runtime", "prunella.device_runtime.transcribe"])
def test_importing_takes_under_three_times_what_numpy_takes(module):
    # A ratio within one process, since machines and moments differ; the importing thread's own processor time, since the
    # threads that numpy's OpenBLAS starts burn as much again while they wait; the best of five, since a cold disk is no fault.
    code = (
        "import time; start = time.thread_time(); import numpy; numpy_alone = time.thread_time() - start\n"
        f"import {module}; print((time.thread_time() - start) / numpy_alone)"
    )
    assert min(float(_run(code)) for _ in range(5)) < 3


def test_the_table_of_verbs_imports_no_room():
    loaded = json.loads(_run("import json, sys, prunella.cli; print(json.dumps(sorted(sys.modules)))"))
    assert not [
        name
        for name in loaded
        if name.startswith("prunella.")
        and name.count(".") == 1
        and name.split(".")[1] in ("speech_llm", "pruning", "export", "quantize", "evaluation", "build")
    ]
    assert "numpy" not in loaded


@pytest.mark.parametrize("name", prunella.device_runtime.__all__)
def test_what_every_caller_meets_is_found_at_the_top(name):
    assert getattr(prunella.device_runtime, name).__name__ == name


def test_another_name_is_refused():
    with pytest.raises(ImportError, match="nothing_here"):
        from prunella.device_runtime import nothing_here  # noqa: F401


# Libraries that may be imported: before a bundle's graphs begin to load, and until the first text.
TO_BEGIN = {"numpy", "msgspec", "typing_extensions"}
TO_TRANSCRIBE = {
    *TO_BEGIN,
    "tokenizers",
    "soundfile",
    "_soundfile",
    "_soundfile_data",
    "_cffi_backend",
    "soxr",
    "threadpoolctl",
}
# Of ours, those that are read before the graphs begin to load: whoever adds one here makes every start wait for it.
_OURS_TO_BEGIN = """
_version cli needs opener_registry openers
device_runtime: bundle manifest manifest_reader opening options transcribe transcript
device_runtime.base: argument_parser arrays beside blas cache characters common_options cores cpu_load environment errors extras
    heap languages model_names onnx_errors private_cache readers ready_bundle standard_streams suggestions verified_files
device_runtime.decoding: engine limits
device_runtime.engines: adaptive_threads idle_workers kept_graphs likelihood onnx_beams onnx_engine onnx_library providers
"""


def _named(text: str) -> set[str]:
    """Full names of a list in which `ROOM:` stands before the names in it."""
    found, room = {""}, ""
    for word in text.split():
        if word.endswith(":"):
            room = word[:-1]
        found.add(f"{room}.{word}".lstrip(".") if not word.endswith(":") else room)
    return found


def _loaded(code: str) -> tuple[set[str], set[str]]:
    """The libraries, and the modules of ours, that are imported by it."""
    names = json.loads(_run(f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"))
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    bare = set(
        json.loads(_run("import json, sys; print(json.dumps(sorted(sys.modules)))"))
    )  # what site brings
    bare = {name.partition(".")[0] for name in bare}
    ours = {
        name.removeprefix("prunella").removeprefix(".")
        for name in names
        if name.partition(".")[0] == "prunella"
    }
    return tops - bare - {"prunella"}, ours


def test_little_is_imported_before_the_graphs_begin_to_load():
    libraries, ours = _loaded(
        "import prunella.cli, prunella.device_runtime.transcribe, prunella.device_runtime.engines.onnx_engine"
    )
    assert libraries <= TO_BEGIN
    assert ours <= _named(_OURS_TO_BEGIN)


def test_nothing_heavy_is_imported_to_transcribe():
    libraries, _ = _loaded(
        "import prunella.cli, prunella.device_runtime.transcribe, prunella.device_runtime.engines.onnx_engine\n"
        "import prunella.device_runtime.transcriber, prunella.device_runtime.engines.onnx_audio_encoder\n"
        "import prunella.device_runtime.sound.speech_gate, soundfile"
    )
    assert libraries <= TO_TRANSCRIBE
