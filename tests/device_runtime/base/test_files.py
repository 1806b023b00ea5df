"""Outputs: nothing of the user's is replaced, and whatever the moment, the old one is there or the new one."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from prunella.device_runtime.base import files
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.files import (
    beside,
    bring_back,
    hold,
    only_writer,
    scratch_directory,
    whole_directory,
    whole_file,
)
from prunella.device_runtime.base.outputs import check_output

OURS = {"pruning.json": "{}", "config.json": "{}", "decoder/config.json": "{}"}


def _write(folder: Path, text: str, names=OURS) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def _read(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def _replace(folder: Path, text: str) -> None:
    with whole_directory(folder) as partial:
        _write(partial, text)


def _clean(parent: Path) -> bool:
    return not [path for path in parent.rglob("*") if path.name.startswith(".")]


@pytest.fixture(params=["exchange", "two renames"])
def swapping(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    return request.param


def test_what_prunella_made_is_replaced_whole(tmp_path, swapping):
    out = tmp_path / "out[1]*"
    _replace(out, "old")
    _write(out, "old", ["decoder/vocab.json"])
    _replace(out, "new")
    assert _read(out) == dict.fromkeys(OURS, "new")
    assert _clean(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["thesis/chapter1.txt"],
        [*OURS, "notes.txt"],
        [*OURS, "decoder/thesis.docx"],
        [*OURS, "thesis.safetensors"],
        [*OURS, "llama/config.json"],
        [*OURS, "decoder/decoder/config.json"],
        ["bundle.json"],
        ["config.json", "model.safetensors"],
        [".git/config"],
    ],
)
def test_what_prunella_did_not_make_is_left_alone(tmp_path, names):
    out = tmp_path / "home"
    _write(out, "{}", names)
    before = _read(out)
    worked = False
    with pytest.raises(UsageError, match="did not make"), whole_directory(out):
        worked = True
    assert (not worked and _read(out) == before and _clean(tmp_path)) or ".git/config" in before
    with pytest.raises(UsageError, match="did not make"):
        check_output(out)


def test_what_comes_up_meanwhile_is_left_alone_too(tmp_path, swapping):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"thesis\.txt"), whole_directory(out) as partial:
        _write(partial, "new")
        _write(out, "mine", ["thesis.txt"])
    assert _read(out) == {"thesis.txt": "mine"}
    assert _clean(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "text.txt").write_text("mine")
    for name in ("text.txt", "text.txt/below"):
        with pytest.raises(UsageError, match="is a file"):
            check_output(tmp_path / name)
    assert (tmp_path / "text.txt").read_text() == "mine"


@pytest.mark.parametrize("empty", ["", " "])
def test_no_name_is_no_output(empty):
    with pytest.raises(UsageError, match="no name"):
        check_output(empty)


@pytest.mark.parametrize("spelled", ["M", "./M/", "x/../M", "{absolute}", "link", "M/../link/."])
def test_the_input_is_known_however_it_is_spelled(tmp_path, monkeypatch, spelled):
    monkeypatch.chdir(tmp_path)
    _write(Path("M"), "model")
    Path("x").mkdir()
    Path("link").symlink_to("M")
    with pytest.raises(UsageError, match="the input"):
        check_output(spelled.format(absolute=tmp_path / "M"), inputs=["M"])
    with pytest.raises(UsageError, match="the input"):
        check_output("M", inputs=[spelled.format(absolute=tmp_path / "M")])
    with pytest.raises(UsageError, match="replace the input"):
        check_output(".", inputs=[Path("M/config.json")])
    check_output("N", inputs=["M", None, "org/name", Path("hf:name")])


def test_a_link_is_followed(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("disk/big")
    for text in ("old", "new"):
        _replace(link, text)
        assert link.is_symlink() and _read(tmp_path / "disk" / "big") == dict.fromkeys(OURS, text)
    (tmp_path / "file").symlink_to("disk/file")
    with whole_file(tmp_path / "file") as partial:
        partial.write_text("one")
    assert (tmp_path / "file").is_symlink() and (tmp_path / "disk" / "file").read_text() == "one"


def test_the_folder_one_stands_in_stays_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lost+found").mkdir()
    before = tmp_path.stat().st_ino
    for text in ("old", "new"):
        _replace(Path(), text)
        assert _read(tmp_path) == dict.fromkeys(OURS, text)
        assert tmp_path.stat().st_ino == before and _clean(tmp_path)
    assert (tmp_path / "lost+found").is_dir()


def test_a_folder_that_turns_out_to_be_busy_is_filled(tmp_path, monkeypatch):
    out = tmp_path / "mount"
    out.mkdir()
    rename = Path.rename

    def busy(self, target):
        if Path(target) == out or self == out:
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    monkeypatch.setattr(files, "exchange", lambda one, other: False)
    for text in ("old", "new"):
        _replace(out, text)
        assert _read(out) == dict.fromkeys(OURS, text)
        assert _clean(tmp_path)


@pytest.mark.parametrize("length", [201, 255])
def test_names_as_long_as_the_system_takes_them(tmp_path, swapping, length):
    out = tmp_path / ("n" * length)
    for text in ("old", "new"):
        _replace(out, text)
        assert _read(out) == dict.fromkeys(OURS, text) and _clean(tmp_path)
    with whole_file(out.with_name("f" * length)) as partial:
        partial.touch()


def test_companions_lie_inside_what_can_only_be_filled(tmp_path, monkeypatch):
    assert beside(tmp_path / "out", "search") == tmp_path / ".out.search-"
    monkeypatch.chdir(tmp_path)
    with scratch_directory(".", "float") as work:
        assert work.parent == tmp_path
        check_output(".", inputs=[work])
    assert _clean(tmp_path)


def test_one_writer_at_a_time_adds_to_a_folder(tmp_path):
    other = (
        "import sys; from pathlib import Path; from prunella.device_runtime.base.files import only_writer\n"
    )
    other += "with only_writer(Path(sys.argv[1])): print('alone')"
    call = [sys.executable, "-c", other, str(tmp_path)]
    with only_writer(tmp_path):
        refused = subprocess.run(call, capture_output=True, text=True)
        assert "another process is writing" in refused.stderr
    assert subprocess.run(call, capture_output=True, text=True).stdout == "alone\n" and _clean(tmp_path)


def test_an_error_leaves_the_old_one(tmp_path):
    out = tmp_path / "out"
    _replace(out, "old")
    with pytest.raises(ZeroDivisionError), whole_directory(out) as partial:
        _write(partial, "new")
        raise ZeroDivisionError
    assert _read(out) == dict.fromkeys(OURS, "old") and _clean(tmp_path)


def test_a_folder_inside_a_folder_that_is_being_written(tmp_path):
    with whole_directory(tmp_path / "out") as partial:
        _replace(partial, "inner")
        (partial / "more.json").touch()
    assert _read(tmp_path / "out") == {**dict.fromkeys(OURS, "inner"), "more.json": ""}
    assert _clean(tmp_path)


def test_two_writers_leave_one_of_them_whole(tmp_path, swapping):
    out = tmp_path / "out"
    ready = threading.Barrier(4)
    failed = []

    def work(text):
        try:
            for _ in range(15):
                with whole_directory(out) as partial:
                    _write(partial, text)
                    ready.wait(30)
        except BaseException as error:
            failed.append(error)
            ready.abort()

    writers = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert len(set(_read(out).values())) == 1 and _read(out).keys() == OURS.keys()
    assert _clean(tmp_path)


def test_only_the_folders_of_the_dead_are_removed(tmp_path):
    out = tmp_path / "out"
    dead = tmp_path / ".out.partial-dead"
    _write(dead, "dead")
    with whole_directory(out) as living:
        _write(living, "living")
        _replace(out, "second")
        assert not dead.exists() and living.exists()
    assert _read(out) == dict.fromkeys(OURS, "living")
    with scratch_directory(out, "float") as scratch, hold(scratch) as held:
        assert not held


KILLED = """
import os, sys
from pathlib import Path
from prunella.device_runtime.base import files
out, moment, swaps, inside = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "exchange", sys.argv[4] == "inside"
if not swaps:
    files.exchange = lambda one, other: False
if inside:
    os.chdir(out)
events = 0
def hook(event, arguments):
    global events
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "ctypes.call_function"):
        events += 1
        if events == moment:
            os._exit(9)
with_partial = files.whole_directory(out)
sys.addaudithook(hook)
with with_partial as partial:
    for name in ("pruning.json", "config.json"):
        (partial / name).write_text("new")
"""


@pytest.mark.parametrize("mode", ["exchange", "two renames", "inside"])
def test_killed_at_any_moment_the_old_one_is_there_or_the_new_one(tmp_path, mode):
    """One interpreter forks for every moment: the kill comes before the n-th call that the system sees."""
    program = textwrap.dedent(f"""
        import os, sys
        sys.argv = ["", "", "", {"exchange" if mode == "exchange" else "renames"!r}, {mode!r}]
        import prunella.device_runtime.base.files
        code = compile({KILLED!r}, "killed", "exec")
        for moment in range(1, 200):
            base = {str(tmp_path)!r} + f"/{{moment}}"
            os.makedirs(base + "/out")
            for name in ("pruning.json", "config.json"):
                open(f"{{base}}/out/{{name}}", "w").write("old")
            child = os.fork()
            if not child:
                sys.argv[1:3] = [base + "/out", str(moment)]
                try:
                    exec(code, {{}})
                except BaseException as error:
                    print(repr(error), file=sys.stderr)
                    os._exit(1)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status in (0, 9), status
            if status == 0:
                break
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    moments = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    assert len(moments) > 8
    kinds = set()
    for base in moments:
        bring_back(base / "out")
        found = {name: text for name, text in _read(base / "out").items() if not name.startswith(".")}
        assert found in ({"pruning.json": "old", "config.json": "old"}, {"pruning.json": "new", "config.json": "new"})  # fmt: skip
        kinds |= set(found.values())
        _replace(base / "out", "next")
        assert _read(base / "out") == dict.fromkeys(OURS, "next") and _clean(base)
    assert kinds == {"old", "new"}


def test_as_on_windows(tmp_path, monkeypatch):
    """There a handle that cannot write cannot be flushed, and what is open cannot be renamed."""
    fsync, rename, replace = os.fsync, Path.rename, Path.replace
    flushed = []

    def windows_fsync(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise PermissionError(9, "Bad file descriptor")
        flushed.append(handle)
        fsync(handle)

    def opened(folder):
        names = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_file()]
        return [name for name in names if name.is_relative_to(folder)]

    def windows_rename(self, target, then=rename):
        if opened(self) or opened(target):
            raise PermissionError(13, "Access is denied")
        return then(self, target)

    monkeypatch.setattr(os, "fsync", windows_fsync)
    monkeypatch.setattr(files, "exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", windows_rename)
    monkeypatch.setattr(Path, "replace", lambda self, target: windows_rename(self, target, replace))
    out = tmp_path / "out"
    for text in ("old", "new"):
        _replace(out, text)
        assert _read(out) == dict.fromkeys(OURS, text)
    assert len(flushed) >= 2 * len(OURS)
    with (
        (out / "config.json").open(),
        pytest.raises(Exception, match="close what holds it open") as caught,
    ):
        _replace(out, "third")
    assert caught.value.exit_code == 1
    assert _read(out) == dict.fromkeys(OURS, "new") and _clean(tmp_path)


def test_permissions_are_those_of_any_new_file(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    with whole_file(tmp_path / "file") as partial:
        partial.touch()
    with whole_file(tmp_path / "secret", mode=0o600) as partial:
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600
    assert (tmp_path / "file").stat().st_mode == plain.stat().st_mode
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
