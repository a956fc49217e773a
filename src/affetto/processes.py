"""Several processes that one command was launched as (`accelerate launch`, torchrun): how many, and taking turns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from affetto.files import cache_root, lock_of, one_at_a_time


def num_launched() -> int:
    """How many processes share this command; 1 where nobody launched several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def in_turns() -> Iterator[None]:
    """A block that fills caches: of processes that share a command one is in it at a time, so that what the first made
    the others find."""
    if num_launched() < 2:
        yield
        return
    with one_at_a_time(lock_of(cache_root() / "turns")):
        yield
