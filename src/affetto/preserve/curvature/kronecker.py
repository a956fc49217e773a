"""K-FAC (Martens & Grosse 2015): inputs and gradients are taken as independent of each other, and positions, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from affetto.native.compiler import MOST_MATRIX_BYTES, library
from affetto.native.functional import mm
from affetto.native.products import KroneckerSquare, kronecker_squares
from affetto.preserve.curvature.form import Curvature, Factor, active, check_finite


class Kfac(Curvature):
    """F ≈ C_g ⊗ C_a from second moments over positions: (out, out) and (in, in) per layer."""

    name = "kfac"

    def update(
        self, site: str, clip_ids: Sequence[str], inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]
    ) -> None:
        """Add the second moments of one layer's inputs and gradients, in float32."""
        # Positions just add up, so one product does for all clips.
        inputs_PI, gradients_PO = active(torch.cat(list(inputs_CPI)), torch.cat(list(gradients_CPO)))
        inputs_II, gradients_OO = mm(inputs_PI.T, inputs_PI), mm(gradients_PO.T, gradients_PO)
        # By Cauchy-Schwarz no second moment exceeds the larger of its two on the diagonal.
        if not (torch.isfinite(inputs_II.diagonal()).all() and torch.isfinite(gradients_OO.diagonal()).all()):
            for clip_id, *pair in zip(clip_ids, inputs_CPI, gradients_CPO, strict=True):
                check_finite(site, clip_id, *(values.T @ values for values in active(*pair)))
            check_finite(site, ", ".join(clip_ids), inputs_II, gradients_OO)
        self._add("inputs", site, inputs_II)
        self._add("gradients", site, gradients_OO)
        self._add("positions", site, torch.tensor([float(len(inputs_PI))], device=inputs_PI.device))

    def form(self, factors: Sequence[Factor], step: int | None = None) -> Tensor:  # noqa: ARG002
        """dW^T F dW = s² tr[(B^T C_g B)(A C_a A^T)], nats per code: products of rank size only."""
        if self._suits_c(factors):
            return self._per_code() * self._form_in_c(factors)
        terms = []
        for site, a_RI, b_OR, scale in factors:
            inputs_II, gradients_OO = (moments.to(a_RI.dtype) for moments in self._second_moments(site))
            if b_OR is None:
                value = (gradients_OO * ((a_RI @ inputs_II) @ a_RI.T)).sum()
            else:
                value = _KroneckerSquare.apply(a_RI, b_OR, inputs_II, gradients_OO)  # type: ignore[no-untyped-call]
            terms.append(scale**2 / self.tensors["positions"][site][0].clamp(min=1.0) * value)
        return self._per_code() * torch.stack(terms).sum()

    def _suits_c(self, factors: Sequence[Factor]) -> bool:
        """Whether all layers are of low rank and narrow, in float32, on a CPU that has a compiler."""
        is_known = library("products") is not None and not is_in_torch_dispatch_mode()
        return is_known and all(
            b_OR is not None
            and len(a_RI) > 0
            and all(_is_plain(one) for one in (a_RI, b_OR, *self._second_moments(site)))
            and max(moments.numel() for moments in self._second_moments(site)) * 4 <= MOST_MATRIX_BYTES
            for site, a_RI, b_OR, _ in factors
        )

    def _second_moments(self, site: str) -> tuple[Tensor, Tensor]:
        """(I, I) of a layer's inputs and (O, O) of its gradients."""
        return self.tensors["inputs"][site], self.tensors["gradients"][site]

    def _form_in_c(self, factors: Sequence[Factor]) -> Tensor:
        squares = []
        for site, a_RI, b_OR, scale in factors:
            assert b_OR is not None
            weight = scale**2 / max(1.0, float(self.tensors["positions"][site][0]))
            squares.append(KroneckerSquare(a_RI.detach(), b_OR.detach(), *self._second_moments(site), weight))
        flat = [factor for _, *pair, _ in factors for factor in pair]
        value: Tensor = _KroneckerSquares.apply(squares, *flat)  # type: ignore[no-untyped-call]
        return value


class _KroneckerSquare(torch.autograd.Function):
    """tr[(B^T G B)(A C A^T)] with its gradients, which need the same wide products: 2 (B^T G B) A C and 2 G B A C A^T.

    G and C are symmetric. Autograd would compute their products three times.
    """

    @staticmethod
    def forward(ctx: Any, a_RI: Tensor, b_OR: Tensor, inputs_II: Tensor, gradients_OO: Tensor) -> Tensor:
        a_RI, b_OR = a_RI.detach(), b_OR.detach()
        right_RI, left_OR = mm(a_RI, inputs_II), mm(gradients_OO, b_OR)
        left_RR, right_RR = b_OR.T @ left_OR, right_RI @ a_RI.T
        ctx.save_for_backward(2.0 * left_RR @ right_RI, 2.0 * left_OR @ right_RR)
        return (left_RR * right_RR).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_a_RI, grad_b_OR = ctx.saved_tensors
        return grads[0] * grad_a_RI, grads[0] * grad_b_OR, None, None


class _KroneckerSquares(torch.autograd.Function):
    """The same of all layers in one call, with their gradients."""

    @staticmethod
    def forward(ctx: Any, squares: Sequence[KroneckerSquare], *factors: Tensor) -> Tensor:
        value, grads = kronecker_squares(squares)
        ctx.save_for_backward(*grads)
        return factors[0].new_tensor(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch._foreach_mul(ctx.saved_tensors, grads[0])


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
    )
