"""Curvatures that keep a sample of the gradients themselves, so that weights needn't be taken as independent.

A penalty from a stored sample can be overfitted: the optimizer finds changes that the sample doesn't see (method.md,
section 2). Many clips with few directions each hold out longer than few clips with many.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from affetto.files import hash_text
from affetto.preserve.curvature.form import Curvature, Factor, active, along, check_finite, clip_gradient

PAIRS_PER_CLIP = 12
PAIRS_PER_STEP = 256
DIRECTIONS_PER_CLIP = 4
CLIPS_PER_STEP = 32
_ITERATIONS = 3
_OVERSAMPLING = 6


class Sketch(Curvature):
    """Pairs (g, a) of single positions: unbiased for a layer's own block if positions are independent.

    Each clip gives up to `PAIRS_PER_CLIP` of its positions, weighted by the number of positions that each stands for.
    """

    name = "sketch"

    def update(
        self, site: str, clip_ids: Sequence[str], inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]
    ) -> None:
        """Keep a draw of each clip's positions, in float16 with a float32 weight."""
        for clip_id, inputs_PI, gradients_PO in zip(clip_ids, inputs_CPI, gradients_CPO, strict=True):
            kept_PI, kept_PO = active(inputs_PI, gradients_PO)
            check_finite(site, clip_id, kept_PI, kept_PO)
            places = _generator("pairs", site, clip_id).permutation(len(kept_PI))[:PAIRS_PER_CLIP]
            inputs_NI, gradients_NO = kept_PI[places], kept_PO[places]
            sizes_N = gradients_NO.norm(dim=1) * inputs_NI.norm(dim=1)
            self._append("inputs", site, _unit(inputs_NI))
            self._append("gradients", site, _unit(gradients_NO))
            self._append("weights", site, sizes_N.square() * (len(kept_PI) / max(1, len(places))))

    def form(self, factors: Sequence[Factor], step: int | None = None) -> Tensor:
        """dW^T F dW = s² sum of w [(B^T g)·(A a)]², nats per code."""
        changes, weights = [], []
        for site, a_RI, b_OR, scale in factors:
            kept = self.tensors["weights"][site]
            chosen_N, share = _subset(len(kept), PAIRS_PER_STEP, step, kept.device)
            gradients_NO, inputs_NI, weights_N = (
                self.tensors[kind][site].index_select(0, chosen_N).to(a_RI.dtype)
                for kind in ("gradients", "inputs", "weights")
            )
            changes.append((along(gradients_NO, b_OR) * (inputs_NI @ a_RI.T)).sum(dim=1))
            weights.append(scale**2 / share * weights_N)
        return self._per_code() * torch.cat(changes).square().dot(torch.cat(weights))


class Full(Curvature):
    """Every clip's gradient over all layers and positions at once, by its leading singular directions per layer.

    The change of a clip's log likelihood is summed over layers and positions before it is squared. Sampled labels
    make the per-code scores a martingale difference, so E[d²] is the sum over codes: an unbiased estimate of the whole
    Fisher's form, cross-layer and cross-position terms included, but for what the truncation leaves out.
    """

    name = "full"

    def update(
        self, site: str, clip_ids: Sequence[str], inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]
    ) -> None:
        """Keep `DIRECTIONS_PER_CLIP` singular directions of each clip's gradient, in float16 with float32 values."""
        clips = zip(clip_ids, inputs_CPI, gradients_CPO, strict=True)
        gradients_COI = torch.stack([clip_gradient(site, *clip) for clip in clips])
        start = _generator("directions", site)
        left_CKO, values_CK, right_CKI = _leading_directions(gradients_COI, DIRECTIONS_PER_CLIP, start)
        self._append("left", site, left_CKO.half())
        self._append("values", site, values_CK)
        self._append("right", site, right_CKI.half())

    def form(self, factors: Sequence[Factor], step: int | None = None) -> Tensor:
        """dW^T F dW = sum over clips of (sum over layers of s <gradient, B A>)², nats per code."""
        values_CK = next(iter(self.tensors["values"].values()))
        chosen_C, share = _subset(len(values_CK), CLIPS_PER_STEP, step, values_CK.device)
        changes = []
        for site, a_RI, b_OR, scale in factors:
            left_CKO, right_CKI, values_CK = (
                self.tensors[kind][site].index_select(0, chosen_C).to(a_RI.dtype)
                for kind in ("left", "right", "values")
            )
            moved_CK = (along(left_CKO, b_OR) * (right_CKI @ a_RI.T)).sum(dim=-1)
            changes.append(scale * (values_CK * moved_CK).sum(dim=1))
        return self._per_code() / share * torch.stack(changes).sum(dim=0).square().sum()


def _leading_directions(matrices_COI: Tensor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular vectors (C, K, out), values (C, K) and vectors (C, K, in), by subspace iteration from one start.

    Halko, Martinsson & Tropp 2011, algorithm 4.4. A layer smaller than `count` is padded with zeros.
    """
    num_clips, out, into = matrices_COI.shape
    width = min(count + _OVERSAMPLING, out, into)
    # Basis vectors are rows: a thin matrix times a wide one is several times faster than the reverse.
    start_WI = torch.from_numpy(rng.standard_normal((width, into))).to(matrices_COI)
    left_CWO = _orthonormal(start_WI.expand(num_clips, -1, -1) @ matrices_COI.mT)
    for _ in range(_ITERATIONS):
        left_CWO = _orthonormal(_orthonormal(left_CWO @ matrices_COI) @ matrices_COI.mT)
    basis_CIW, small_CWW = torch.linalg.qr((left_CWO @ matrices_COI).mT)
    turn_CWW, values_CW, other_CWW = torch.linalg.svd(small_CWW)
    left_CKO, right_CKI = (matrices_COI.new_zeros(num_clips, count, size) for size in (out, into))
    values_CK, kept = matrices_COI.new_zeros(num_clips, count), min(count, width)
    left_CKO[:, :kept] = (other_CWW @ left_CWO)[:, :kept]
    right_CKI[:, :kept] = (basis_CIW @ turn_CWW).mT[:, :kept]
    values_CK[:, :kept] = values_CW[:, :kept]
    return left_CKO, values_CK, right_CKI


def _orthonormal(rows_CWN: Tensor) -> Tensor:
    basis_CNW: Tensor = torch.linalg.qr(rows_CWN.mT)[0]
    return basis_CNW.mT.contiguous()


def _unit(vectors_ND: Tensor) -> Tensor:
    """Directions in float16, whose range the lengths would leave."""
    return torch.nn.functional.normalize(vectors_ND, dim=1, eps=torch.finfo(torch.float32).tiny).half()


@lru_cache(maxsize=4)
def _subset(total: int, most: int, step: int | None, device: torch.device) -> tuple[Tensor, float]:
    """Which items to take, on `device`, and which share of all they are; the same for every layer of a step."""
    if step is None or total <= most:
        return torch.arange(total, device=device), 1.0
    return torch.from_numpy(_generator("step", str(step)).permutation(total)[:most]).to(device), most / total


def _generator(*names: str) -> np.random.Generator:
    """Its own draws for every clip and layer, whatever the batches."""
    return np.random.default_rng(int(hash_text(*names)[:15], 16))
