"""What tests of the C share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_int64

import numpy as np
import pytest
import torch
from torch import Tensor

from affetto.speak import native_frames as native
from affetto.speak.sampling import Sampling


def required() -> None:
    """Skip where there is no C compiler."""
    if native.library("frames") is None:
        pytest.skip("no C compiler is here, so NumPy speaks")


@contextmanager
def threads(num: int) -> Iterator[None]:
    """As many threads of torch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawn_natively(sampling: Sampling, logits_BC: Tensor, uniform_B: Tensor, book: int) -> list[int]:
    """Codebook `book`'s code per row, of eight codebooks."""
    required()
    num_rows, num_codes = logits_BC.shape
    # Behind a row's logits there is room for as many numbers.
    logits_B2C = torch.cat([logits_BC, torch.empty_like(logits_BC)], dim=1).contiguous()
    drawing = object.__new__(native._NativeBatch)
    drawing.kept = []
    drawing.struct = native._Batch(num_rows=num_rows, num_books=8, num_codes=num_codes)
    drawing.set_sampling(sampling, uniform_B[:, None, None].expand(-1, 1, 8).contiguous())
    drawing.struct.scratch.logits = logits_B2C.data_ptr()
    codes_BK = np.full((num_rows, 8), -1)
    loaded = native.library("frames")
    assert loaded is not None
    loaded.affetto_draw(byref(drawing.struct), c_int64(0), c_int64(book), native._pointer(codes_BK))
    assert (np.delete(codes_BK, book, axis=1) == -1).all()
    drawn: list[int] = codes_BK[:, book].tolist()
    return drawn
