"""Limits the number of threads that a judge's network computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Inside the block, networks in this thread and in threads started there compute on one core each.

    This is faster for small products (a recurrent network's steps), whose threads would mostly wait for each other.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
