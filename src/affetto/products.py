"""Matrix products of float32 on a CPU, by the library in torch that has the kernels for its processor.

torch multiplies matrices by Intel's MKL, which keeps to AVX2 on AMD's processors. oneDNN, which torch has for
convolutions, uses their AVX-512: 250 GFLOP/s of one core of a Zen 5 where MKL reaches 113 (docs/performance.md). So
products that are large enough go there, on such a processor; everywhere else, and for everything else, these functions
are torch's own, which is what tests compare with.
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

LEAST_ROWS, LEAST_MATRIX = 16, 2**20
"""Rows, and numbers of what they are multiplied with, from which on oneDNN pays: it compiles for every new shape (0.2
ms), and of narrow layers memory is the limit. CSM-1B's layers are as large, the miniature's aren't."""
_PLAIN = (Tensor, nn.Parameter)


def mm(a_NI: Tensor, b_IO: Tensor) -> Tensor:
    """a b (N, O), as torch.mm. Of a transposed `a` a copy is made: let the smaller factor be that."""
    if not _suit(a_NI, b_IO):
        return torch.mm(a_NI, b_IO)
    product_NO: Tensor = torch.ops.mkldnn._linear_pointwise(a_NI, b_IO.T, None, "none", [], "")
    return product_NO


def addmm(sum_NO: Tensor, a_NI: Tensor, b_IO: Tensor) -> Tensor:
    """`sum` plus a b (N, O), as torch.addmm."""
    is_asked = torch.is_grad_enabled() and sum_NO.requires_grad
    if is_asked or not _suit(a_NI, b_IO) or not sum_NO.is_contiguous():
        return torch.addmm(sum_NO, a_NI, b_IO)
    added_NO: Tensor = torch.ops.mkldnn._linear_pointwise.binary(a_NI, sum_NO, b_IO.T, None, "add")
    return added_NO


def addmm_(sum_NO: Tensor, a_NI: Tensor, b_IO: Tensor) -> Tensor:
    """As `addmm`, in memory of its own or in that of `sum`, which is used up."""
    return addmm(sum_NO, a_NI, b_IO) if _suit(a_NI, b_IO) else sum_NO.addmm_(a_NI, b_IO)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x (…, I) → (…, O), as torch's own `linear`, with a gradient where one is asked for."""
    x_NI = x.reshape(-1, x.shape[-1])
    if torch.is_autocast_enabled(x.device.type) or not _are_large(x_NI, weight_OI.T):
        return functional.linear(x, weight_OI, bias_O)
    y_NO: Tensor = _Linear.apply(x_NI, weight_OI)  # type: ignore[no-untyped-call]
    y = y_NO.view(*x.shape[:-1], len(weight_OI))
    return y if bias_O is None else y + bias_O


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad
        # Only what is needed: of a frozen layer not what it read.
        ctx.save_for_backward(x_NI if needs_weight else None, weight_OI if needs_x else None)
        return mm(x_NI, weight_OI.T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        return (mm(grads[0], weight_OI) if needs_x else None, mm(grads[0].T, x_NI) if needs_weight else None)


def _suit(a_NI: Tensor, b_IO: Tensor) -> bool:
    """Whether oneDNN is to multiply these, which autograd must not ask about: it knows nothing of the operation."""
    is_asked = torch.is_grad_enabled() and (a_NI.requires_grad or b_IO.requires_grad)
    return not is_asked and _are_large(a_NI, b_IO)


def _are_large(a_NI: Tensor, b_IO: Tensor) -> bool:
    num_rows = a_NI.shape[0]
    return (
        num_rows >= LEAST_ROWS
        and b_IO.numel() >= LEAST_MATRIX
        and a_NI.dtype == b_IO.dtype == torch.float32
        and a_NI.device.type == "cpu"
        and type(a_NI) in _PLAIN
        and type(b_IO) in _PLAIN
        and bool(torch.backends.mkldnn.enabled)
        and has_faster_onednn()
        # Who counts or traces operations knows torch's own.
        and not is_in_torch_dispatch_mode()
    )


@cache
def has_faster_onednn() -> bool:
    """Whether this is a processor by AMD with AVX-512, and torch has oneDNN for it."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and "AuthenticAMD" in _maker()


def _maker() -> str:
    """What the system calls the processor's maker; on Linux Python doesn't know."""
    known = Path("/proc/cpuinfo")
    return known.read_text(encoding="utf-8", errors="replace")[:4096] if known.is_file() else platform.processor()
