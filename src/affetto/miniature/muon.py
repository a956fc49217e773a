"""Muon: momentum with orthogonalised updates, which trains the miniature's small transformers in fewer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from affetto.miniature.products import product_dtype


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for weight matrices (Jordan et al. 2024).

    torch's own runs its Newton-Schulz iteration in bfloat16 on every CPU; this one only if the CPU has units for it.
    """

    def __init__(
        self, matrices: Sequence[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; matrices of equal shape are orthogonalised together."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for weight in group["params"]:
                shapes.setdefault(weight.shape, []).append(weight)
            for weights in shapes.values():
                directions = []
                for weight in weights:
                    state = self.state[weight]
                    velocity = state.setdefault("velocity", torch.zeros_like(weight))
                    assert weight.grad is not None
                    velocity.lerp_(weight.grad, 1 - group["momentum"])
                    directions.append(weight.grad.lerp(velocity, group["momentum"]))
                updates = orthogonalise(torch.stack(directions).to(product_dtype())).float()
                rows, columns = updates.shape[-2:]
                size = group["lr"] * math.sqrt(max(1.0, rows / columns))
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)


def orthogonalise(matrices_NIJ: Tensor) -> Tensor:
    """Approximate orthogonal factors of a stack of matrices: five steps of the quintic Newton-Schulz iteration."""
    tall = matrices_NIJ.shape[-2] > matrices_NIJ.shape[-1]
    x: Tensor = matrices_NIJ.mT if tall else matrices_NIJ
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
