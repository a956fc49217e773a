"""What a network promises its layers about a batch: each row is one sequence, of which certain positions are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


@dataclass(frozen=True)
class Spans:
    """The positions of each row that are needed: those before `length`, and in the last layer only from `first` on."""

    length_B: NDArray[np.int64]
    first_B: NDArray[np.int64]


@dataclass(frozen=True)
class _Promise:
    is_one_sequence_a_row: bool = False
    spans: Spans | None = None


_NOTHING = _Promise()
_PROMISE: ContextVar[_Promise] = ContextVar("what the network promises of its rows", default=_NOTHING)


def one_sequence_a_row(spans: Spans | None = None) -> AbstractContextManager[None]:
    """Inside the block each row is one sequence from position 0 on, with padding only on the right.

    No positions outside `spans` are read; without it all may be.
    """
    return _promised(_Promise(is_one_sequence_a_row=True, spans=spans))


def is_one_sequence_a_row() -> bool:
    """Whether the code runs inside `one_sequence_a_row`."""
    return _PROMISE.get().is_one_sequence_a_row


def asked_spans() -> Spans | None:
    """The spans that `one_sequence_a_row` was given."""
    return _PROMISE.get().spans


def promised_again() -> AbstractContextManager[None]:
    """A block that restores the current promise later."""
    return _promised(_PROMISE.get())


@contextmanager
def _promised(promise: _Promise) -> Iterator[None]:
    before = _PROMISE.set(promise)
    try:
        yield
    finally:
        _PROMISE.reset(before)


def read_before(frames_N2: Tensor, num_rows: int) -> Spans | None:
    """The spans that are read if frames (row, position) are predicted from the positions before them.

    None on a GPU, which computes all positions anyway, and whose values the host would have to wait for.
    """
    if not _is_readable(frames_N2):
        return None
    rows_N, places_N = frames_N2.numpy().T
    length_B, first_B = np.ones(num_rows, np.int64), np.full(num_rows, np.iinfo(np.int64).max)
    np.maximum.at(length_B, rows_N, places_N)
    np.minimum.at(first_B, rows_N, places_N - 1)
    return Spans(length_B, np.minimum(first_B, length_B - 1))


def read_behind_first(rows: Tensor) -> Spans | None:
    """The spans of rows (M, S, …) whose first positions predict nothing. None as in `read_before`."""
    return Spans(np.full(len(rows), rows.shape[1]), np.ones(len(rows), np.int64)) if _is_readable(rows) else None


def _is_readable(values: Tensor) -> bool:
    return values.device.type == "cpu" and type(values) is Tensor and not is_in_torch_dispatch_mode()
