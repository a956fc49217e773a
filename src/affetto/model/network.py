"""The interface of every base's network: logits of a batch, and facts about the architecture (docs/bases.md)."""

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
"""Draws the codes (B, K) of step s, counted from 0, from their logits (B, K, C) over the codes that can be spoken."""
Said = tuple[NDArray[np.int64], bool]
"""Codes (T, K) of a row, and whether its cap ended it."""


class Network(nn.Module):
    """The forward pass through a loaded model's own modules and weights; `forward(batch)` gives `Logits`."""

    has_text_stream = False
    """Whether the text runs in parallel with the frames (Moshi) instead of being a prompt before them."""
    end_code = 0
    """The code that fills the frame that ends a turn."""
    text_size = 0
    """Width of the text's logits, with a text stream."""
    least_temperature = 0.0
    """Codes are never drawn at a lower temperature, except greedily."""
    depth_temperature_share = 1.0
    """Default temperature of the codebooks after the first, as a share of the first one's."""

    gates: GateSwitch
    num_codebooks: int
    vocab_size: int
    """Width of a codebook's logits."""
    codebook_size: int
    """Number of the codec's codes; a vocabulary has a few more, such as padding, which can't be decoded."""
    window: int
    """Positions of a row (its text and its frames) that the base can attend to."""
    num_text_ids: int
    """Number of text token ids: the rows of the text's embedding table."""

    def __init__(self, _model: Any) -> None:
        super().__init__()
        self.gates = GateSwitch()

    def prompt(self, text: str, speaker: int) -> str:
        """One turn's text as the base reads it; `speaker` is the data's number."""
        return f"[{speaker}]{text}"

    def room(self, num_ids: int) -> int | None:
        """Frames that fit into the window after a text of `num_ids` tokens; None if the window slides."""
        return max(0, self.window - num_ids)

    def depth_rows(self, batch: Batch) -> Tensor:
        """The batch's row that each row of the depth decoder's input belongs to, if the base has a depth decoder."""
        return batch.depth_frames_M2[:, 0]

    def enable_checkpointing(self) -> None:
        """See `affetto.model.recompute.checkpoint_layers`."""
        raise NotImplementedError

    def speak(self, rows: Sequence[Row], max_frames: Sequence[int], pick: Pick) -> list[Said]:
        """Speak the last turn of each row, whose codes are None, under the row's gate and for up to `max_frames`.

        For CSM and Moshi `affetto.speak` has engines of its own instead.
        """
        raise NotImplementedError


def full_precision(like: Tensor) -> torch.autocast:
    """No autocast on the device of `like`: bfloat16 drowns a KL between close distributions."""
    return torch.autocast(like.device.type, enabled=False)
