"""EWC on A and B, as is common practice: negative controls, for comparison only.

A fresh adapter has B = 0, so the gradient of A is zero and a Fisher taken there says that A doesn't matter. Only B is
constrained, and only in the directions that A happened to start with: once A turns away, dW is free. Both are in
natural units, so that their weights can be compared with those of the curvatures of dW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from affetto.preserve.curvature.form import Curvature, Factor, clip_gradient

Anchor = tuple[Tensor, float]
"""(A (R, in) of the fresh adapter, scale) of one layer."""


class FactorDiagonal(Curvature):
    """Diagonal Fisher of B at the fresh adapter, per clip: (s · G A0^T)², G being a clip's gradient at the weight."""

    name = "factors"
    is_of_batches: ClassVar[bool] = False

    def __init__(self, anchors: Mapping[str, Anchor] | None = None) -> None:
        super().__init__()
        self.anchors = anchors or {}
        """By site; needed by `update` only, not by a curvature that was loaded."""

    def update(
        self, site: str, clip_ids: Sequence[str], inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]
    ) -> None:
        """Add squared gradients of one layer's B, in float32."""
        a_RI, scale = self.anchors[site]
        gradients_OR = [
            scale * clip_gradient(site, clip_id, inputs_PI, gradients_PO) @ a_RI.float().T
            for clip_id, inputs_PI, gradients_PO in zip(clip_ids, inputs_CPI, gradients_CPO, strict=True)
        ]
        if self.is_of_batches:
            gradients_OR = [torch.stack(gradients_OR).sum(dim=0) / len(gradients_OR) ** 0.5]
        for gradient_OR in gradients_OR:
            self._add("sums", site, gradient_OR.square())

    def form(self, factors: Sequence[Factor], step: int | None = None) -> Tensor:  # noqa: ARG002
        """Sum of F_B · B², nats per code; A is free."""
        terms = []
        for site, _, b_OR, _ in factors:
            assert b_OR is not None, "EWC on A and B is of low-rank adapters"
            terms.append((self.tensors["sums"][site].to(b_OR.dtype) * b_OR.square()).sum())
        return self._per_code() * torch.stack(terms).sum()


class BatchFactorDiagonal(FactorDiagonal):
    """The recipe of `avalanche-lib`'s EWC plugin on LoRA's parameters: the gradient of a batch's loss, squared.

    There the importance is the mean over batches of the squared gradient of the batch's mean loss, with the data's own
    labels (`fisher_kind: empirical`). Here a batch's summed gradient is divided by the root of the number of its clips,
    which gives the units of the other curvatures; the essential difference remains, that the clips of a batch reinforce
    or cancel each other.
    """

    name = "factors_batch"
    is_of_batches = True


CONTROLS: dict[str, type[FactorDiagonal]] = {kind.name: kind for kind in (FactorDiagonal, BatchFactorDiagonal)}
"""By the name that `ewc_curvature` takes in the configuration."""
