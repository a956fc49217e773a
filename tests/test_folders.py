"""Folders that replace others: whenever the process dies, one of the two is there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from affetto import folders
from affetto.folders import recover_folder, replace_folder

DIES = """
import os, shutil, sys
from pathlib import Path
from affetto import folders
old, new, way = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if way == "exchanged":
    shutil.rmtree = lambda *_, **__: os._exit(9)
else:
    folders._exchange = lambda *_: False
    rename = Path.rename
    Path.rename = lambda path, target: os._exit(9) if path == new else rename(path, target)
folders.replace_folder(new, old)
"""


def _pair(parent: Path) -> tuple[Path, Path]:
    """`best` and what shall replace it, as the writers name that."""
    old, new = parent / "best", parent / ".best.abcd_012"
    for path, what in ((old, "old"), (new, "new")):
        path.mkdir(exist_ok=True)
        (path / "what").write_text(what)
    return old, new


def _killed(old: Path, new: Path, way: str) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, str(old), str(new), way], check=False)
    assert done.returncode == 9, "it wasn't killed where it should be"


@pytest.fixture(params=[True, False], ids=["exchange", "two steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the two change places in one step."""
    if not request.param:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    return bool(request.param)


def test_a_folder_replaces_another_and_leaves_nothing(tmp_path: Path, way: bool) -> None:
    old, new = _pair(tmp_path)
    (old / "only the old one had").touch()
    replace_folder(new, old)
    assert [path.name for path in old.iterdir()] == ["what"], way
    assert (old / "what").read_text() == "new"
    assert list(tmp_path.iterdir()) == [old]
    _, again = _pair(tmp_path)
    (tmp_path / "best" / "what").unlink()
    replace_folder(again, tmp_path / "first")
    assert (tmp_path / "first" / "what").read_text() == "new"


def test_a_failed_replacement_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = _pair(tmp_path)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self == new:
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space"):
        replace_folder(new, old)
    assert (old / "what").read_text() == "old"
    assert sorted(tmp_path.iterdir()) == sorted([old, new])


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_killed_after_the_exchange_the_new_folder_is_there(tmp_path: Path) -> None:
    old, new = _pair(tmp_path)
    _killed(old, new, "exchanged")
    assert (old / "what").read_text() == "new"
    assert (new / "what").read_text() == "old"


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_what_cannot_be_exchanged_is_an_error_and_stays(tmp_path: Path) -> None:
    old, _ = _pair(tmp_path)
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / ".best.nothing_", old)
    assert (old / "what").read_text() == "old"


def test_killed_between_two_steps_the_old_folder_is_found_again(tmp_path: Path) -> None:
    old, new = _pair(tmp_path)
    _killed(old, new, "two steps")
    assert not old.exists()
    assert recover_folder(old) == old
    assert (old / "what").read_text() == "old"
    assert sorted(tmp_path.iterdir()) == sorted([old, new])
    _killed(old, new, "two steps")
    replace_folder(new, old)
    assert (old / "what").read_text() == "new"
    assert list(tmp_path.iterdir()) == [old]


def test_what_killed_processes_left_is_swept_when_it_is_old(tmp_path: Path, way: bool) -> None:
    old, new = _pair(tmp_path)
    left, young, others = tmp_path / ".best.old.0123abcd", tmp_path / ".best.zzzzzzzz", tmp_path / ".best.mine"
    for path in (left, young, others):
        path.mkdir()
    for path in (left, others, new):
        os.utime(path, (time.time() - 7200,) * 2)
    replace_folder(new, old)
    assert sorted(tmp_path.iterdir()) == sorted([old, young, others]), way


def test_a_folder_that_never_was_is_not_made_up(tmp_path: Path) -> None:
    assert not recover_folder(tmp_path / "best").exists()
    assert not recover_folder(tmp_path / "nowhere" / "best").exists()
