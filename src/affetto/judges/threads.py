"""How many processors a judge's network computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Networks that run in here, and in threads that are started in here, compute on one processor each.

    Small products (a recurrent network's steps) are faster so: threads would wait for each other most of the time.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
