"""What runs where the project is hosted: workflows, templates and hooks name only what is here."""

import re

import pytest
import tomllib
from documentation import ROOT

yaml = pytest.importorskip("yaml")

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def _commands(path) -> list[str]:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def test_linux_macos_windows_and_arm64_are_tried():
    text = "\n".join(path.read_text() for path in WORKFLOWS)
    for system in ("ubuntu-24.04", "ubuntu-24.04-arm", "macos-15", "windows-2025"):
        assert system in text


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_what_is_there(path):
    body = yaml.safe_load(path.read_text())
    assert body["permissions"] == {"contents": "read"}
    makefile = (ROOT / "Makefile").read_text()
    for command in _commands(path):
        for target in re.findall(r"\bmake (\w+)", command):
            assert re.search(rf"^{target}:", makefile, re.M), command
        for extras in re.findall(r"(?:\.|\))\"?\[([\w,]+)\]", command):
            assert set(extras.split(",")) <= set(EXTRAS), command
        for script in re.findall(r"(?<!\w)\.ci/\w+", command):
            assert (ROOT / script).is_file(), command


def test_templates_are_forms_with_fields():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        body = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert body["name"] and body["description"] and all(field["type"] for field in body["body"])


def test_hooks_call_programs_of_the_development_environment():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    development = " ".join(EXTRAS["dev"])
    for hook in repository["hooks"]:
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")
        name = program.removeprefix(".venv/bin/")
        assert name == "python" or {"lint-imports": "import-linter"}.get(name, name) in development
