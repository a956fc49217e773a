"""Files that are whole or absent, strict JSON, hashes that name contents."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affetto import files
from affetto.errors import ConfigError, DataError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "facts.json"
    files.write_json(target, {"b": [1, 2.5, None], "a": "ü"})
    assert files.read_json(target) == {"b": [1, 2.5, None], "a": "ü"}
    assert "ü" in target.read_text(encoding="utf-8")
    assert [path.name for path in target.parent.iterdir()] == ["facts.json"]


def test_home_folders_are_filled_in_and_nobodys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expanded("~/x") == tmp_path / "x"
    assert files.expanded(Path("plain~/x")) == Path("plain~/x")
    told = "~nobody-here/x: ~nobody-here is nobody's home folder here; write the whole path"
    with pytest.raises(ConfigError, match=told):
        files.expanded("~nobody-here/x")
    monkeypatch.setenv("AFFETTO_CACHE", "~nobody-here/x")
    with pytest.raises(ConfigError, match=told):
        files.cache_root()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, ValueError])
def test_failing_halfway_leaves_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "value.txt"
    files.write_text(target, "old")

    def write(path: Path) -> None:
        path.write_text("ne")
        raise failure

    with pytest.raises(failure):
        files.write_atomically(target, write)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["value.txt"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for target, reason in ((tmp_path / "folder", "directory"), (tmp_path / "file" / "a.txt", "exists|Not a directory")):
        with pytest.raises(DataError, match=rf"can't write .*{target.name} \(.*({reason}).*name another place"):
            files.write_text(target, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"], "nothing is left of it"


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from safetensors.torch import save_file
from affetto import files
from affetto.audio.sound import write_sound
from affetto.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
folder = Path(sys.argv[1])
tries = [
    lambda: files.write_text(folder / "a.txt", "x" * 9000),
    lambda: write_sound(folder / "a.wav", np.zeros(9000), 8000),
    lambda: files.write_atomically(folder / "a.bin", lambda path: save_file({"x": torch.zeros(9000)}, path)),
    lambda: files.made_once(folder / "made", lambda path: (path / "x").write_text("x" * 9000)),
    lambda: files.made_once(folder / "kept", lambda path: save_file({"x": torch.zeros(9000)}, path / "x")),
]
for one in tries:
    try:
        one()
    except DataError as error:
        print(error)
"""


def test_no_room_is_told_however_it_is_written(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    told = done.stdout.splitlines()
    assert [line.partition(" (")[0] for line in told] == [
        f"can't write {tmp_path / name}" for name in ("a.txt", "a.wav", "a.bin", "made", "kept")
    ]
    assert all("make room there" in line for line in told)
    assert list(tmp_path.iterdir()) == [], "nothing is left of it"


def test_a_folder_is_seen_to_be_writable_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.make_writable(tmp_path / "new" / "folder")
    files.make_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"can't write .*folder \(Not a directory\); name another place"):
        files.make_writable(tmp_path / "file" / "folder")
    with pytest.raises(DataError, match=r"can't write .*file \(File exists\); name another place"):
        files.make_writable(tmp_path / "file")
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"can't write .*made \(.*\); set AFFETTO_CACHE to another place"):
        files.made_once(files.cache_root() / "made", lambda _: None)


def test_temporary_file_has_the_suffix_and_is_hidden(tmp_path: Path) -> None:
    seen: list[Path] = []
    files.write_atomically(tmp_path / "a.safetensors", lambda path: (seen.append(path), path.write_text("x")))
    assert seen[0].suffix == ".safetensors"
    assert seen[0].parent == tmp_path
    assert seen[0].name.startswith(".")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_as_readable_as_the_user_wants(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "a.txt", "text")
        assert os.umask(mask) == mask, "writing must not change the mask"
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float32("nan"), np.float64("-inf")])
def test_numbers_that_json_lacks_are_errors(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"x": [number]})
    assert not list(tmp_path.iterdir())


def test_numpy_scalars_and_paths_become_plain() -> None:
    value = {"f": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True), "p": Path("a") / "b"}
    assert json.loads(files.to_json(value)) == {"f": 0.5, "i": 3, "b": True, "p": "a/b"}
    with pytest.raises(TypeError, match="ndarray has no JSON form"):
        files.to_json(np.zeros(2))


@pytest.mark.parametrize(
    ("value", "wanted"), [(None, None), (float("nan"), None), (float("inf"), None), (2, 2.0), (np.float32(0.5), 0.5)]
)
def test_finite_or_none(value: float | None, wanted: float | None) -> None:
    assert files.finite_or_none(value) == wanted


@given(
    st.lists(st.text(alphabet="ab", max_size=3), max_size=4), st.lists(st.text(alphabet="ab", max_size=3), max_size=4)
)
def test_hashes_are_equal_where_all_parts_are(one: list[str], other: list[str]) -> None:
    assert (files.hash_text(*one) == files.hash_text(*other)) == (one == other)


def test_folder_hash_names_contents_and_names_alone(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "a.bin").write_bytes(b"a")
        (tmp_path / folder / "inner" / "b.bin").write_bytes(b"b")
    patterns = ("*.bin", "**/*.bin")
    one, two = (files.hash_folder(tmp_path / folder, patterns) for folder in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "unrelated.txt").write_text("x")
    (tmp_path / "two" / ".a.bin.tmp.bin").write_bytes(b"left behind")
    assert files.hash_folder(tmp_path / "two", patterns) == one
    (tmp_path / "two" / "inner" / "b.bin").rename(tmp_path / "two" / "inner" / "c.bin")
    assert files.hash_folder(tmp_path / "two", patterns) != one


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.hash_file(tmp_path / "abc") == wanted


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path))
    assert files.cache_root() == tmp_path
    monkeypatch.delenv("AFFETTO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_root() == tmp_path / "xdg" / "affetto"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.cache_root() == tmp_path / "home" / ".cache" / "affetto"
    monkeypatch.setenv("AFFETTO_CACHE", "~/mine")
    assert files.cache_root() == tmp_path / "home" / "mine"


def test_a_folder_is_made_once_whole_or_not_at_all(tmp_path: Path) -> None:
    target, calls = tmp_path / "deep" / "made", []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "a.txt").write_text("whole", encoding="utf-8")

    def fail(folder: Path) -> None:
        make(folder)
        raise OSError("disk full")

    with pytest.raises(DataError, match=r"can't write .*made \(disk full\)"):
        files.made_once(target, fail)
    assert list(target.parent.iterdir()) == [], "nothing is left of a failure"
    assert files.made_once(target, make) == files.made_once(target, make) == target
    assert (len(calls), (target / "a.txt").read_text(encoding="utf-8")) == (2, "whole")

    def overtaken(folder: Path) -> None:
        make(folder)
        other = tmp_path / "other"
        other.mkdir()
        (other / "a.txt").write_text("first", encoding="utf-8")

    files.made_once(tmp_path / "other", overtaken)
    assert (tmp_path / "other" / "a.txt").read_text(encoding="utf-8") == "first", "the first process's folder stays"


def test_one_at_a_time_lets_others_wait_or_tells_them(tmp_path: Path) -> None:
    lock, order = files.lock_of(tmp_path / "folder" / "fisher.safetensors"), list[str]()

    def wait() -> None:
        with files.one_at_a_time(lock) as is_mine:
            order.append(f"second {is_mine}")

    other = threading.Thread(target=wait)
    with files.one_at_a_time(lock) as is_mine:
        assert is_mine
        other.start()
        with files.one_at_a_time(lock, do_wait=False) as is_free:
            assert not is_free
        other.join(0.2)
        order.append("first")
    other.join(10)
    assert order == ["first", "second True"]
    assert lock.parent.name == "folder"
    assert files.visible(lock.parent, "*") == [], "the lock is hidden"


def test_where_there_are_no_locks_all_are_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with files.one_at_a_time(tmp_path / "lock") as outer, files.one_at_a_time(tmp_path / "lock") as inner:
        assert (outer, inner) == (True, True)
