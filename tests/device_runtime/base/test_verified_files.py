"""Files are hashed once and then believed, as long as nobody touched them and nobody else can write what is remembered."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunella.device_runtime.base import private_cache, verified_files
from prunella.device_runtime.base.verified_files import first_that_differs

posix = pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
_private_folder = private_cache.private_folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(private_cache, "private_folder", _private_folder)
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified_files, "_SETTLED_NS", -(10**12))  # files of this moment are old enough
    return tmp_path / "cache" / private_cache.FOLDER


@pytest.fixture
def files(tmp_path) -> tuple[Path, dict[str, str]]:
    folder = tmp_path / "bundle"
    (folder / "onnx").mkdir(parents=True)
    expected = {}
    for name, size in (("tokenizer.json", 10), ("onnx/a.onnx", 3_000_000), ("onnx/b.onnx", 20)):
        (folder / name).write_bytes(os.urandom(size))
        expected[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return folder, expected


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that are hashed, as they are."""
    names: list[str] = []
    real = verified_files.sha256

    def counting(path):
        names.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(verified_files, "sha256", counting)
    return names


def _differs(files, *, remembered=True):
    folder, expected = files
    return first_that_differs(folder, expected, remembered=remembered)


def _record(cache: Path) -> Path:
    (record,) = cache.iterdir()
    return record


def test_what_was_hashed_is_not_hashed_again(cache, files, hashed):
    assert _differs(files) is None and sorted(hashed) == ["a.onnx", "b.onnx", "tokenizer.json"]
    assert _differs(files) is None and len(hashed) == 3
    assert _differs(files, remembered=False) is None and len(hashed) == 6
    if os.name == "posix":
        assert _record(cache).stat().st_mode & 0o777 == 0o600 and cache.stat().st_mode & 0o777 == 0o700


def test_without_the_memory_everything_is_hashed_and_nothing_is_kept(cache, files, hashed):
    for _ in range(2):
        assert _differs(files, remembered=False) is None
    assert len(hashed) == 6 and not cache.exists()


def test_another_content_is_found_whatever_is_remembered(cache, files, hashed):
    folder, expected = files
    assert _differs(files) is None
    file = folder / "onnx" / "a.onnx"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[1_000_000] ^= 1
    file.write_bytes(content)
    os.utime(
        file, ns=(before.st_atime_ns, before.st_mtime_ns)
    )  # the same size and time; that of change is another
    assert _differs(files) == "onnx/a.onnx"
    assert hashed[3:] == ["a.onnx"]
    # A file in its place, with what one can set of the first.
    other = folder / "other"
    other.write_bytes(content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert _differs(files) == "onnx/a.onnx"
    # And the other way round: the file is as it was, another sha256 is expected.
    file.write_bytes(bytes(3_000_000))
    expected["onnx/a.onnx"] = hashlib.sha256(bytes(3_000_000)).hexdigest()
    assert _differs(files) is None
    expected["onnx/a.onnx"] = "0" * 64
    assert _differs(files) == "onnx/a.onnx"


def test_a_file_that_is_being_written_is_not_remembered(cache, files, hashed, monkeypatch):
    monkeypatch.setattr(verified_files, "_SETTLED_NS", 3_000_000_000)
    long_ago = time.time() - 100
    for name in ("tokenizer.json", "onnx/b.onnx"):
        os.utime(files[0] / name, (long_ago, long_ago))  # the time of change stays that of now
    for _ in range(2):
        assert _differs(files) is None
    assert len(hashed) == 6


def test_a_moved_bundle_is_hashed(cache, files, hashed, tmp_path):
    folder, expected = files
    assert _differs(files) is None
    folder.rename(tmp_path / "moved")
    assert first_that_differs(tmp_path / "moved", expected, remembered=True) is None and len(hashed) == 6


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: '{"prunella": 1}',
        lambda text: text.replace('"prunella"', '"version"'),
        lambda text: json.dumps({**json.loads(text), "prunella": "0.0.0"}),
        lambda text: json.dumps({**json.loads(text), "files": 3}),
        lambda text: text + " " * (1 << 20),
    ],
)
def test_a_record_that_is_damaged_or_of_another_version_is_none(cache, files, hashed, spoil):
    assert _differs(files) is None
    record = _record(cache)
    record.write_text(spoil(record.read_text()))
    assert _differs(files) is None and len(hashed) == 6
    assert _differs(files) is None and len(hashed) == 6  # it was written anew


@posix
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_record_that_others_can_write_is_none(cache, files, hashed, mode):
    assert _differs(files) is None
    _record(cache).chmod(mode)
    assert _differs(files) is None and len(hashed) == 6


@posix
@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
@pytest.mark.parametrize("above", [False, True])
def test_a_folder_that_others_can_write_is_not_used(cache, files, hashed, mode, above):
    assert _differs(files) is None
    (cache.parent if above else cache).chmod(mode)
    assert _differs(files) is None and len(hashed) == 6
    (cache.parent if above else cache).chmod(0o700)
    assert _differs(files) is None and len(hashed) == 6


@posix
def test_a_folder_or_a_record_of_another_user_is_not_used(cache, files, hashed, monkeypatch):
    assert _differs(files) is None
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert _differs(files) is None and len(hashed) == 6


@posix
def test_links_are_not_followed(cache, files, hashed, tmp_path):
    assert _differs(files) is None
    record = _record(cache)
    record.rename(tmp_path / "elsewhere")
    record.symlink_to(tmp_path / "elsewhere")
    assert _differs(files) is None and len(hashed) == 6
    cache.rename(tmp_path / "moved")
    cache.symlink_to(tmp_path / "moved")
    assert _differs(files) is None and len(hashed) == 9


def test_without_a_cache_everything_is_hashed_each_time(cache, files, hashed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path / "file" / "below"))
    for _ in range(2):
        assert _differs(files) is None
    monkeypatch.setenv("PRUNELLA_CACHE", "~nobody-here/cache")
    assert _differs(files) is None and len(hashed) == 9


def test_a_full_disk_ends_no_start(cache, files, hashed, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prunella.device_runtime.base.files.whole_file", full)
    for _ in range(2):
        assert _differs(files) is None
    assert len(hashed) == 6


def test_a_file_that_cannot_be_read_is_said(cache, files, monkeypatch):
    def unreadable(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(verified_files, "sha256", unreadable)
    with pytest.raises(PermissionError):
        _differs(files)


def test_the_oldest_records_go(cache, files, monkeypatch):
    monkeypatch.setattr(private_cache, "_MOST_FILES", 3)
    for age in range(5):
        private_cache.write_private(f"{age}", b"x")
        os.utime(cache / f"{age}", (age, age))
    assert sorted(file.name for file in cache.iterdir()) == ["2", "3", "4"]


def test_processes_that_start_at_once_do_not_disturb_each_other(files, tmp_path):
    folder, expected = files
    code = (
        "import json, sys; from prunella.device_runtime.base import verified_files as v; v._SETTLED_NS = -10**12\n"
        "from pathlib import Path; expected = json.loads(sys.argv[2])\n"
        "assert all(v.first_that_differs(Path(sys.argv[1]), expected, remembered=True) is None for _ in range(20))"
    )
    environment = {**os.environ, "PRUNELLA_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(folder), json.dumps(expected)]
    running = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    (record,) = (tmp_path / "cache" / private_cache.FOLDER).iterdir()
    assert set(json.loads(record.read_text())["files"]) == set(expected)
