"""Concurrent processes: those that one command was launched as (`accelerate launch`, torchrun), and other commands that
might work in the same folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from affetto.errors import DataError
from affetto.files import cache_root, lock_of, make_writable, one_at_a_time

_OURS: set[Path] = set()
"""Folders that this process holds for itself."""


def num_launched() -> int:
    """How many processes share this command; 1 unless several were launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def in_turns() -> Iterator[None]:
    """A block that fills caches: processes that share a command run it one after the other, so that the first fills the
    caches and the others find them filled."""
    if num_launched() < 2:
        yield
        return
    with one_at_a_time(lock_of(cache_root() / "turns")):
        yield


@contextmanager
def alone_in(folders: Sequence[Path]) -> Iterator[None]:
    """A block in which this process alone works in `folders`; it may be nested.

    DataError if another process works in one of them.
    """
    with ExitStack() as held:
        for folder in (path.absolute() for path in folders):
            if folder in _OURS:
                continue
            make_writable(folder.parent)
            if not held.enter_context(one_at_a_time(lock_of(folder), do_wait=False)):
                raise DataError(
                    f"another process is working in {folder}; wait until it has ended, or name another place (--output)"
                )
            _OURS.add(folder)
            held.callback(_OURS.discard, folder)
        yield
