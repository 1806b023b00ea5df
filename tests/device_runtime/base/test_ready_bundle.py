"""Which words are a bundle and which are audio, and what is said where no bundle is."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunella import cli
from prunella.device_runtime import options
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.ready_bundle import FOLDER, PACKAGE, bundle_and_audio, find_ready_bundle
from prunella.needs import needed_modules


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with a clip, a folder of bundles and an empty folder, to work in."""
    (tmp_path / "out" / "pruned-int4").mkdir(parents=True)
    (tmp_path / "out" / "pruned-int4" / "bundle.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip.wav").write_bytes(b"")
    (tmp_path / "memo").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "site" / PACKAGE / FOLDER
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text('{"engines": ["onnx"]}')
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


@pytest.mark.parametrize(
    "words", [["clip.wav"], ["-"], ["memo", "clip.wav"], ["gone.mp3", "clip.wav"], ["clip.wva"]]
)
def test_audio_alone_is_for_the_installed_bundle(desk, words):
    assert bundle_and_audio(words) == (None, words)


@pytest.mark.parametrize(
    "bundle",
    [
        "out/pruned-int4",
        "out",
        "empty",
        "out/pruned-int3",
        "elsewhere/int4",
        "otu/pruned-int4",
        "v1.5",
        "out/pruned_int4.bak",
    ],
)
def test_a_folder_is_a_bundle_and_so_is_what_was_meant_to_be_one(desk, bundle):
    assert bundle_and_audio([bundle, "clip.wav"]) == (bundle, ["clip.wav"])


def test_a_mistyped_bundle_is_suggested(desk, installed, capsys):
    assert cli.main(["transcribe", "out/pruned-int3", "clip.wav"]) == 1
    said = capsys.readouterr().err
    assert (
        "out/pruned-int3 does not exist (did you mean 'out/pruned-int4'?)" in said and "installed" not in said
    )


def test_a_bundle_without_audio_and_one_behind_audio_are_refused(desk):
    with pytest.raises(UsageError, match="only the bundle out/pruned-int4 is named"):
        bundle_and_audio(["out/pruned-int4"])
    with pytest.raises(UsageError, match=r"stands behind clip\.wav: name it first"):
        bundle_and_audio(["clip.wav", "out/pruned-int4"])


@pytest.mark.parametrize("words", [["transcribe", "clip.wav"], ["listen"], ["serve", "--port", "0"]])
def test_without_any_bundle_it_is_said_how_to_get_one(desk, words, capsys):
    assert find_ready_bundle() is None
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "none is installed" in said and "make wheels" in said and said.count("\n") == 1


@pytest.mark.parametrize("words", [["transcribe", "clip.wav"], ["listen"], ["serve", "--port", "0"]])
def test_the_installed_one_is_opened_and_said(desk, installed, words, capsys, monkeypatch):
    opened = []

    def refuse(path, **_):
        opened.append(path)
        raise UsageError("enough")

    monkeypatch.setattr(options, "open_transcriber", refuse)
    assert find_ready_bundle() == installed
    assert cli.main(words) == 2
    assert opened == [str(installed)]
    assert f"prunella: no bundle is named: using the installed one, {installed}\n" in capsys.readouterr().err
    assert "onnxruntime" in needed_modules(words[0], words[1:])


def test_a_model_is_no_bundle(desk, capsys):
    assert not {"torch", "faster_whisper"} & set(
        needed_modules("transcribe", ["reference-pruned", "clip.wav"])
    )
    assert cli.main(["transcribe", "reference-pruned", "clip.wav"]) == 1
    said = capsys.readouterr().err
    assert "reference-pruned is a model, not a bundle: `prunella export reference-pruned --target" in said


def test_words_go_on_behind_options(desk, monkeypatch, capsys):
    heard = []
    monkeypatch.setattr(options, "open_transcriber", lambda path, **_: heard.append(path) or _quit())
    for words in (
        ["B", "--json", "a.wav"],
        ["--json", "B", "a.wav", "--beams", "1"],
        ["B", "--json", "--", "-a.wav"],
    ):
        assert cli.main(["transcribe", *words]) == 2
    assert heard == ["B"] * 3
    with pytest.raises(SystemExit):
        cli.main(["transcribe", "B", "--jsno", "a.wav"])
    assert "did you mean '--json'" in capsys.readouterr().err


def _quit():
    raise UsageError("enough")
