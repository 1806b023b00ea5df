"""No verb replaces what prunella did not make, or what it reads: it says so at once and touches nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from prunella.cli import main
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.outputs import check_output
from prunella.device_runtime.bundle import AudioSpec, BundleManifest, DecoderSpec, PromptSpec
from prunella.quantize.bundle_writer import seal_bundle
from prunella.speech_llm import save_checkpoint

VERBS = {
    "analyze": ["MODEL", "--text", "text.txt"],
    "prune": ["MODEL", "--block", "1:2", "--no-bridge"],
    "heal": ["MODEL", "--speech", "SPEECH", "--minutes", "0.01"],
    "export": ["MODEL", "--target", "x86-cpu"],
    "quantize": ["BUNDLE", "--recipe", "int8"],
    "auto": ["BUNDLE", "--auto", "--speech", "SPEECH"],
    "build": ["MODEL", "--target", "x86-cpu", "--drop", "1", "--calibration", "SPEECH", "--evaluation", "SPEECH"],
    "synth": ["text.txt"],
}  # fmt: skip
READS = {verb: words[0] for verb, words in VERBS.items()}
REPLACING = ("prune", "heal", "export", "quantize", "auto")


@pytest.fixture
def here(tmp_path, monkeypatch, small_speech_llm):
    """A folder to work in: MODEL, BUNDLE, SPEECH (all relative names), a user's folder and a user's file."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint(small_speech_llm, "MODEL")
    Path("BUNDLE").mkdir()
    Path("BUNDLE/tokenizer.json").write_text("{}")
    Path("BUNDLE/onnx").mkdir()
    for graph in ("audio_encoder", "embed_tokens", "decoder_model_merged"):
        Path(f"BUNDLE/onnx/{graph}.onnx").touch()
    manifest = BundleManifest("tiny", "ultravox", "x86-cpu", ("onnx",), "fp32", AudioSpec(), PromptSpec.around_audio("", "", (), (), (2,)), DecoderSpec(2, 4, 1, 4, 8))  # fmt: skip
    seal_bundle(manifest, Path("BUNDLE"))
    Path("SPEECH").write_text("{}")
    Path("text.txt").write_text("one line\nanother line\n")
    Path("home/thesis").mkdir(parents=True)
    Path("home/thesis/chapter1.txt").write_text("years of work")
    return tmp_path


def _all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _refused(capsys, verb, out, word):
    before = _all(Path.cwd())
    name = "quantize" if verb == "auto" else verb
    assert main([name, *VERBS[verb], "-o", out]) == 2
    error = capsys.readouterr().err
    assert word in error and error.startswith("prunella: ") and error.count("\n") == 1
    assert _all(Path.cwd()) == before


@pytest.mark.parametrize("verb", REPLACING)
def test_a_users_folder_is_not_replaced(here, capsys, verb):
    _refused(capsys, verb, "home", "did not make")
    Path("link").symlink_to("home")
    _refused(capsys, verb, "link", "did not make")
    _refused(capsys, verb, ".", "replace the input")


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_is_not_replaced_and_no_name_is_no_output(here, capsys, verb):
    _refused(capsys, verb, "home/thesis/chapter1.txt", "is a file")
    _refused(capsys, verb, "", "no name")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("spelled", ["{0}", "./{0}/", "home/../{0}", "{here}/{0}", "link"])
def test_an_input_is_not_replaced_however_it_is_spelled(here, capsys, verb, spelled):
    Path("link").symlink_to(READS[verb])
    out = spelled.format(READS[verb], here=here)
    _refused(capsys, verb, out, "the input")


@pytest.mark.parametrize("verb", ["prune", "export", "build"])
def test_a_disk_that_is_too_small_is_said_before_the_work(here, capsys, monkeypatch, noise_manifest, verb):
    speech = [str(noise_manifest) if word == "SPEECH" else word for word in VERBS[verb]]
    monkeypatch.setitem(VERBS, verb, speech)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    _refused(capsys, verb, "new", "the output will take at least")
    assert not Path("new").exists()


@pytest.mark.parametrize("verb", REPLACING)
def test_nothing_is_written_into_an_input(here, capsys, verb):
    Path("link").symlink_to(READS[verb])
    for out in (f"{READS[verb]}/sub", f"./{READS[verb]}/a/b", "link/sub"):
        _refused(capsys, verb, out, "inside the input")


@pytest.mark.parametrize("verb", VERBS)
def test_what_cannot_be_written_is_said_before_the_work(here, capsys, verb):
    Path("loop").symlink_to("loop")
    _refused(capsys, verb, "text.txt/below", "text.txt is a file")
    _refused(capsys, verb, "loop", "cannot be written")
    _refused(capsys, verb, 300 * "n", "cannot be written")
    if Path("/proc/self").exists():
        _refused(capsys, verb, "/proc/prunella", "cannot be written")
    if verb not in ("analyze", "synth"):
        _refused(capsys, verb, "o\udce9", "UTF-8")


@pytest.mark.parametrize("made", ["redundancy.png", "redundancy.json"])
def test_analyze_replaces_no_map_or_picture_of_another(here, capsys, made):
    Path(made).write_text("[]")
    _refused(capsys, "analyze", ".", "that prunella wrote")


@pytest.mark.parametrize("name, text", [("notes.txt", "mine"), ("plan.json", "[]"), ("plan.json", "{"), ("plan.json", "{}")])  # fmt: skip
def test_build_says_before_loading_that_a_folder_holds_something_else(here, capsys, monkeypatch, name, text):
    Path("new").mkdir()
    Path("new", name).write_text(text)
    monkeypatch.setattr("prunella.building.build_steps.load", None)
    monkeypatch.setattr("prunella.building.build.read_facts", None)
    _refused(capsys, "build", "new", "holds no build")


def test_records_and_taps_replace_no_file_of_another(here, capsys):
    """Asked before the system is opened, which is not there."""
    Path("SPEECH").write_text('{"audio_filepath": "text.txt", "text": "one", "duration": 1}')
    before = _all(here)
    for words in (["eval", "nothing", "--speech", "SPEECH", "--records"], ["listen", "nothing", "--tap"]):
        for name, reason in {
            "text.txt": "that prunella wrote",
            "MODEL": "is a folder",
            "": "no name",
            "text.txt/x": "is a file",
        }.items():
            assert main([*words, name]) == 2
            assert reason in capsys.readouterr().err
    assert _all(here) == before


def test_what_prune_made_is_replaced_and_a_link_is_followed(here, capsys):
    Path("disk").mkdir()
    Path("out").symlink_to("disk")
    for block, layers in (("1:2", 5), ("1:3", 4)):
        assert main(["prune", "MODEL", "--block", block, "--no-bridge", "-o", "out"]) == 0
        assert f"→ {layers} layers" in capsys.readouterr().out
        assert Path("out").is_symlink() and Path("disk/pruning.json").is_file()


def test_synth_adds_to_no_manifest_of_another(here, capsys):
    Path("clips").mkdir()
    Path("manifest.jsonl").write_text('{"audio_filepath": "mine.wav"}\n')
    _refused(capsys, "synth", ".", "did not make")


def test_notes_among_a_bundles_graphs_are_not_replaced(here):
    check_output("BUNDLE")
    for name in ("onnx/notes.txt", "onnx/mine.onnx", "onnx/mine/decoder.onnx", "gguf/thesis.docx"):
        file = Path("BUNDLE") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        with pytest.raises(UsageError, match=name):
            check_output("BUNDLE")
        file.unlink()
