"""Where a training batch's predictions stand, as masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from affetto.training.batches import TrainBatch


@dataclass(frozen=True)
class Masks:
    """Over the N frames and M depth frames of a batch."""

    general_N: Tensor
    general_M: Tensor
    ce_M: Tensor
    kl_N: Tensor
    kl_M: Tensor


def masks(made: TrainBatch) -> Masks:
    """Of both streams together, but for which of them is general."""

    def marked(kind: str, size: int, streams: tuple[str, ...] = ("emotion", "rehearsal")) -> Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        for stream in streams:
            mask[getattr(made.places[stream], kind)] = True
        return mask

    frames, depth = len(made.batch.frames_N2), len(made.batch.depth_M)
    general_N = marked("ce_N", frames, ("rehearsal",))
    return Masks(
        general_N, general_N[made.batch.depth_M], marked("ce_M", depth), marked("kl_N", frames), marked("kl_M", depth)
    )
