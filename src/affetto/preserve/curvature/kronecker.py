"""K-FAC (Martens & Grosse 2015): inputs and gradients as independent of each other, positions too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from affetto.preserve.curvature.form import Curvature, Factor, active, check_finite


class Kfac(Curvature):
    """F ≈ C_g ⊗ C_a from second moments over positions: (out, out) and (in, in) per layer."""

    name = "kfac"

    def update(
        self, site: str, clip_ids: Sequence[str], inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]
    ) -> None:
        """Add the second moments of one layer's inputs and gradients, in float32."""
        for clip_id, inputs_PI, gradients_PO in zip(clip_ids, inputs_CPI, gradients_CPO, strict=True):
            kept_PI, kept_PO = active(inputs_PI, gradients_PO)
            inputs_II, gradients_OO = kept_PI.T @ kept_PI, kept_PO.T @ kept_PO
            check_finite(site, clip_id, inputs_II, gradients_OO)
            self._add("inputs", site, inputs_II)
            self._add("gradients", site, gradients_OO)
            self._add("positions", site, torch.tensor([float(len(kept_PI))], device=kept_PI.device))

    def form(self, factors: Sequence[Factor], step: int | None = None) -> Tensor:  # noqa: ARG002
        """dW^T F dW = s² tr[(B^T C_g B)(A C_a A^T)], nats per code: products of rank size only."""
        terms = []
        for site, a_RI, b_OR, scale in factors:
            inputs_II, gradients_OO = (self.tensors[kind][site].to(a_RI.dtype) for kind in ("inputs", "gradients"))
            left_RR = gradients_OO if b_OR is None else b_OR.T @ (gradients_OO @ b_OR)
            right_RR = (a_RI @ inputs_II) @ a_RI.T
            terms.append(scale**2 / self.tensors["positions"][site][0].clamp(min=1.0) * (left_RR * right_RR).sum())
        return self._per_code() * torch.stack(terms).sum()
