"""A frozen linear layer and all its adapters of low rank as one operation with a backward of its own.

y = x W^T + ((x A^T) * gate) B^T. Autograd would keep and add up whole outputs that nothing else needs; here the thin
products are added in place, forward and backward, and W's own gradient is never thought of (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def gated_linear(x: Tensor, layer: Any, a_RI: Tensor, b_OR: Tensor, gate: Callable[[torch.dtype], Tensor]) -> Tensor:
    """x (rows, S, in) → (rows, S, out); `gate` gives (rows, 1, R) in a type: it scales every rank, row by row.

    `layer` has a frozen `weight` (out, in) and a `bias` or None. The weight is read again for the backward pass, so
    that one in four bits is never kept unpacked. The computation is in x's type, or in autocast's where that is on.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        factors = a_RI.to(dtype), b_OR.to(dtype), gate(dtype)
        y: Tensor = _GatedLinear.apply(x.to(dtype), layer, *factors)  # type: ignore[no-untyped-call]
    return y


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, a_RI: Tensor, b_OR: Tensor, gate_B1R: Tensor) -> Tensor:
        x_NI = x.flatten(0, -2)
        low_NR = _gated(x_NI @ a_RI.T, gate_B1R)
        y_NO = x_NI @ layer.weight.to(x.dtype).T
        y_NO.addmm_(low_NR, b_OR.T)
        if layer.bias is not None:
            y_NO += layer.bias.to(x.dtype)
        ctx.layer = layer
        ctx.save_for_backward(x_NI, a_RI, b_OR, low_NR, gate_B1R)
        y: Tensor = y_NO.view(*x.shape[:-1], len(b_OR))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, a_RI, b_OR, low_NR, gate_B1R = ctx.saved_tensors
        grad_NO = grads[0].flatten(0, -2)
        grad_low_NR = _gated(grad_NO @ b_OR, gate_B1R)
        needs_x, _, needs_a, needs_b, _ = ctx.needs_input_grad
        grad_x = None
        if needs_x:
            grad_x = grad_NO @ ctx.layer.weight.to(grad_NO.dtype)
            grad_x.addmm_(grad_low_NR, a_RI)
            grad_x = grad_x.view(*grads[0].shape[:-1], a_RI.shape[1])
        grad_a_RI = grad_low_NR.T @ x_NI if needs_a else None
        grad_b_OR = grad_NO.T @ low_NR if needs_b else None
        return grad_x, None, grad_a_RI, grad_b_OR, None


def _gated(low_NR: Tensor, gate_B1R: Tensor) -> Tensor:
    """Positions (rows * S, R) of rows times their row's gate."""
    return low_NR.view(len(gate_B1R), -1, low_NR.shape[1]).mul_(gate_B1R).view(low_NR.shape)
