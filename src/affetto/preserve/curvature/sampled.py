"""Curvatures that keep a sample of the gradients themselves, so that nothing is assumed between weights.

As a penalty a stored sample can be overfitted: the optimizer finds the changes that it doesn't see (method.md, section
2). Many clips with few directions hold longer than the reverse.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Pairs (g, a) of single positions: unbiased for a layer's own block with positions taken as independent.

    Each clip gives up to `PAIRS_PER_CLIP` of its positions, weighted by how many each stands for.
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
        terms = []
        for site, a_RI, b_OR, scale in factors:
            weights_N = self.tensors["weights"][site]
            chosen_N, share = _subset(len(weights_N), PAIRS_PER_STEP, "pairs", site, step)
            gradients_NO, inputs_NI = (self.tensors[kind][site][chosen_N] for kind in ("gradients", "inputs"))
            changes_N = (along(gradients_NO.to(a_RI.dtype), b_OR) * (inputs_NI.to(a_RI.dtype) @ a_RI.T)).sum(dim=1)
            terms.append(scale**2 / share * (weights_N[chosen_N].to(a_RI.dtype) * changes_N.square()).sum())
        return self._per_code() * torch.stack(terms).sum()


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
        for clip_id, inputs_PI, gradients_PO in zip(clip_ids, inputs_CPI, gradients_CPO, strict=True):
            gradient_OI = clip_gradient(site, clip_id, inputs_PI, gradients_PO)
            start = _generator("directions", site, clip_id)
            left_KO, values_K, right_KI = _leading_directions(gradient_OI, DIRECTIONS_PER_CLIP, start)
            self._append("left", site, left_KO.half()[None])
            self._append("values", site, values_K[None])
            self._append("right", site, right_KI.half()[None])

    def form(self, factors: Sequence[Factor], step: int | None = None) -> Tensor:
        """dW^T F dW = sum over clips of (sum over layers of s <gradient, B A>)², nats per code."""
        num_clips = len(next(iter(self.tensors["values"].values())))
        chosen_C, share = _subset(num_clips, CLIPS_PER_STEP, "clips", "", step)
        changes = []
        for site, a_RI, b_OR, scale in factors:
            left_CKO, right_CKI, values_CK = (
                self.tensors[kind][site][chosen_C].to(a_RI.dtype) for kind in ("left", "right", "values")
            )
            moved_CK = (along(left_CKO, b_OR) * (right_CKI @ a_RI.T)).sum(dim=-1)
            changes.append(scale * (values_CK * moved_CK).sum(dim=1))
        return self._per_code() / share * torch.stack(changes).sum(dim=0).square().sum()


def _leading_directions(matrix_OI: Tensor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular vectors (K, out), values (K,) and vectors (K, in), by subspace iteration (Halko et al. 2011).

    A layer smaller than `count` gets zeros in the places that are left.
    """
    width = min(count + _OVERSAMPLING, *matrix_OI.shape)
    start = torch.from_numpy(rng.standard_normal((matrix_OI.shape[1], width))).to(matrix_OI)
    basis_OW, _ = torch.linalg.qr(matrix_OI @ start)
    for _ in range(_ITERATIONS):
        other_IW, _ = torch.linalg.qr(matrix_OI.T @ basis_OW)
        basis_OW, _ = torch.linalg.qr(matrix_OI @ other_IW)
    small_WW, values_W, right_WI = torch.linalg.svd(basis_OW.T @ matrix_OI, full_matrices=False)
    left_WO, kept = (basis_OW @ small_WW).T, min(count, width)
    left_KO, right_KI = (matrix_OI.new_zeros(count, size) for size in matrix_OI.shape)
    values_K = matrix_OI.new_zeros(count)
    left_KO[:kept], right_KI[:kept], values_K[:kept] = left_WO[:kept], right_WI[:kept], values_W[:kept]
    return left_KO, values_K, right_KI


def _unit(vectors_ND: Tensor) -> Tensor:
    """Directions in float16, whose range the lengths would leave."""
    return torch.nn.functional.normalize(vectors_ND, dim=1, eps=torch.finfo(torch.float32).tiny).half()


def _subset(total: int, most: int, kind: str, site: str, step: int | None) -> tuple[Tensor, float]:
    """Which items to take, and which share of all they are."""
    if step is None or total <= most:
        return torch.arange(total), 1.0
    return torch.from_numpy(_generator(kind, site, str(step)).permutation(total)[:most]), most / total


def _generator(*names: str) -> np.random.Generator:
    """Its own draws for every clip and layer, whatever the batches."""
    return np.random.default_rng(int(hash_text(*names)[:15], 16))
