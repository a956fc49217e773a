"""What every base's network gives: logits of a batch, and what everything else has to know of it (docs/bases.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from affetto.model.batch import Batch, Row
from affetto.model.gates import GateSwitch

Pick = Callable[[Tensor, int], Tensor]
"""Codes (B, K) of step s, counted from 0, from their logits (B, K, C) over the codes that can be spoken."""
Said = tuple[NDArray[np.int64], bool]
"""Codes (T, K) of a row, and whether it was its cap that ended them."""


class Network(nn.Module):
    """The road through a loaded model: its own modules and weights, `forward(batch)` gives `Logits`."""

    has_text_stream = False
    """Whether the text is what is said, beside the frames (Moshi), and not a prompt before them."""
    end_code = 0
    """What the frame that ends a turn is made of."""
    text_size = 0
    """Width of the text's logits, where it runs beside the frames."""
    least_temperature = 0.0
    """Below it codes are never drawn, unless greedily."""
    depth_temperature_share = 1.0
    """Of the temperature, what codebooks behind the first are drawn at, unless somebody says otherwise."""

    gates: GateSwitch
    num_codebooks: int
    vocab_size: int
    """Width of a codebook's logits."""
    codebook_size: int
    """Codes that the codec knows; a vocabulary has a few more, such as padding, which nothing can speak."""
    window: int
    """Positions of a row (its text and its frames) that the base can look back over."""
    num_text_ids: int
    """Ids that the text may have: its table has a row for each of them."""

    def __init__(self, _model: Any) -> None:
        super().__init__()
        self.gates = GateSwitch()

    def prompt(self, text: str, speaker: int) -> str:
        """One turn's text as the base reads it; `speaker` is the data's number."""
        return f"[{speaker}]{text}"

    def room(self, num_ids: int) -> int | None:
        """Frames that the window has room for after a text of so many ids; None where it moves on without end."""
        return max(0, self.window - num_ids)

    def depth_rows(self, batch: Batch) -> Tensor:
        """Which row of the batch each row that the depth decoder's layers see belongs to, where the base has one."""
        return batch.depth_frames_M2[:, 0]

    def enable_checkpointing(self) -> None:
        """See `affetto.model.recompute.checkpoint_layers`."""
        raise NotImplementedError

    def speak(self, rows: Sequence[Row], max_frames: Sequence[int], pick: Pick) -> list[Said]:
        """Speak the last turn of each row, whose codes are None, under the row's gate and for up to `max_frames`.

        CSM and Moshi are spoken with by `affetto.speak`'s own engines instead.
        """
        raise NotImplementedError


def full_precision(like: Tensor) -> torch.autocast:
    """No autocast on the device of `like`: bfloat16 drowns a KL between close distributions."""
    return torch.autocast(like.device.type, enabled=False)
