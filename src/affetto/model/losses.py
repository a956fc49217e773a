"""Loss terms: sums and counts, divided once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from affetto.model.batch import Batch, Logits


@dataclass(frozen=True)
class LossTerm:
    """A loss as a sum in nats over `count` predicted codes."""

    total: Tensor
    """Scalar, float32, differentiable."""
    count: float

    @property
    def mean(self) -> Tensor:
        """Nats per code; 0 if nothing was predicted."""
        return self.total / max(self.count, 1)

    def __add__(self, other: LossTerm) -> LossTerm:
        return LossTerm(self.total + other.total, self.count + other.count)

    def beside(self, other: LossTerm) -> LossTerm:
        """This term plus `other`, with this term's count, so that the parallel text's loss is per code, too."""
        return LossTerm(self.total + other.total, self.count)

    @staticmethod
    def zero(device: torch.device | str = "cpu") -> LossTerm:
        """The empty term."""
        return LossTerm(torch.zeros((), device=device), 0)


def cross_entropy(logits: Tensor, targets: Tensor) -> LossTerm:
    """Summed negative log likelihood of `targets` (…) under logits (…, V), in float32."""
    total = functional.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="sum")
    return LossTerm(total, targets.numel())


def text_loss(logits: Logits, batch: Batch, places_N: Tensor | None = None) -> LossTerm:
    """Weighted negative log likelihood of the text in parallel with the frames (those at `places_N`, or all).

    The count is the sum of the weights. The term is empty if the base reads its text before the frames.
    """
    if logits.text_NW is None:
        return LossTerm.zero(logits.c0_NV.device)
    chosen = [logits.text_NW, batch.text_targets_N, batch.text_weights_N]
    if places_N is not None:
        chosen = [values.index_select(0, places_N) for values in chosen]
    logits_NW, targets_N, weights_N = chosen
    losses_N = functional.cross_entropy(logits_NW.float(), targets_N, reduction="none")
    return LossTerm((losses_N * weights_N).sum(), float(weights_N.sum()))


def code_losses(logits: Logits, batch: Batch) -> tuple[LossTerm, LossTerm]:
    """(codebook zero over N frames, codebooks 1..K-1 over M frames) of a batch."""
    c0 = cross_entropy(logits.c0_NV, batch.c0_targets_N)
    return c0, cross_entropy(logits.depth_MJV, batch.depth_targets_MJ)
