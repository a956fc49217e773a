"""`Frames` in NumPy, on a CPU in float32, sharing memory with the tensors.

It does what `affetto.speak.torch_frames` does, operation by operation. A NumPy call costs a third of a torch call, and
NumPy's BLAS multiplies a single row faster; products of a few µs depend on nothing else (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from affetto.speak.layers import Rotary
from affetto.speak.sampling import Sampling
from affetto.speak.sites import Layer, Site
from affetto.speak.state import SpeakingBatch
from affetto.speak.weights import Shape, SpeakingWeights

Array = NDArray[np.float32]
Codes = NDArray[np.int64]
_Site = tuple[Array, Array | None, Array | None]
_Place = tuple[Array, Array, Array, Array]
"""As `affetto.speak.layers.Place`."""


class NumpyFrames:
    """`affetto.speak.state.Frames` in NumPy."""

    def __init__(self, weights: SpeakingWeights, batch: SpeakingBatch, rotary: Rotary, depth_rotary: Rotary) -> None:
        self.batch = batch
        self.backbone, self.depth = (
            [_sites(layer) for layer in layers] for layers in (batch.weights.backbone, batch.weights.depth)
        )
        self.projector = _site(batch.weights.projector)
        self.backbone_shape, self.depth_shape = weights.backbone_shape, weights.depth_shape
        self.num_codebooks = weights.num_codebooks
        self.offsets_K = np.arange(weights.num_codebooks) * weights.vocab_size
        self.heard_table, self.norm_D = weights.heard_table.detach().numpy(), weights.norm_D.detach().numpy()
        self.spoken_tables = [table.detach().numpy() for table in weights.spoken_tables]
        self.c0_head_DC, self.heads_DC = weights.c0_head_DC.numpy(), [head.numpy() for head in weights.heads_DC]
        self.cos_S2H, self.sin_S2H = rotary.cos_S2H.numpy(), rotary.sin_S2H.numpy()
        self.depth_rotations = list(zip(depth_rotary.cos_S2H.numpy(), depth_rotary.sin_S2H.numpy(), strict=True))
        self.keys_LNDS, self.values_LNSD = batch.cache.keys_LNDS.numpy(), batch.cache.values_LNSD.numpy()
        depth_cache = batch.depth_cache
        self.depth_places = [
            _places(depth_cache.keys_LNDS.numpy(), depth_cache.values_LNSD.numpy(), k)
            for k in range(weights.num_codebooks)
        ]
        self.uniform_BTK = batch.uniform_BTK.numpy()
        # In float64 numbers this far below 1 can't be rounded up to the total, so targets need no upper bound.
        self.draw = NumpySampling(batch.sampling, may_reach_total=bool(self.uniform_BTK.max() > 1 - 2**-20))
        self.starts_B = None if batch.starts_B is None else batch.starts_B.numpy()
        self.mask_N1S = None if batch.mask_N1S is None else batch.mask_N1S.numpy()

    # The exponential of a large number is infinite; SiLU needs that, so NumPy must not warn of it.
    @np.errstate(over="ignore")
    def frame(self) -> Tensor:
        """See `Frames`."""
        shape, layers, pick, projector = self.depth_shape, self.depth, self.draw.pick, self.projector
        states_BD = self.batch.states_BD.numpy()
        uniform_BK = self.uniform_BTK[:, self.batch.num_frames]
        codes_BK = np.empty(uniform_BK.shape, dtype=np.int64)
        codes_BK[:, 0] = pick(np.matmul(states_BD, self.c0_head_DC), uniform_BK[:, :1], 0)
        rotations, places = self.depth_rotations, self.depth_places
        step(product(states_BD, projector), layers, shape, places[0], *rotations[0], needs_output=False)
        for k in range(1, self.num_codebooks):
            x_BD = product(self.spoken_tables[k - 1][codes_BK[:, k - 1]], projector)
            hidden_BD = step(x_BD, layers, shape, places[k], *rotations[k])
            logits_BC = np.matmul(normed(hidden_BD, shape.eps), self.heads_DC[k - 1])
            codes_BK[:, k] = pick(logits_BC, uniform_BK[:, k : k + 1], k)
        return torch.from_numpy(codes_BK)

    @np.errstate(over="ignore")
    def hear(self, codes_BK: Tensor) -> None:
        """See `Frames`."""
        slot, shape, mask = self.batch.slot, self.backbone_shape, None
        x_BD = np.add.reduce(self.heard_table[codes_BK.numpy() + self.offsets_K], axis=1)
        if self.starts_B is None or self.mask_N1S is None:
            cos, sin = self.cos_S2H[slot], self.sin_S2H[slot]
        else:
            positions_B = slot - self.starts_B
            cos, sin = self.cos_S2H[positions_B][:, None], self.sin_S2H[positions_B][:, None]
            mask = self.mask_N1S[..., : slot + 1]
        places = _places(self.keys_LNDS, self.values_LNSD, slot)
        x_BD = step(x_BD, self.backbone, shape, places, cos, sin, mask)
        self.batch.states_BD = torch.from_numpy(normed(x_BD, shape.eps) * self.norm_D)


def step(
    x_BD: Array, layers: Sequence[tuple[_Site, ...]], shape: Shape, places: Sequence[_Place], cos: Array, sin: Array,
    mask: Array | None = None, needs_output: bool = True,
) -> Array:  # fmt: skip
    """`affetto.speak.layers.step`. Without `needs_output` the last layer stops after storing its keys and values."""
    num_rows, group, width, scale = len(x_BD), shape.group, shape.head_dim, np.float32(shape.head_dim**-0.5)
    num_q, last = shape.num_kv * group, len(layers) - 1
    # As few dimensions as possible: for a single row NumPy's time is mostly spent setting up loops.
    lead: tuple[slice, ...] = () if num_rows == 1 else (slice(None),)
    heads = (
        (num_q + 2 * shape.num_kv, 2, width // 2)
        if num_rows == 1
        else (num_rows, num_q + 2 * shape.num_kv, 2, width // 2)
    )
    queries, keys = (*lead, slice(num_q)), (*lead, slice(num_q, None))
    rotating, values = (*lead, slice(num_q + shape.num_kv)), (*lead, slice(num_q + shape.num_kv, None))
    for index, ((qkv_site, out, gate_up, down), place) in enumerate(zip(layers, places, strict=True)):
        key_slot, value_slot, keys_NDS, values_NSD = place
        qkv = product(normed(x_BD, shape.eps), qkv_site).reshape(heads)
        unrotated = qkv[rotating]
        rotated = unrotated * cos
        rotated += unrotated[..., ::-1, :] * sin
        key_slot[...] = rotated[keys].reshape(-1, width)
        value_slot[...] = qkv[values].reshape(-1, width)
        if index == last and not needs_output:
            break
        scores = np.matmul(rotated[queries].reshape(-1, group, width), keys_NDS)
        scores *= scale
        if mask is not None:
            scores += mask
        scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= np.add.reduce(scores, axis=-1, keepdims=True)
        attended = product(np.matmul(scores, values_NSD).reshape(num_rows, -1), out)
        attended += x_BD
        both = product(normed(attended, shape.eps), gate_up)
        gate, up = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
        # SiLU: gate / (1 + exp(-gate)). Below -88 the exponential is infinite and the quotient 0, as it should be.
        share = np.exp(np.negative(gate))
        share += 1
        np.divide(gate, share, out=share)
        share *= up
        x_BD = product(share, down)
        x_BD += attended
    return x_BD


def product(x_NI: Array, site: _Site) -> Array:
    """`affetto.speak.layers.product`."""
    w, a_GIR, b_GRO = site
    if w.ndim == 2:
        y: Array = np.matmul(x_NI, w)
    else:
        y = np.matmul(x_NI.reshape(len(w), -1, w.shape[1]), w).reshape(len(x_NI), -1)
    if a_GIR is not None and b_GRO is not None:
        low = np.matmul(x_NI.reshape(len(a_GIR), -1, x_NI.shape[1]), a_GIR)
        y += np.matmul(low, b_GRO).reshape(y.shape)
    return y


def normed(x_ND: Array, eps: float) -> Array:
    """`affetto.speak.layers.normed`."""
    if len(x_ND) == 1:
        row_D = x_ND[0]
        return x_ND * np.float32(1.0 / math.sqrt(float(row_D.dot(row_D)) / len(row_D) + eps))
    square_N = np.einsum("nd,nd->n", x_ND, x_ND)
    square_N /= x_ND.shape[1]
    square_N += np.float32(eps)
    np.sqrt(square_N, out=square_N)
    scaled_ND: Array = x_ND / square_N[:, None]
    return scaled_ND


@dataclass
class NumpySampling:
    """`affetto.speak.sampling.Sampling` in NumPy."""

    settings: Sampling
    may_reach_total: bool = True
    """Whether a random number may be so close to 1 that its target must be kept below the total."""

    def __post_init__(self) -> None:
        settings = self.settings
        self.warmths = [
            (
                warmth.is_greedy,
                warmth.divisor_B1.numpy(),
                None if warmth.is_greedy_B is None else warmth.is_greedy_B.numpy(),
            )
            for warmth in settings.warmths
        ]
        self.max_top_k = settings.max_top_k
        self.has_top_k_B1, self.last_place_B1 = settings.has_top_k_B1.numpy(), settings.last_place_B1.numpy()

    def pick(self, logits_BC: Array, uniform_B1: Array, book: int) -> Codes:
        """Codebook `book`'s code per row (B,)."""
        is_greedy, divisor_B1, is_greedy_B = self.warmths[book > 0]
        if is_greedy:
            drawn_B: Codes = logits_BC.argmax(axis=1)
            return drawn_B
        scores_BC = logits_BC / divisor_B1
        if self.max_top_k > 0:
            ranked_BC = -np.sort(-scores_BC, axis=1)
            least_B1 = np.take_along_axis(ranked_BC, self.last_place_B1, axis=1)
            scores_BC[self.has_top_k_B1 & (scores_BC < least_B1)] = -np.inf
        scores_BC -= np.maximum.reduce(scores_BC, axis=1, keepdims=True)
        np.exp(scores_BC, out=scores_BC)
        cumulative_BC = np.add.accumulate(scores_BC, axis=1, dtype=np.float64)
        total_B1 = cumulative_BC[:, -1:]
        target_B1 = uniform_B1 * total_B1
        if self.may_reach_total:
            # Below the total and from the right, so that a code of probability zero is never drawn.
            target_B1 = np.minimum(target_B1, np.nextafter(total_B1, 0.0))
        if len(cumulative_BC) == 1:
            drawn_B = cumulative_BC[0].searchsorted(target_B1[0], side="right")
        else:
            # The first place above the target; one past the last if they are NaN.
            drawn_B = cumulative_BC.shape[1] - np.count_nonzero(cumulative_BC > target_B1, axis=1)
        if is_greedy_B is not None:
            drawn_B = np.where(is_greedy_B, logits_BC.argmax(axis=1), drawn_B)
        return drawn_B


def _site(site: Site) -> _Site:
    parts: list[Any] = [None if part is None else part.numpy() for part in (site.w, site.a_GIR, site.b_GRO)]
    return parts[0], parts[1], parts[2]


def _sites(layer: Layer) -> tuple[_Site, ...]:
    return tuple(map(_site, layer.sites))


def _places(keys_LNDS: Array, values_LNSD: Array, slot: int) -> list[_Place]:
    return [
        (keys[:, :, slot], values[:, slot], keys[:, :, : slot + 1], values[:, : slot + 1])
        for keys, values in zip(keys_LNDS, values_LNSD, strict=True)
    ]
