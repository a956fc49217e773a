"""Python's side of `products.c`: matrix products, and K-FAC's quadratic form of low-rank changes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_double, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from affetto.native.compiler import required

_THREAD_WORK = 2**22
"""Fewest multiply-adds that make another thread worthwhile."""


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("m", "n", "out", "x_row", "x_step", "w_row", "w_step", "y_row")),
        ("is_added", c_int64), ("num_threads", c_int64), *((name, c_void_p) for name in ("x", "w", "y", "rooms")),
    )  # fmt: skip


def multiply(x_MN: Tensor, w_NO: Tensor, y_MO: Tensor, *, is_added: bool = False) -> Tensor:
    """y = x w, or y += x w. x and w may have any strides; rows of y must be contiguous."""
    (num_rows, num_in), num_out = x_MN.shape, w_NO.shape[1]
    assert y_MO.stride(1) == 1 or num_out == 1
    num_threads = max(1, min(torch.get_num_threads(), num_rows * num_in * num_out // _THREAD_WORK))
    loaded = required("products")
    rooms = None
    if loaded.affetto_is_packed(*map(c_int64, (num_rows, num_in, num_out, w_NO.stride(1)))):
        rooms = torch.empty(num_threads, loaded.affetto_packed_panel(), dtype=torch.float32)
    product = _Product(
        num_rows, num_in, num_out, *x_MN.stride(), *w_NO.stride(), y_MO.stride(0), is_added, num_threads,
        x_MN.data_ptr(), w_NO.data_ptr(), y_MO.data_ptr(), None if rooms is None else rooms.data_ptr(),
    )  # fmt: skip
    loaded.affetto_multiply(byref(product))
    return y_MO


@dataclass(frozen=True)
class KroneckerSquare:
    """weight * tr[(B^T G B)(A C A^T)] of one layer."""

    a_RI: Tensor
    b_OR: Tensor
    inputs_II: Tensor
    """C, symmetric."""
    gradients_OO: Tensor
    """G, symmetric."""
    weight: float


class _Square(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("in", "out", "rank")), ("weight", c_double),
        *((name, c_void_p) for name in ("a_RI", "b_OR", "inputs_II", "gradients_OO", "grad_a_RI", "grad_b_OR")),
        ("value", c_double),
    )  # fmt: skip


class _Squares(ctypes.Structure):
    _fields_ = (
        ("squares", POINTER(_Square)), ("ends", c_void_p), ("rooms", c_void_p),
        *((name, c_int64) for name in ("num_threads", "room", "most")),
    )  # fmt: skip


def kronecker_squares(squares: Sequence[KroneckerSquare]) -> tuple[float, list[Tensor]]:
    """Sum of the squares, and the gradients of A and B of each in turn."""
    grads = [torch.empty_like(factor) for square in squares for factor in (square.a_RI, square.b_OR)]
    structs = (_Square * len(squares))()
    work = np.zeros(len(squares))
    for place, square in enumerate(squares):
        tensors = (square.a_RI, square.b_OR, square.inputs_II, square.gradients_OO, *grads[2 * place : 2 * place + 2])
        assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in tensors)
        (rank, num_in), num_out = square.a_RI.shape, len(square.b_OR)
        structs[place] = _Square(num_in, num_out, rank, square.weight, *(tensor.data_ptr() for tensor in tensors), 0.0)
        work[place] = rank * (num_in**2 + num_out**2)
    total = np.cumsum(work)
    num_threads = max(1, min(torch.get_num_threads(), int(total[-1]) // _THREAD_WORK))
    ends_T = np.searchsorted(total, total[-1] * np.arange(1, num_threads) / num_threads, side="right")
    ends_T = np.append(ends_T, len(squares)).astype(np.int64)
    most = max(max(square.a_RI.shape[1], len(square.b_OR)) for square in squares)
    rank = max(len(square.a_RI) for square in squares)
    rooms_T = torch.empty(num_threads, 2 * most * rank + 2 * rank**2, dtype=torch.float32)
    call = _Squares(structs, ends_T.ctypes.data, rooms_T.data_ptr(), num_threads, rooms_T.shape[1], most)
    required("products").affetto_squares(byref(call))
    return sum(one.value for one in structs), grads
