"""torch's functions for matrix products, computed by affetto's own C where torch's library is slow.

torch multiplies matrices with Intel's MKL, which uses only AVX2 on AMD's processors. Their AVX-512 is more than twice
as fast: 240 instead of 110 GFLOP/s on one core of a Zen 5, whatever the shape; oneDNN, which torch uses for
convolutions, reaches 130 to 240 (docs/performance.md). On other processors, and for other types and sizes, these
functions call torch's own.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from affetto.native.compiler import library
from affetto.native.products import multiply

LEAST_ROWS, LEAST_TURNED, LEAST_WORK = 8, 32, 2**18
"""Fewest rows, rows if the matrix is transposed, and multiply-adds for which the C is faster."""
_PLAIN = (Tensor, nn.Parameter)


def mm(a_NI: Tensor, b_IO: Tensor, out: Tensor | None = None) -> Tensor:
    """a b (N, O), as torch.mm; into `out` if given."""
    if _suits_c(a_NI, b_IO) and (out is None or (_fits(out, a_NI, b_IO) and out.stride(1) == 1)):
        return multiply(a_NI, b_IO, a_NI.new_empty(len(a_NI), b_IO.shape[1]) if out is None else out)
    return torch.mm(a_NI, b_IO) if out is None else out.copy_(torch.mm(a_NI, b_IO))


def addmm(sum_NO: Tensor, a_NI: Tensor, b_IO: Tensor) -> Tensor:
    """`sum` plus a b (N, O), as torch.addmm."""
    needs_grad = torch.is_grad_enabled() and sum_NO.requires_grad
    if not needs_grad and _fits(sum_NO, a_NI, b_IO) and _suits_c(a_NI, b_IO):
        return multiply(a_NI, b_IO, sum_NO.clone(memory_format=torch.contiguous_format), is_added=True)
    return torch.addmm(sum_NO, a_NI, b_IO)


def addmm_(sum_NO: Tensor, a_NI: Tensor, b_IO: Tensor) -> Tensor:
    """As `addmm`, in place of `sum`."""
    if _fits(sum_NO, a_NI, b_IO) and sum_NO.stride(1) == 1 and _suits_c(a_NI, b_IO):
        torch.autograd.graph.increment_version(sum_NO)
        return multiply(a_NI, b_IO, sum_NO, is_added=True)
    return sum_NO.addmm_(a_NI, b_IO)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b (…, O) for x (…, I), as torch's own `linear`, with gradients."""
    x_NI = x.reshape(-1, x.shape[-1])
    if torch.is_autocast_enabled(x.device.type) or not _is_faster(x_NI, weight_OI.T):
        return functional.linear(x, weight_OI, bias_O)
    y_NO: Tensor = _Linear.apply(x_NI, weight_OI)  # type: ignore[no-untyped-call]
    y = y_NO.view(*x.shape[:-1], len(weight_OI))
    return y if bias_O is None else y + bias_O


def heads(x_NJI: Tensor, weight_JIO: Tensor) -> Tensor:
    """x (N, J, I) times a matrix (I, O) for each of J: (N, J, O), with a gradient of x."""
    if len(weight_JIO) == 0 or weight_JIO.requires_grad or not _is_faster(x_NJI[:, 0], weight_JIO[0]):
        return torch.einsum("nji,jio->njo", x_NJI, weight_JIO)
    y_NJO: Tensor = _Heads.apply(x_NJI, weight_JIO)  # type: ignore[no-untyped-call]
    return y_NJO


class _Heads(torch.autograd.Function):
    """`heads` with frozen matrices."""

    @staticmethod
    def forward(ctx: Any, x_NJI: Tensor, weight_JIO: Tensor) -> Tensor:
        ctx.save_for_backward(weight_JIO)
        return _one_by_one(x_NJI, weight_JIO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight_JIO,) = ctx.saved_tensors
        return _one_by_one(grads[0], weight_JIO.transpose(1, 2)), None


def _one_by_one(x_NJI: Tensor, weight_JIO: Tensor) -> Tensor:
    y_NJO = x_NJI.new_empty(*x_NJI.shape[:2], weight_JIO.shape[2])
    for place, weight_IO in enumerate(weight_JIO):
        mm(x_NJI[:, place], weight_IO, out=y_NJO[:, place])
    return y_NJO


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad
        # Save only what is needed: not the input of a frozen layer.
        ctx.save_for_backward(x_NI if needs_weight else None, weight_OI if needs_x else None)
        return mm(x_NI, weight_OI.T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        return (mm(grads[0], weight_OI) if needs_x else None, mm(grads[0].T, x_NI) if needs_weight else None)


def _suits_c(a_NI: Tensor, b_IO: Tensor) -> bool:
    """Whether to use the C: it is faster, and no gradient is needed, since autograd doesn't know of it."""
    needs_grad = torch.is_grad_enabled() and (a_NI.requires_grad or b_IO.requires_grad)
    return not needs_grad and _is_faster(a_NI, b_IO)


def _fits(sum_NO: Tensor, a_NI: Tensor, b_IO: Tensor) -> bool:
    """Whether `sum` has the product's shape and type: torch broadcasts smaller ones and refuses others."""
    is_alike = sum_NO.dtype == a_NI.dtype and sum_NO.device == a_NI.device
    return is_alike and sum_NO.shape == (a_NI.shape[0], b_IO.shape[1])


def _is_faster(a_NI: Tensor, b_IO: Tensor) -> bool:
    num_rows = a_NI.shape[0]
    return (
        # torch refuses what can't be multiplied.
        a_NI.shape[1:] == b_IO.shape[:1]
        and num_rows >= (LEAST_ROWS if b_IO.stride(1) == 1 else LEAST_TURNED)
        and num_rows * b_IO.numel() >= LEAST_WORK
        and a_NI.dtype == b_IO.dtype == torch.float32
        and a_NI.device.type == "cpu"
        and type(a_NI) in _PLAIN
        and type(b_IO) in _PLAIN
        and mkl_is_slow()
        and library("products") is not None
        # Tools that count or trace operations know torch's only.
        and not is_in_torch_dispatch_mode()
    )


@cache
def mkl_is_slow() -> bool:
    """Whether the processor is AMD's with AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _maker()


def _maker() -> str:
    """The processor's vendor as the system names it; on Linux Python doesn't know it."""
    known = Path("/proc/cpuinfo")
    return known.read_text(encoding="utf-8", errors="replace")[:4096] if known.is_file() else platform.processor()
