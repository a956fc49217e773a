"""Triton kernels of `affetto.model.fused`: each reads once, computes in float32 and writes once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _swiglu(gate, up, y, size, BLOCK: tl.constexpr):
    """SiLU(gate) times up."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_inside = i < size
    g = tl.load(gate + i, mask=is_inside, other=0.0).to(tl.float32)
    u = tl.load(up + i, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(y + i, (g * tl.sigmoid(g) * u).to(y.dtype.element_ty), mask=is_inside)


@triton.jit
def _swiglu_backward(grad, gate, up, grad_gate, grad_up, size, BLOCK: tl.constexpr):
    """The derivative of SiLU(g) u is g s by u and u s (1 + g (1 - s)) by g, where s is the sigmoid of g."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_inside = i < size
    d = tl.load(grad + i, mask=is_inside, other=0.0).to(tl.float32)
    g = tl.load(gate + i, mask=is_inside, other=0.0).to(tl.float32)
    u = tl.load(up + i, mask=is_inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(grad_gate + i, (d * u * s * (1 + g * (1 - s))).to(grad_gate.dtype.element_ty), mask=is_inside)
    tl.store(grad_up + i, (d * g * s).to(grad_up.dtype.element_ty), mask=is_inside)


@triton.jit
def _turn(
    x, cos, sin, y, x_row, x_head, x_place, turn_row, places, sign, HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Rotate all heads at one position of one row; `sign` is -1 to rotate back."""
    place = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    head = tl.arange(0, BLOCK_H)
    h = tl.arange(0, HALF)
    WIDTH: tl.constexpr = 2 * HALF
    is_inside = (head < HEADS)[:, None] & (h >= 0)[None, :]
    angle = row * turn_row + place * WIDTH + h
    c = tl.load(cos + angle).to(tl.float32)[None, :]
    s = tl.load(sin + angle).to(tl.float32)[None, :] * sign
    source = x + row * x_row + place * x_place + head[:, None] * x_head + h[None, :]
    first = tl.load(source, mask=is_inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=is_inside, other=0.0).to(tl.float32)
    target = y + ((row * places + place) * HEADS + head[:, None]) * WIDTH + h[None, :]
    tl.store(target, (first * c - second * s).to(y.dtype.element_ty), mask=is_inside)
    tl.store(target + HALF, (second * c + first * s).to(y.dtype.element_ty), mask=is_inside)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) * up, for contiguous tensors of any shape."""
    y = torch.empty_like(gate)
    _swiglu[(triton.cdiv(y.numel(), _BLOCK),)](gate, up, y, y.numel(), BLOCK=_BLOCK)
    return y


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by gate and up."""
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    grid = (triton.cdiv(gate.numel(), _BLOCK),)
    _swiglu_backward[grid](grad, gate, up, grad_gate, grad_up, gate.numel(), BLOCK=_BLOCK)
    return grad_gate, grad_up


def turn(x_BHSD: Tensor, cos_BSD: Tensor, sin_BSD: Tensor, *, is_back: bool) -> Tensor:
    """Rotate x (B, H, S, Dh) by rotary positions, or back, with transformers' pairing (halves, `rotate_half`).

    cos and sin are (B or 1, S, Dh), with equal halves. The result's memory layout is (B, S, H, Dh).
    """
    if x_BHSD.stride(-1) != 1:
        x_BHSD = x_BHSD.contiguous()
    num_rows, num_heads, num_places, width = x_BHSD.shape
    cos_BSD, sin_BSD = cos_BSD.contiguous(), sin_BSD.contiguous()
    y_BSHD = torch.empty(num_rows, num_places, num_heads, width, dtype=x_BHSD.dtype, device=x_BHSD.device)
    _turn[num_places, num_rows](
        x_BHSD, cos_BSD, sin_BSD, y_BSHD, x_BHSD.stride(0), x_BHSD.stride(1), x_BHSD.stride(2),
        0 if len(cos_BSD) == 1 else num_places * width, num_places, -1.0 if is_back else 1.0, HEADS=num_heads,
        HALF=width // 2, BLOCK_H=triton.next_power_of_2(num_heads), num_warps=2,
    )  # fmt: skip
    return y_BSHD.transpose(1, 2)
