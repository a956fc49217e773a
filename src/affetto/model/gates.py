"""Which adapters are on, row by row, while a network runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class GateSwitch:
    """The gate that adapted layers read. The network sets it around each part, since the parts' rows differ.

    `rows_BE` has one row per row of the input that the layers see; None is the base.
    """

    def __init__(self) -> None:
        self.rows_BE: Tensor | None = None

    @contextmanager
    def set(self, rows_BE: Tensor | None) -> Iterator[None]:
        """Use `rows_BE` inside the block; a gate without columns is the base."""
        before = self.rows_BE
        self.rows_BE = rows_BE if rows_BE is not None and rows_BE.shape[-1] > 0 else None
        try:
            yield
        finally:
            self.rows_BE = before
