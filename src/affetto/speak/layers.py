"""Decoder layers as plain functions over fused weights and preallocated key-value caches.

Llama's layer (Touvron et al. 2023), as in CSM's backbone and depth decoder: RMSNorm, grouped-query attention with
rotary positions, SwiGLU. At the miniature's size a product of one row takes 3 to 14 µs and every call into torch about
one, so the number of calls per layer (some 25) is what counts. The calls are the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from affetto.native.functional import addmm, mm
from affetto.speak.sites import Layer, Site
from affetto.speak.weights import Shape

Place = tuple[Tensor, Tensor, Tensor, Tensor]
"""Views of one layer's cache: where the key (N, Dh) and value (N, Dh) of a position go, and all keys (N, Dh, S) and
values (N, S, Dh) up to it. N is rows times key-value heads."""


@dataclass(frozen=True)
class Cache:
    """Keys and values of all layers; keys are stored transposed, which makes the product with a query faster."""

    keys_LNDS: Tensor
    values_LNSD: Tensor

    @classmethod
    def empty(cls, num_layers: int, num_rows: int, num_slots: int, shape: Shape, like: Tensor) -> Cache:
        """Zeros: slots that a mask hides must still be finite."""
        num_heads = num_rows * shape.num_kv
        return cls(
            like.new_zeros(num_layers, num_heads, shape.head_dim, num_slots),
            like.new_zeros(num_layers, num_heads, num_slots, shape.head_dim),
        )

    def num_rows(self, shape: Shape) -> int:
        """Number of rows that it has room for."""
        return self.keys_LNDS.shape[1] // shape.num_kv

    def places(self, slot: int) -> list[Place]:
        """Every layer's `Place` for a position in `slot`."""
        keys, values = self.keys_LNDS, self.values_LNSD
        return list(
            zip(
                keys[..., slot].unbind(), values[:, :, slot].unbind(),
                keys[..., : slot + 1].unbind(), values[:, :, : slot + 1].unbind(),
                strict=True,
            )
        )  # fmt: skip

    def rows(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Views with an axis for rows: keys (L, B, Hkv, Dh, S), values (L, B, Hkv, S, Dh)."""
        heads = (num_rows, self.keys_LNDS.shape[1] // num_rows)
        return torch.unflatten(self.keys_LNDS, 1, heads), torch.unflatten(self.values_LNSD, 1, heads)


class Rotary:
    """Cosines and signed sines by position, each (positions, 2, Dh / 2): halves first, as `rotate_half` pairs them."""

    def __init__(self, shape: Shape, num_positions: int, dtype: torch.dtype) -> None:
        angles_SH = torch.arange(num_positions, device=shape.inv_freq.device).float()[:, None] * shape.inv_freq
        cos_SH, sin_SH = angles_SH.cos() * shape.rope_scale, angles_SH.sin() * shape.rope_scale
        self.cos_S2H = torch.stack([cos_SH, cos_SH], dim=1).to(dtype)
        self.sin_S2H = torch.stack([-sin_SH, sin_SH], dim=1).to(dtype)


def product(x_NI: Tensor, site: Site, added_NO: Tensor | None = None) -> Tensor:
    """x W + (x A) B, plus `added`: (N, O)."""
    w, a_GIR = site.w, site.a_GIR
    if w.dim() == 2:
        y = mm(x_NI, w) if added_NO is None else addmm(added_NO, x_NI, w)
    else:
        y = torch.bmm(x_NI.view(w.shape[0], -1, w.shape[1]), w).view(x_NI.shape[0], -1)
        y = y if added_NO is None else y + added_NO
    if a_GIR is None:
        return y
    assert site.b_GRO is not None
    num_chunks = a_GIR.shape[0]
    low = torch.bmm(x_NI.view(num_chunks, -1, x_NI.shape[1]), a_GIR)
    return torch.baddbmm(y.view(num_chunks, -1, y.shape[1]), low, site.b_GRO).view(y.shape)


def normed(x_ND: Tensor, eps: Tensor, weight_D: Tensor | None = None) -> Tensor:
    """RMSNorm (Zhang & Sennrich 2019), in float32 inside. `eps` is a tensor of one element."""
    # Four calls, which take half the time of torch's own rms_norm on the CPU.
    length_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True, dtype=torch.float32)
    factor_N1 = torch.addcmul(eps, length_N1, length_N1, value=1 / x_ND.shape[-1]).rsqrt_()
    y_ND = (x_ND * factor_N1).to(x_ND.dtype)
    return y_ND if weight_D is None else y_ND * weight_D


def step(
    x_BD: Tensor, layers: Sequence[Layer], shape: Shape, places: Sequence[Place], eps: Tensor,
    cos: Tensor, sin: Tensor, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Put one position of every row through the layers; the final norm is not applied.

    `cos` and `sin` are (2, Dh / 2), or (B, 1, 2, Dh / 2) if rows are at different positions; `mask` is added to the
    scores (N, heads per key, S).
    """
    num_rows, group, width, scale = x_BD.shape[0], shape.group, shape.head_dim, shape.head_dim**-0.5
    num_q = shape.num_kv * group
    rotated_end, half = (num_q + shape.num_kv) * width, width // 2
    beta = 0 if mask is None else 1
    mask = eps.to(x_BD.dtype) if mask is None else mask
    softmax_type = None if x_BD.dtype == torch.float32 else torch.float32
    for layer, (key_slot, value_slot, keys_NDS, values_NSD) in zip(layers, places, strict=True):
        qkv = product(normed(x_BD, eps, layer.attention_norm_D), layer.qkv)
        unrotated = torch.unflatten(qkv[:, :rotated_end], 1, (-1, 2, half))
        rotated = torch.addcmul(unrotated * cos, unrotated.flip(2), sin).flatten(2)
        key_slot.copy_(rotated[:, num_q:].reshape(-1, width))
        value_slot.copy_(qkv[:, rotated_end:].reshape(-1, width))
        scores = torch.baddbmm(mask, rotated[:, :num_q].reshape(-1, group, width), keys_NDS, beta=beta, alpha=scale)
        attention = torch.softmax(scores, -1, softmax_type).to(x_BD.dtype)
        x_BD = product(torch.bmm(attention, values_NSD).view(num_rows, -1), layer.out, x_BD)
        gate, up = product(normed(x_BD, eps, layer.mlp_norm_D), layer.gate_up).chunk(2, dim=1)
        x_BD = product(functional.silu(gate).mul_(up), layer.down, x_BD)
    return x_BD


def spread(
    x_BSD: Tensor, layers: Sequence[Layer], shape: Shape, cache: Cache, eps: Tensor,
    cos: Tensor, sin: Tensor, mask_BSS: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Put several positions of every row through at once, into an empty cache's first slots; the last's output (B, D).

    `cos` and `sin` are (S, 2, Dh / 2), or (B, S, 2, Dh / 2). `mask` is True where a position may attend; None is
    causal.
    """
    num_rows, num_positions, width = x_BSD.shape[0], x_BSD.shape[1], shape.head_dim
    num_q = shape.num_kv * shape.group
    keys, values = cache.rows(num_rows)
    cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)
    x_ND = x_BSD.flatten(0, 1)
    for index, layer in enumerate(layers):
        qkv = product(normed(x_ND, eps, layer.attention_norm_D), layer.qkv)
        heads = qkv.view(num_rows, num_positions, -1, 2, width // 2)
        unrotated = heads[:, :, : num_q + shape.num_kv]
        rotated = torch.addcmul(unrotated * cos, unrotated.flip(-2), sin).flatten(-2)
        query, key = rotated[:, :, :num_q].transpose(1, 2), rotated[:, :, num_q:].transpose(1, 2)
        value = heads[:, :, num_q + shape.num_kv :].flatten(-2).transpose(1, 2)
        keys[index, ..., :num_positions] = key.transpose(2, 3)
        values[index, :, :, :num_positions] = value
        is_causal = mask_BSS is None
        if index == len(layers) - 1:
            # In the last layer only the last position's output is needed; it attends to all positions.
            query, is_causal = query[:, :, -1:], False
            mask_BSS = None if mask_BSS is None else mask_BSS[:, -1:]
            x_ND = x_ND.view(num_rows, num_positions, -1)[:, -1]
        attended = functional.scaled_dot_product_attention(
            query, key, value, is_causal=is_causal, enable_gqa=True,
            attn_mask=None if mask_BSS is None else mask_BSS[:, None],
        )  # fmt: skip
        x_ND = product(attended.transpose(1, 2).flatten(2).flatten(0, 1), layer.out, x_ND)
        gate, up = product(normed(x_ND, eps, layer.mlp_norm_D), layer.gate_up).chunk(2, dim=1)
        x_ND = product(functional.silu(gate).mul_(up), layer.down, x_ND)
    return x_ND
