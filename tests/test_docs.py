"""The README and the pages of `docs/`: links hold, commands are spelled as they are taken, and what can be run is run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import (
    GENERATED,
    ROOT,
    anchors,
    blocks,
    command_lines,
    links,
    named_commands,
    pages,
    shell_commands,
)

from prunella.cli import VERBS, main, verb_parser

PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in pages()}
LANGUAGES = {"sh", "python", "powershell", "text", "json", "toml", "nginx"}


def _to_run(page: str) -> list:
    return [block for block in blocks(PAGES[page]) if block.language in ("sh", "python") and not block.reason]


RUN = [page for page in PAGES if page != "README.md" and _to_run(page)]  # the README's: test_readme.py


EVERYWHERE = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "docs", "embedded_models", "examples", "research", ".github")
    for path in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
    if path.name not in GENERATED
)


@pytest.mark.parametrize("page", EVERYWHERE)
def test_links_hold(page):
    folder = (ROOT / page).parent
    for link in links((ROOT / page).read_text(encoding="utf-8")):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (folder / name) if name else ROOT / page
        if target.name in GENERATED and target.parent == ROOT / "docs":
            continue
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


def test_every_block_has_a_language_that_is_known_here():
    for page, text in PAGES.items():
        for block in blocks(text):
            assert block.language in LANGUAGES, f"{page}: {block.text[:60]!r}"


def test_no_command_stands_in_an_indented_block():
    """Those would escape the run: blocks of commands are fenced, and say why where they are not run."""
    for page, text in PAGES.items():
        for block in re.findall(r"(?:^    \S.*\n)+", text, re.M):
            assert not re.match(r"    (?:prunella|python|make|pip) ", block), f"{page}: {block}"


@pytest.mark.slow
def test_commands_in_blocks_are_taken():
    """Those that are run too: the others, at least, name no option that is not there."""
    pytest.importorskip("torch")
    for page, text in PAGES.items():
        for program, *words in shell_commands(text):
            if program != "prunella":
                continue
            verb, *rest = words
            try:
                verb_parser(verb).parse_args(rest)
            except SystemExit:
                pytest.fail(f"{page}: prunella {' '.join(words)}")


@pytest.mark.slow
def test_options_that_the_text_names_are_there():
    pytest.importorskip("torch")
    known = {}
    for page, text in PAGES.items():
        for program, *words in named_commands(text):
            if (
                program != "prunella"
                or not words
                or not re.fullmatch("[a-z]+", words[0])
                or words[0] == "help"
            ):
                continue
            assert words[0] in VERBS, f"{page}: prunella {' '.join(words)}"
            known.setdefault(words[0], verb_parser(words[0]).format_help())
            for word in words[1:]:
                if word.startswith("--") and words[0] != "targets":
                    assert re.search(rf"{re.escape(word)}\b", known[words[0]]), f"{page}: {' '.join(words)}"


def test_scripts_modules_and_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text()
    for page, text in PAGES.items():
        for program, *words in [*shell_commands(text), *named_commands(text)]:
            if program == "make" and words:
                assert re.search(rf"^{words[0]}:", makefile, re.M), f"{page}: make {words[0]}"
            elif program == "python" and words[:1] == ["-m"] and words[1].startswith("prunella."):
                assert (ROOT / Path(*words[1].split(".")[1:])).with_suffix(".py").is_file(), (
                    f"{page}: {words[1]}"
                )
            elif program == "python" and words and words[0].endswith(".py"):
                assert (ROOT / words[0]).is_file(), f"{page}: {words[0]}"


def test_no_page_names_a_folder_outside_of_the_project():
    for page in EVERYWHERE:
        assert "../shared" not in (ROOT / page).read_text(encoding="utf-8"), page


def test_the_pictures_are_those_of_the_figures():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "pictures.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def furnished(small_speech_llm, tmp_path_factory) -> Path:
    """A folder that looks like the repository behind `make demo`, with a tiny model in place of the demo's."""
    from prunella.export.export import export
    from prunella.speech_llm import save_checkpoint

    folder = tmp_path_factory.mktemp("desk")
    save_checkpoint(small_speech_llm, folder / "tiny")
    (folder / "examples").symlink_to(ROOT / "examples")
    export(small_speech_llm, "x86-cpu", folder / "out" / "demo" / "pruned-int4", recipe="int4")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_what_a_page_shows_runs(page, furnished, noise_manifest, monkeypatch, capfd):
    monkeypatch.chdir(furnished)
    for block in _to_run(page):
        if block.language == "python":
            exec(compile(block.text, page, "exec"), {})
            continue
        for line in command_lines(block.text):
            program, *words = shlex.split(line, comments=True)
            if program == "make":  # what it runs is run by itself
                continue
            assert program == "prunella", f"{page}: {line}: say why it is not run (<!-- not run: why -->)"
            words = ["tiny" if word == "reference" else word for word in words]
            words = [str(noise_manifest) if word.endswith("calibration.jsonl") else word for word in words]
            code = main(words)
            assert code == 0, f"{page}: {line}: {capfd.readouterr().err}"


@pytest.mark.slow
def test_the_site_is_built_strictly(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    link = ROOT / "build" / "typecheck" / "prunella"
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("../..")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "cli.html").is_file()
    for page in (tmp_path / "site").rglob("*.html"):  # it works without a network
        loaded = re.findall(
            r"<(?:script|img|link)[^>]*(?:src|href)=\"?(https?://[^\" >]+)", page.read_text(encoding="utf-8")
        )
        assert not loaded, f"{page.name}: {loaded}"
