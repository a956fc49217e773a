"""Files that are never half written, and hashes of contents."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from affetto.errors import NO_ROOM, ConfigError, DataError
from affetto.folders import replace_folder


def is_same_file(one: Path, other: Path) -> bool:
    """Whether both name the same file; judged by the paths alone if one doesn't exist yet."""
    return one.samefile(other) if one.exists() and other.exists() else one.resolve() == other.resolve()


def expanded(path: str | Path) -> Path:
    """`path` with a leading `~` or `~user` replaced by the home folder. ConfigError if that is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: {Path(path).parts[0]} is nobody's home folder here; write the whole path"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename it into place.

    DataError if the file can't be created (no such folder, no permission, a folder of that name) or the disk is full.
    """
    with place_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with place_told(path):
            write(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def place_told(path: Path) -> Iterator[None]:
    """A block that writes at `path`. DataError if that can't be written, or the disk is full."""
    try:
        yield
    except OSError as error:
        remedy = "make room there" if error.errno in NO_ROOM else "fix its permissions"
        raise DataError(f"can't write {path} ({error.strerror or error}); {_elsewhere(path)}, or {remedy}") from error
    except SafetensorError as error:
        raise DataError(f"can't write {path} ({error}); {_elsewhere(path)}, or make room there") from error


def _elsewhere(path: Path) -> str:
    return f"{'set AFFETTO_CACHE to' if path.is_relative_to(cache_root()) else 'name'} another place"


def make_writable(folder: Path) -> None:
    """Make `folder` if it doesn't exist yet. DataError if it can't be made, or no file in it."""
    with place_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".writable.", dir=folder):
            pass


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8. Bytes of file names that aren't UTF-8 are escaped as JSON escapes them."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON atomically: NaN and infinity are errors, numpy scalars become numbers."""
    write_text(path, to_json(value) + "\n")


def to_json(value: Any) -> str:
    """Strict, indented JSON; see `write_json`."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def why_unreadable(error: Exception) -> str:
    """Why a file of text or JSON couldn't be read, for messages that name the file themselves."""
    if isinstance(error, json.JSONDecodeError):
        return f"it isn't JSON: {error.msg}, line {error.lineno}"
    if isinstance(error, UnicodeDecodeError):
        return "it isn't UTF-8"
    return str(getattr(error, "strerror", None) or error)


def finite_or_none(value: float | None) -> float | None:
    """`value`, or None if it isn't a finite number (JSON has no NaN)."""
    return float(value) if value is not None and math.isfinite(value) else None


def hash_bytes(*parts: bytes) -> str:
    """Hex SHA-256 of the parts, each length-prefixed, so that different splits differ."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def hash_text(*parts: str) -> str:
    """Hex SHA-256 of strings; see `hash_bytes`."""
    return hash_bytes(*(part.encode(errors="surrogatepass") for part in parts))


def hash_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def made_once(target: Path, make: Callable[[Path], object]) -> Path:
    """`target`, which `make` fills if it doesn't exist yet: in a folder beside it that is then renamed, so that it is
    never seen incomplete. If several processes make it at once, the first one's stays. DataError if it can't be
    written, or the disk is full."""
    if target.is_dir():
        return target
    with place_told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".making.", dir=target.parent))
    try:
        make(temporary)
        temporary.chmod(0o755)
        temporary.rename(target)
    except (OSError, SafetensorError):
        if not target.is_dir():
            with place_told(target):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A block that fills an empty folder, which then replaces `folder` as a whole (`affetto.folders`); if the block
    fails, `folder` is unchanged. DataError if it can't be written, or the disk is full."""
    with place_told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def made_alone(path: Path, make: Callable[[Path], object]) -> Path:
    """The file `path`, which `make` writes (atomically) if it doesn't exist yet; if several processes need it, one
    makes it and the others wait."""
    if not path.is_file():
        with one_at_a_time(lock_of(path)):
            if not path.is_file():
                make(path)
    return path


def lock_of(path: Path) -> Path:
    """The lock file (for `one_at_a_time`) of processes that would make the same `path`; hidden beside it."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def one_at_a_time(lock: Path, *, do_wait: bool = True) -> Iterator[bool]:
    """A block that only one process at a time runs among those with the same file `lock`, which stays, empty.

    Others wait; with `do_wait=False` they run it at once, and the block gets False. If the file system has no locks
    nobody waits.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    is_mine = True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if do_wait else fcntl.LOCK_NB))
    except BlockingIOError:
        is_mine = False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            os.close(handle)
            raise
    try:
        yield is_mine
    finally:
        os.close(handle)


def hash_folder(folder: Path, patterns: Iterable[str], hash_of: Callable[[Path], str] = hash_file) -> str:
    """Hex SHA-256 of the files of `folder` that match, by name and contents, without hidden (temporary) ones.

    `hash_of` gives the hash of a file's contents, as `hash_file` does.
    """
    files = sorted({path for pattern in patterns for path in visible(folder, pattern) if path.is_file()})
    return hash_text(*(f"{path.relative_to(folder)}:{hash_of(path)}" for path in files))


def visible(folder: Path, pattern: str) -> list[Path]:
    """Files of `folder` that match, sorted, without leftovers of a `write_atomically` that was killed."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def as_text(name: str | Path) -> str:
    r"""A file's name or a command as valid UTF-8: other bytes (in names from old archives) are written as `\xe9`."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def cache_root() -> Path:
    """The one folder of all caches: `$AFFETTO_CACHE`, else `$XDG_CACHE_HOME/affetto`, else `~/.cache/affetto`."""
    if chosen := os.environ.get("AFFETTO_CACHE"):
        return expanded(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "affetto"


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
