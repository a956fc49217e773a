"""Frozen linear layers that share one input, with all their low-rank adapters, as one operation with its own backward.

y = x W^T + ((x A^T) * gate) B^T. Autograd would store and add whole outputs that nothing else needs. Here the thin
products are added in place, forward and backward, the layers' A form one matrix that reads x once, and W gets no
gradient (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from affetto.native.functional import addmm_, mm

Factors = tuple[Tensor, Tensor]
"""A (R, in) and B (out, R) of one layer, the ranks of all adapters side by side."""


def computing_dtype(x: Tensor) -> torch.dtype:
    """The type that an adapted layer computes in: autocast's if that is on, else x's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def gated_linears(
    x: Tensor, layers: Sequence[Any], factors: Sequence[Factors], gate: Callable[[torch.dtype], Tensor]
) -> tuple[Tensor, ...]:
    """x (rows, S, in) → (rows, S, out) of each layer; `gate` gives every rank's factor (rows, 1, all R) in a dtype.

    A layer has a frozen `weight` (out, in) and a `bias` or None. The weight is read again in the backward pass, so that
    a four-bit one is never stored unpacked. The computation is in `computing_dtype`.
    """
    dtype = computing_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        flat = [factor.to(dtype) for pair in factors for factor in pair]
        ys: tuple[Tensor, ...] = _GatedLinears.apply(x.to(dtype), layers, gate(dtype), *flat)  # type: ignore[no-untyped-call]
    return ys


class _GatedLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Any], gate_B1R: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        x_NI, bs = x.flatten(0, -2), factors[1::2]
        a_RI = factors[0] if len(layers) == 1 else torch.cat(factors[0::2])
        low_NR = _gated(mm(x_NI, a_RI.T), gate_B1R)
        ys = []
        for layer, b_OR, low in zip(layers, bs, _by_layer(low_NR, bs), strict=True):
            y_NO = addmm_(mm(x_NI, layer.weight.to(x.dtype).T), low, b_OR.T)
            if layer.bias is not None:
                y_NO += layer.bias.to(x.dtype)
            ys.append(y_NO.view(*x.shape[:-1], len(b_OR)))
        ctx.layers = layers
        ctx.save_for_backward(x_NI, a_RI, low_NR, gate_B1R, *bs)
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, a_RI, low_NR, gate_B1R, *bs = ctx.saved_tensors
        needs_x, _, _, *needs = ctx.needs_input_grad
        flat = [grad.flatten(0, -2) for grad in grads]
        thin = [mm(grad_NO, b_OR) for grad_NO, b_OR in zip(flat, bs, strict=True)]
        grad_low_NR = _gated(thin[0] if len(thin) == 1 else torch.cat(thin, dim=1), gate_B1R)
        grad_x = None
        if needs_x:
            grad_x = mm(flat[0], ctx.layers[0].weight.to(flat[0].dtype))
            for grad_NO, layer in zip(flat[1:], ctx.layers[1:], strict=True):
                grad_x = addmm_(grad_x, grad_NO, layer.weight.to(grad_NO.dtype))
            grad_x = addmm_(grad_x, grad_low_NR, a_RI).view(*grads[0].shape[:-1], a_RI.shape[1])
        grad_as: Sequence[Tensor | None] = [None] * len(bs)
        if any(needs[0::2]):
            grad_as = torch.split(mm(grad_low_NR.T, x_NI), [b_OR.shape[1] for b_OR in bs])
        lows = _by_layer(low_NR, bs)
        grad_bs = [
            mm(low.T, grad_NO).T if is_asked else None
            for grad_NO, low, is_asked in zip(flat, lows, needs[1::2], strict=True)
        ]
        return grad_x, None, None, *(grad for pair in zip(grad_as, grad_bs, strict=True) for grad in pair)


def _by_layer(low_NR: Tensor, bs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Positions (N, all R) split into each layer's ranks."""
    return torch.split(low_NR, [b_OR.shape[1] for b_OR in bs], dim=1)


def _gated(low_NR: Tensor, gate_B1R: Tensor) -> Tensor:
    """Positions (rows * S, R), each times its row's gate, in place."""
    return low_NR.view(len(gate_B1R), -1, low_NR.shape[1]).mul_(gate_B1R).view(low_NR.shape)
