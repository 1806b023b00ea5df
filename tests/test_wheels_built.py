"""What `make wheels` makes: a runtime without weights; the embedded models and a ready bundle as distributions of their own."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from prunella import cli
from prunella._version import __version__
from prunella.device_runtime.base import ready_bundle
from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.servers.page_files import FILES
from prunella.speech_llm import embedded_weights as weights

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CONTAINER = (ROOT / "examples" / "home_assistant" / "Dockerfile.dockerignore").read_text().splitlines()


def outside_the_container(folder: str, names: list[str]) -> set[str]:
    """What the example's container does not get to install prunella from, for `copytree`."""
    kept = [line[1:] for line in CONTAINER if line.startswith("!")] if Path(folder) == ROOT else ["*"]
    return {
        name for name in names if name == "__pycache__" or not any(fnmatch(name, pattern) for pattern in kept)
    }


def build_wheel(source: Path, dist: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-index", "--no-build-isolation", "-w", str(dist), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def runtime_wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    # Of a copy: setuptools builds in the sources' folder, and would pack what an earlier build left there. It has what the
    # Dockerfile copies, so that a room which is missing there is missed here.
    shutil.copytree(ROOT, folder / "source", ignore=outside_the_container)
    return build_wheel(folder / "source", folder / "dist")


@pytest.fixture(scope="module")
def models_wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    ignore = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "embedded_models", folder / "source", ignore=ignore)
    return build_wheel(folder / "source", folder / "dist")


def test_the_runtimes_wheel_holds_no_training_weights(runtime_wheel):
    names = zipfile.ZipFile(runtime_wheel).namelist()
    assert runtime_wheel.stat().st_size <= 5_000_000
    assert not [name for name in names if name.endswith((".safetensors", ".gguf", ".bin"))]
    for needed in ("cli.py", "targets/x86-cpu.toml", "device_runtime/sound/silero_vad/silero_vad_16k.onnx"):
        assert f"prunella/{needed}" in names
    for part in FILES:
        assert f"prunella/device_runtime/servers/page/{part}" in names


def test_the_models_wheel_is_found_where_it_is_installed(models_wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "CHECKOUT", tmp_path / "no checkout")
    assert weights.find_weights("reference") is None
    with pytest.raises(
        CheckpointError, match=r"'reference-pruned' are not installed: .*wheel prunella_models"
    ):
        weights.embedded_weights("reference-pruned")
    zipfile.ZipFile(models_wheel).extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in ("reference", "reference-pruned"):
        folder = weights.embedded_weights(name)
        assert folder.is_relative_to(tmp_path / "site")
        here = ROOT / "embedded_models" / "prunella_models" / folder.name
        for file in here.iterdir():
            assert (folder / file.name).read_bytes() == file.read_bytes()


def test_a_checkout_has_the_models_on_disk(monkeypatch):
    monkeypatch.setattr(weights, "PACKAGE", "not_installed_anywhere")
    assert weights.embedded_weights("reference") == ROOT / "embedded_models" / "prunella_models" / "reference"


@pytest.fixture(scope="module")
def bundle_wheel(small_speech_llm, tmp_path_factory) -> Path:
    """As `make wheels` packs it, a tiny bundle in place of the demo's."""
    from prunella.export.export import export

    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(ROOT / "ready_bundle", folder / "source")
    export(
        small_speech_llm,
        "x86-cpu",
        folder / "source" / ready_bundle.PACKAGE / ready_bundle.FOLDER,
        recipe="int4",
    )
    return build_wheel(folder / "source", folder / "dist")


def test_an_installed_bundle_transcribes(bundle_wheel, tmp_path, monkeypatch, capsys):
    clip = str(ROOT / "examples" / "clips" / "evaluation" / "goforward.flac")
    assert cli.main(["transcribe", clip]) == 1
    said = capsys.readouterr().err
    assert "none is installed" in said and bundle_wheel.name in said and "make wheels" in said
    zipfile.ZipFile(bundle_wheel).extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    assert cli.main(["transcribe", clip, "--beams", "1", clip]) == 0
    captured = capsys.readouterr()
    assert [line.partition("\t")[0] for line in captured.out.splitlines()] == [clip, clip]
    first, *_ = captured.err.splitlines()
    assert "no bundle is named: using the installed one" in first and str(tmp_path / "site") in first


def test_the_bundle_is_of_this_version():
    project = (ROOT / "ready_bundle" / "pyproject.toml").read_text()
    assert f'\nversion = "{__version__}"\n' in project and "dependencies" not in project
