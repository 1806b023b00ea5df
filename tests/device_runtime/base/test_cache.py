"""Where the cache is, on every system."""

import pytest

from prunella.device_runtime.base import cache
from prunella.device_runtime.base.errors import UsageError


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("PRUNELLA_CACHE", "XDG_CACHE_HOME", "INVOCATION_ID", "CACHE_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_systems_own_place_is_taken(home, monkeypatch):
    monkeypatch.setattr(
        "platformdirs.user_cache_path", lambda name, appauthor: home / "Library" / "Caches" / name
    )
    assert cache.cache_folder() == home / "Library" / "Caches" / "prunella"


def test_a_cache_that_an_earlier_prunella_filled_stays_in_use(home, monkeypatch):
    monkeypatch.setattr(
        "platformdirs.user_cache_path", lambda name, appauthor: home / "Library" / "Caches" / name
    )
    (home / ".cache" / "prunella").mkdir(parents=True)
    assert cache.cache_folder() == home / ".cache" / "prunella"


def test_linux_keeps_it_where_it_was(home):
    assert cache.cache_folder() == home / ".cache" / "prunella"


def test_an_unknown_home_is_said(home, monkeypatch):
    monkeypatch.setenv("PRUNELLA_CACHE", "~nobody-here/cache")
    with pytest.raises(UsageError, match="PRUNELLA_CACHE"):
        cache.cache_folder()


def test_a_service_of_systemd_has_its_own(home, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path / 'lib'}:{tmp_path / 'other'}")
    assert cache.cache_folder() == home / "xdg" / "prunella"  # anybody may have set it
    monkeypatch.setenv("INVOCATION_ID", "0123456789abcdef0123456789abcdef")
    assert cache.cache_folder() == tmp_path / "lib" / "cache"
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path / "chosen"))
    assert cache.cache_folder() == tmp_path / "chosen"
