"""Hashes of files, remembered in the cache so that unchanged files needn't be read again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from affetto.errors import DataError
from affetto.files import cache_root, hash_file, read_json, write_json

WEIGHT_HASHES = "weights.json"
"""The cache's file with the hashes of bases and codecs."""
LARGE_BYTES = 1 << 26
"""Weights from this size on take longer to hash than to look up."""


class HashMemory:
    """Hex SHA-256 of files, remembered by path, size, time of change and inode in the cache's file `name`.

    with HashMemory(WEIGHT_HASHES) as hash_of:
        print(hash_of(path))

    If the cache can't be written, nothing is remembered, without an error.
    """

    def __init__(self, name: str, *, least_bytes: int = 0) -> None:
        """Files of fewer than `least_bytes` are hashed every time."""
        self._path, self._least_bytes = cache_root() / name, least_bytes
        self._known = self._read()
        self._new: dict[str, list[Any]] = {}

    def __enter__(self) -> HashMemory:
        return self

    def __call__(self, path: Path) -> str:
        """The hash of a file's bytes. OSError if it can't be read."""
        # Taken before reading, so that the hash of a file that changes meanwhile is never used again.
        status = path.stat()
        if status.st_size < self._least_bytes:
            return hash_file(path)
        state, place = [status.st_size, status.st_mtime_ns, status.st_ino], str(path.absolute())
        entry = self._known.get(place)
        if not isinstance(entry, list) or entry[:-1] != state:
            entry = self._known[place] = self._new[place] = [*state, hash_file(path)]
        return str(entry[-1])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._new:
            with suppress(DataError):
                # Read again: another process may have added to it.
                write_json(self._path, self._read() | self._new)

    def _read(self) -> dict[str, Any]:
        try:
            entries = read_json(self._path)
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}
