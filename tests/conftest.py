"""What several rooms' tests share: a tiny random speech LLM, and the real reference as a model and as a bundle."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import support_matrix
from skips_in_ci import pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]  # hooks, which pytest looks for here

ROOT = Path(__file__).parents[1]
CLIPS = ROOT / "examples" / "clips"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(support_matrix)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the reference, or anything made of it, loads a real model."""
    for item in items:
        if any(name.startswith("reference") for name in getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.model)


@pytest.fixture
def research_folder(monkeypatch) -> Iterator[Callable[[str], None]]:
    """Lets a test import the scripts of `research/NAME` as they import each other, and forgets them afterwards."""
    folders = []

    def put_on_path(name: str) -> None:
        folders.append(ROOT / "research" / name)
        monkeypatch.syspath_prepend(folders[-1])

    yield put_on_path
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent in folders:
            del sys.modules[name]


@pytest.fixture(autouse=True)
def nothing_was_announced(monkeypatch) -> None:
    """Missing hardware is announced once a process: for every test that is anew."""
    from prunella.device_runtime.engines import providers

    monkeypatch.setattr(providers, "announced", set())


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch) -> None:
    """No start of a test remembers anything in the cache of whoever runs it, or from an earlier test."""
    from prunella.device_runtime.base import private_cache

    monkeypatch.setattr(private_cache, "private_folder", lambda: None)


@pytest.fixture(scope="session")
def reference():
    from prunella.speech_llm import load
    from prunella.speech_llm.process import tune

    tune()
    return load("reference")


@pytest.fixture(scope="session")
def reference_float_bundle(reference, tmp_path_factory) -> Path:
    from prunella.export.export import export_float

    out = tmp_path_factory.mktemp("reference") / "fp32"
    export_float(reference, "x86-cpu", out)
    return out


@pytest.fixture(scope="session")
def reference_bundle(reference_float_bundle, tmp_path_factory) -> Path:
    from prunella.device_runtime.bundle import open_bundle
    from prunella.quantize.bundle_writer import requantize

    out = tmp_path_factory.mktemp("reference") / "int4"
    requantize(open_bundle(reference_float_bundle), "int4", out)
    return out


@pytest.fixture(scope="session")
def small_speech_llm():
    """A random speech LLM of six layers whose logits differ by more than one."""
    from tiny_models import byte_level_tokenizer, tiny_speech_llm

    from prunella.speech_llm.config import Prompt

    return tiny_speech_llm(
        byte_level_tokenizer(),
        seed=0,
        layers=6,
        prompt=Prompt("user: ", " say it: ", "<|im_end|>"),
        text_style="lower",
        intermediate_size=96,
        max_position_embeddings=2048,
        initializer_range=0.1,
    )


@pytest.fixture(scope="session")
def noise_manifest(tmp_path_factory) -> Path:
    """Eight clips of noise of different lengths with different texts."""
    folder = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    rows = []
    for index in range(8):
        seconds = 0.4 + 0.25 * index
        samples = 0.1 * generator.standard_normal(int(seconds * 16_000))
        soundfile.write(folder / f"{index}.wav", samples, 16_000)
        rows.append(
            {"audio_filepath": f"{index}.wav", "duration": seconds, "text": f"Noise, number {index * 37}."}
        )
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
