"""The guide's EWC (Kirkpatrick et al. 2017), with one importance per weight, and two cheaper approximations of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from affetto.model.batch import moved_to
from affetto.preserve.curvature.form import Curvature, Factor, check_finite, clip_gradient

_BLOCK = 1 << 16
"""Number of a layer's weights whose change is computed at once."""


class Diagonal(Curvature):
    """The exact diagonal: a clip's gradient is summed over positions before it is squared.

    So positions of one clip may reinforce or cancel each other.
    """

    name = "diagonal"

    def update(
        self, site: str, clip_ids: Sequence[str], inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]
    ) -> None:
        """Add squared per-clip gradients of one layer, in float32."""
        for clip_id, inputs_PI, gradients_PO in zip(clip_ids, inputs_CPI, gradients_CPO, strict=True):
            self._add("sums", site, clip_gradient(site, clip_id, inputs_PI, gradients_PO).square())

    def form(self, factors: Sequence[Factor], step: int | None = None) -> Tensor:  # noqa: ARG002
        """dW^T F dW, nats per code, a few rows of a layer at a time: a diagonal has no low-rank form."""
        sums = self.tensors["sums"]
        terms = [scale**2 * weighted_square(sums[site], a_RI, b_OR) for site, a_RI, b_OR, scale in factors]
        return self._per_code() * torch.stack(terms).sum()


class PositionDiagonal(Diagonal):
    """The diagonal with a clip's positions taken as independent: one matrix product and no gradient per clip.

    F = sum over positions of g² a², that is (G ∘ G)^T (A ∘ A).
    """

    name = "diagonal_positions"

    def update(
        self, site: str, clip_ids: Sequence[str], inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]
    ) -> None:
        """Add every position's squared gradient, in float32."""
        for clip_id, inputs_PI, gradients_PO in zip(clip_ids, inputs_CPI, gradients_CPO, strict=True):
            squares_OI = gradients_PO.float().square().T @ inputs_PI.float().square()
            check_finite(site, clip_id, squares_OI)
            self._add("sums", site, squares_OI)


class Rank1(Curvature):
    """The diagonal's row and column sums, whose outer product stands for it (as in Adafactor, Shazeer & Stern 2018)."""

    name = "rank1"

    def update(
        self, site: str, clip_ids: Sequence[str], inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]
    ) -> None:
        """Add the squared per-clip gradients' sums over rows and over columns."""
        for clip_id, inputs_PI, gradients_PO in zip(clip_ids, inputs_CPI, gradients_CPO, strict=True):
            squares_OI = clip_gradient(site, clip_id, inputs_PI, gradients_PO).square()
            self._add("rows", site, squares_OI.sum(dim=1))
            self._add("columns", site, squares_OI.sum(dim=0))

    def form(self, factors: Sequence[Factor], step: int | None = None) -> Tensor:  # noqa: ARG002
        """dW^T F dW, nats per code, through products of rank size, of all layers of one shape together."""
        groups: dict[tuple[torch.Size, torch.Size], list[Factor]] = {}
        terms = []
        for factor in factors:
            site, a_RI, b_OR, scale = factor
            if b_OR is not None:
                groups.setdefault((a_RI.shape, b_OR.shape), []).append(factor)
                continue
            rows_O, columns_I = (self.tensors[kind][site].to(a_RI.dtype) for kind in ("rows", "columns"))
            weighted_O = self._shares(rows_O) * (a_RI.square() @ columns_I)
            terms.append(scale**2 * weighted_O.sum())
        return self._per_code() * torch.stack([*terms, *map(self._of_one_shape, groups.values())]).sum()

    def _of_one_shape(self, factors: Sequence[Factor]) -> Tensor:
        """The form of L layers of low rank. One by one, CSM-1B's 140 layers would take thousands of calls, too small to
        keep a GPU busy."""
        sites = [site for site, *_ in factors]
        rows_LO, columns_LI = (
            torch.stack([self.tensors[kind][site] for site in sites]) for kind in ("rows", "columns")
        )
        a_LRI = torch.stack([a_RI for _, a_RI, _, _ in factors])
        b_LOR = torch.stack([b_OR for _, _, b_OR, _ in factors if b_OR is not None])
        scale_L = moved_to(torch.tensor([scale**2 for *_, scale in factors], dtype=a_LRI.dtype), a_LRI.device)
        left_LRR = b_LOR.mT @ (self._shares(rows_LO)[..., None].to(b_LOR.dtype) * b_LOR)
        right_LRR = (a_LRI * columns_LI[:, None].to(a_LRI.dtype)) @ a_LRI.mT
        return (scale_L * (left_LRR * right_LRR).sum(dim=(1, 2))).sum()

    @staticmethod
    def _shares(rows: Tensor) -> Tensor:
        """Each row's share of the total, 0 where nothing was heard: the outer product then has the columns' sums."""
        return rows / rows.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def weighted_square(weights_OI: Tensor, a_RI: Tensor, b_OR: Tensor | None) -> Tensor:
    """Sum of weights * (B A)², differentiable in A and B; B A is computed a block of rows at a time and never kept."""
    if b_OR is None:
        return (weights_OI.to(a_RI.dtype) * a_RI.square()).sum()
    value: Tensor = _WeightedSquare.apply(a_RI, b_OR, weights_OI)  # type: ignore[no-untyped-call]
    return value


class _WeightedSquare(torch.autograd.Function):
    """With its gradients, which need the same blocks: d/dA = 2 B^T G and d/dB = 2 G A^T for G = weights * BA."""

    @staticmethod
    def forward(ctx: Any, a_RI: Tensor, b_OR: Tensor, weights_OI: Tensor) -> Tensor:
        a_RI, b_OR = a_RI.detach(), b_OR.detach()
        size = max(1, _BLOCK // a_RI.shape[1])
        total, grad_a_RI, grad_b_OR = a_RI.new_zeros(()), torch.zeros_like(a_RI), torch.empty_like(b_OR)
        for start in range(0, len(b_OR), size):
            rows = slice(start, start + size)
            change_OI = b_OR[rows] @ a_RI
            weighted_OI = change_OI * weights_OI[rows].to(a_RI.dtype)
            total += (weighted_OI * change_OI).sum()
            grad_a_RI.addmm_(b_OR[rows].T, weighted_OI, alpha=2.0)
            torch.mm(weighted_OI, a_RI.T, out=grad_b_OR[rows])
        ctx.save_for_backward(grad_a_RI, grad_b_OR.mul_(2.0))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_a_RI, grad_b_OR = ctx.saved_tensors
        return grads[0] * grad_a_RI, grads[0] * grad_b_OR, None
