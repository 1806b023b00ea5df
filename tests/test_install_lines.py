"""Printed install lines run where an index lacks our names, and where it knows another project by them.

The index is a folder of empty wheels: of what prunella requires, and of a foreign `prunella` of a high version.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import setuptools
from packaging.metadata import Metadata
from test_wheels_built import ROOT, build_wheel, outside_the_container

from prunella.cli import main
from prunella.device_runtime.base import install_lines
from prunella.device_runtime.base.install_lines import fill_in, install_line, wheel_name
from prunella.targets.profile import list_targets, load_target

FOREIGN = "99.0"
posix = pytest.mark.skipif(os.name == "nt", reason="the lines are a POSIX shell's")


def _empty_wheel(folder: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> None:
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", metadata)
        wheel.writestr(
            f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(checkout of our sources, dist with their wheel, folder of empty wheels with a foreign prunella)."""
    folder = tmp_path_factory.mktemp("install")
    checkout, dist, index = folder / "my checkout" / "prunella", folder / "dist", folder / "index"
    shutil.copytree(ROOT, checkout, ignore=outside_the_container)
    shutil.copytree(checkout, folder / "source")
    wheel = build_wheel(folder / "source", dist)
    index.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(member), validate=False)
    for needed in metadata.requires_dist or ():
        if needed.name != "prunella":
            versions = [bound.version for bound in needed.specifier if bound.operator in (">=", "==")]
            _empty_wheel(index, needed.name, versions[0] if versions else "1.0")
    _empty_wheel(index, "prunella", FOREIGN)
    _empty_wheel(index, "prunella-models", FOREIGN)
    _empty_wheel(index, "prunella-bundle", FOREIGN)
    return checkout, dist, index


@pytest.fixture
def shell(made, tmp_path):
    """A function that runs a line in a fresh environment whose only index is that folder."""
    _, dist, index = made
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    binaries = tmp_path / "venv" / "bin"
    pip = binaries / "pip"
    pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip --python "{binaries}/python" "$@"\n')
    pip.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    environment |= {
        "PATH": f"{binaries}{os.pathsep}{environment['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_COMPILE": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: without
    }
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    tools = Path(setuptools.__file__).parents[1]  # what builds a checkout is the tests' own
    for path in (*tools.glob("setuptools*"), tools / "_distutils_hack"):
        (site / path.name).symlink_to(path)

    def run(line: str, *, cwd: Path = dist) -> str:
        done = subprocess.run(
            ["sh", "-c", line], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


def _installed(shell) -> dict[str, str]:
    rows = json.loads(shell("pip list --format json"))
    return {row["name"].lower().replace("_", "-"): row["version"] for row in rows}


@pytest.mark.slow
@posix
def test_the_lines_of_every_target_run_beside_the_wheel(shell, capsys):
    lines = set()
    for name in list_targets():
        assert main(["targets", "show", name]) == 0
        shown = capsys.readouterr().out
        assert f"beside {wheel_name()}" in shown
        ours = [line[2:] for line in shown.splitlines() if line.startswith("$ ") and wheel_name() in line]
        assert ours, name
        assert main(["targets", "show", name, "--json"]) == 0
        assert set(ours) <= set(json.loads(capsys.readouterr().out)["install"])
        lines |= set(ours)
    # One resolution for each set of extras: the rest of a line is the environment of a compiler.
    for argument in sorted({re.search(r"'prunella-[^']+'", line)[0] for line in lines}):
        shell(f"pip install {argument}")
    assert _installed(shell)["prunella"] != FOREIGN
    # What the installed one prints names the wheel, wherever it is run, and so do its extras of extras.
    printed = shell(
        "python -c \"from prunella.device_runtime.base.install_lines import *; print(install_line('build', 'serve'))\"",
        cwd=Path("/"),
    )
    assert f"/dist/{wheel_name()}[build,serve]" in printed
    shell(printed, cwd=Path("/"))
    found = _installed(shell)
    assert found["prunella"] != FOREIGN and {"jiwer", "onnxruntime", "starlette"} <= found.keys()


@pytest.mark.slow
@posix
def test_the_line_of_a_checkout_runs_and_names_no_index(shell, made):
    checkout, _, _ = made
    program = "from prunella.device_runtime.base.install_lines import *; print(install_line('build', 'serve')); print(fill_in('pip install {prunella[cpu]}'))"
    printed = shell(f'PYTHONPATH="{checkout.parent}" python -c "{program}"', cwd=Path("/"))
    for line in printed.splitlines():
        assert f"-e '{checkout}[" in line
        shell(line, cwd=Path("/"))
    found = _installed(shell)
    assert found["prunella"] != FOREIGN and {"jiwer", "onnxruntime", "starlette"} <= found.keys()
    assert "pyproject.toml" in shell(
        'python -c "import prunella, pathlib; print(*pathlib.Path(prunella.__file__).parent.iterdir())"',
        cwd=Path("/"),
    )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (None, "pip install 'prunella-{version}-py3-none-any.whl[gguf]'"),
        ({"url": "file:///gone/prunella-1-py3-none-any.whl", "archive_info": {}}, "pip install 'prunella-{version}-py3-none-any.whl[gguf]'"),
        ({"url": "{here}", "dir_info": {}}, "pip install '{path}[gguf]'"),
        ({"url": "https://host/prunella-1-py3-none-any.whl", "archive_info": {}}, "pip install 'prunella[gguf] @ https://host/prunella-1-py3-none-any.whl'"),
        ({"url": "https://host/prunella.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}, "pip install 'prunella[gguf] @ git+https://host/prunella.git@abc'"),
        (["nonsense"], "pip install 'prunella-{version}-py3-none-any.whl[gguf]'"),
    ],
)  # fmt: skip
@posix
def test_an_installed_one_names_what_it_was_installed_from(record, expected, tmp_path, monkeypatch):
    place = tmp_path / "my wheels"
    place.mkdir()
    info = tmp_path / "site" / "prunella-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: prunella\nVersion: 1\n")
    if record is not None:
        (info / "direct_url.json").write_text(json.dumps(record).replace("{here}", place.as_uri()))
    monkeypatch.setattr(install_lines, "PACKAGE_FOLDER", tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    assert install_line("gguf") == expected.replace("{path}", str(place)).replace(
        "{version}", wheel_name().split("-")[1]
    )


def test_on_another_machine_it_is_the_wheel_in_a_checkout_too():
    line = "A='b c' pip install {prunella[cpu,gguf]}  # ${HOME} {x}"
    assert (
        fill_in(line, elsewhere=True) == f"A='b c' pip install '{wheel_name()}[cpu,gguf]'  # ${{HOME}} {{x}}"
    )
    assert fill_in(line).startswith(f"A='b c' pip install -e {ROOT}".replace("-e ", "-e '"))


def test_no_line_anywhere_takes_our_names_from_an_index():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    wheels = set()
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if (
            path.suffix not in (".py", ".toml", ".md", ".sh", ".yaml", ".yml", ".txt", "")
            or not path.is_file()
        ):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path != Path(__file__) and path.name != "CHANGELOG.md":
            found = re.findall(
                r"pip3? (?:install|download|wheel)\b[^\n`]*[ '\"]prunella(?:-models|-bundle)?(?:\[[^\n]*)?['\"` ]",
                text,
            )
            assert not [line for line in found if "@" not in line], f"{name}: {found}"
        wheels |= (
            set(re.findall(r"prunella-[\d.]+-py3-none-any\.whl", text)) if path.suffix == ".md" else set()
        )
    assert wheels <= {wheel_name()}


def test_every_target_has_a_line_that_installs_prunella():
    for name in list_targets():
        assert any("{prunella[" in line for line in load_target(name).install), name
