"""Where things are kept between runs, and files that are written whole or not at all."""
import os
import stat
import sys
from array import array
from pathlib import Path

import pytest

from microgpt.corpus import cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("MICROGPT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("platform, environment, expected", [
    ("linux", {}, ".cache/microgpt"),
    ("linux", {"XDG_CACHE_HOME": "{home}/xdg"}, "xdg/microgpt"),
    ("linux", {"XDG_CACHE_HOME": "relative"}, ".cache/microgpt"),
    ("darwin", {}, "Library/Caches/microgpt"),
    ("win32", {"LOCALAPPDATA": "{home}/Local"}, "Local/microgpt"),
    ("win32", {}, "AppData/Local/microgpt"),
    ("linux", {"MICROGPT_CACHE": "{home}/mine"}, "mine"),
    ("linux", {"MICROGPT_CACHE": "~/mine"}, "mine"),
    ("win32", {"MICROGPT_CACHE": "{home}/mine", "LOCALAPPDATA": "{home}/Local"}, "mine"),
])
def test_the_folder_is_where_the_platform_has_it(home, monkeypatch, platform, environment,
                                                 expected):
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(home=home))
    assert cache.cache_folder() == home / expected
    assert not (home / expected).exists()


def test_text_is_utf8_and_bytes_stay_as_they_are(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    cache.write_atomically(path, "\u00e4\r\n")
    assert path.read_bytes() == b"\xc3\xa4\r\n"
    cache.write_atomically(str(path), b"\xff\n")
    assert path.read_bytes() == b"\xff\n"
    assert os.listdir(path.parent) == ["file"]


def test_pieces_of_bytes_are_joined_and_a_failure_between_two_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    cache.write_atomically(path, (piece for piece in (b"a", array("d", [0.0]), memoryview(b"b"))))
    assert path.read_bytes() == b"a" + bytes(8) + b"b"
    cache.write_atomically(path, [])
    assert path.read_bytes() == b""
    for whole in (bytearray(b"old"), memoryview(b"old")):
        cache.write_atomically(path, whole)
        assert path.read_bytes() == b"old"

    def pieces():
        yield b"new"
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        cache.write_atomically(path, pieces())
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    for step in ("fsync", "replace", "chmod"):
        def full(*_):
            raise OSError(28, "No space left on device")
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(OSError, match="No space left"):
                cache.write_atomically(path, b"new")
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of another kind")
def test_permissions_are_those_of_any_new_file_or_of_the_old_one(tmp_path):
    def mode(path):
        return stat.S_IMODE(path.stat().st_mode)
    plain, written = tmp_path / "plain", tmp_path / "written"
    plain.write_bytes(b"")
    cache.write_atomically(written, b"")
    assert mode(written) == mode(plain)
    Path.chmod(written, 0o600)
    cache.write_atomically(written, b"")
    assert mode(written) == 0o600


def test_a_file_that_somebody_reads_is_replaced_when_he_is_done(tmp_path, monkeypatch):
    """As on Windows, where a reader, or a virus scanner, keeps a file from being replaced."""
    path, tries, real = tmp_path / "file", [], os.replace
    path.write_text("old")

    def busy(*paths):
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError(13, "Access is denied")
        real(*paths)
    monkeypatch.setattr(cache.os, "replace", busy)
    monkeypatch.setattr(cache, "WAITS", (0, 0))
    cache.write_atomically(path, "new")
    assert (path.read_text(), len(tries)) == ("new", 3)
    tries[:] = []
    monkeypatch.setattr(cache, "WAITS", ())
    with pytest.raises(PermissionError):
        cache.write_atomically(path, "newer")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
