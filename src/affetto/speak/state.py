"""The state that the engine shares with its arithmetic: the rows that speak, and their batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from affetto.speak.layers import Cache
from affetto.speak.requests import Request
from affetto.speak.sampling import Sampling
from affetto.speak.sites import Gate
from affetto.speak.weights import Arranged

if TYPE_CHECKING:
    from affetto.speak.captured_frames import Room

SLOTS_OF_A_ROOM, FRAMES_OF_A_ROOM = 256, 128
"""A `Room` of captured frames has a multiple of these, so that batches of similar lengths can use the same one."""
MOST_OPEN_ROOMS = 4
"""Most rooms that are kept for later batches."""


class Heard(NamedTuple):
    """What one row said in one frame."""

    number: int
    """The row's number, from `Engine.join`."""
    codes_K: NDArray[np.int64] | None
    """The frame; None if the row ended by itself."""
    is_last: bool
    """Whether nothing follows; if there is a frame, the frame cap ended the row."""


@dataclass
class SpeakingRow:
    """One request and its progress."""

    number: int
    request: Request
    gate: Gate
    uniform_TK: Tensor
    num_positions: int
    """Number of its positions in the cache."""
    num_frames: int = 0
    is_done: bool = False


@dataclass
class SpeakingBatch:
    """The rows that speak now, and every tensor with a row for each of them."""

    rows: list[SpeakingRow]
    weights: Arranged
    sampling: Sampling
    cache: Cache
    slot: int
    """The slot of the next position; all slots before it are taken."""
    states_BD: Tensor
    """The backbone's last states, from which the next frame is drawn."""
    uniform_BTK: Tensor
    starts_B: Tensor | None
    """First slot of each row; None if all start at 0."""
    mask_N1S: Tensor | None
    depth_cache: Cache
    room: Room | None = None
    """With captured frames, the room that the caches and states belong to."""
    num_frames: int = 0
    """Frames since the batch was put together."""
    codes_BK: Tensor = field(default_factory=lambda: torch.zeros(0))
    """The last frame, which the backbone hasn't read yet; empty before the first."""

    @property
    def gates(self) -> list[Gate]:
        """The gates of the rows."""
        return [row.gate for row in self.rows]


class Frames(Protocol):
    """Computes the frames of one batch."""

    def frame(self) -> Tensor:
        """All codebooks (B, K) of the next frame, drawn from the backbone's last states."""
        ...

    def hear(self, codes_BK: Tensor) -> None:
        """Let the backbone read a frame into the batch's next slot; its new states give the next frame."""
        ...
