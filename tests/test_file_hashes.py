"""Hashes that are remembered: looked up while a file is as it was, and made anew when it isn't."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from affetto import file_hashes
from affetto.file_hashes import HashMemory
from affetto.files import hash_file


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A cache of its own, and the files that are read to be hashed."""
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    files: list[Path] = []
    monkeypatch.setattr(file_hashes, "hash_file", lambda path: files.append(path) or hash_file(path))
    return files


def _ask(path: Path, **settings: int) -> str:
    with HashMemory("some.json", **settings) as hash_of:
        return hash_of(path)


def _rewritten(path: Path) -> None:
    path.write_bytes(b"twin")


def _replaced(path: Path) -> None:
    """Another file of the same size and time: the inode alone differs."""
    status, other = path.stat(), path.with_name("other")
    other.write_bytes(b"twin")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert path.stat().st_mtime_ns == status.st_mtime_ns


@pytest.mark.parametrize("change", [_rewritten, _replaced])
def test_a_changed_file_is_hashed_anew(tmp_path: Path, read: list[Path], change: Callable[[Path], None]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"some")
    os.utime(path, ns=(10**18, 10**18))
    assert _ask(path) == _ask(path) == hashlib.sha256(b"some").hexdigest()
    assert read == [path]
    change(path)
    assert _ask(path) == _ask(path) == hashlib.sha256(b"twin").hexdigest()
    assert read == [path, path]


def test_small_files_are_not_remembered(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"some")
    assert _ask(path, least_bytes=5) == _ask(path, least_bytes=5) == hash_file(path)
    assert len(read) == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("text", ["{", "[1]", '{"x": "an older form"}'])
def test_a_damaged_memory_is_begun_again(tmp_path: Path, read: list[Path], text: str) -> None:
    path, memory = tmp_path / "x", tmp_path / "cache" / "some.json"
    path.write_bytes(b"some")
    memory.parent.mkdir()
    memory.write_text(text.replace('"x"', f'"{path}"'))
    assert _ask(path) == _ask(path) == hash_file(path)
    assert read == [path]


def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path: Path, read: list[Path]) -> None:
    (tmp_path / "cache").write_text("a file in the cache's place")
    path = tmp_path / "x"
    path.write_bytes(b"some")
    assert _ask(path) == _ask(path) == hash_file(path)
    assert len(read) == 2


def test_what_others_remembered_meanwhile_stays(tmp_path: Path, read: list[Path]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_text(path.name)
    with HashMemory("some.json") as hash_of:
        hash_of(one)
        _ask(two)
    read.clear()
    assert (_ask(one), _ask(two)) == (hash_file(one), hash_file(two))
    assert read == []
