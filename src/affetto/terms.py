"""Loss terms: sums and counts, divided once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from affetto.model.batch import Batch, Logits


@dataclass(frozen=True)
class LossTerm:
    """A sum in nats over `count` predicted codes."""

    total: Tensor
    """Scalar, float32, differentiable."""
    count: int

    @property
    def mean(self) -> Tensor:
        """Nats per code; 0 where nothing was predicted."""
        return self.total / max(self.count, 1)

    def __add__(self, other: LossTerm) -> LossTerm:
        return LossTerm(self.total + other.total, self.count + other.count)

    @staticmethod
    def zero(device: torch.device | str = "cpu") -> LossTerm:
        """The empty term."""
        return LossTerm(torch.zeros((), device=device), 0)


def cross_entropy(logits: Tensor, targets: Tensor) -> LossTerm:
    """Summed negative log likelihood of `targets` (…) under logits (…, V), in float32."""
    total = functional.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="sum")
    return LossTerm(total, targets.numel())


def code_losses(logits: Logits, batch: Batch) -> tuple[LossTerm, LossTerm]:
    """(codebook zero over N frames, codebooks 1..K-1 over M frames) of a batch."""
    c0 = cross_entropy(logits.c0_NV, batch.c0_targets_N)
    return c0, cross_entropy(logits.depth_MJV, batch.depth_targets_MJ)
