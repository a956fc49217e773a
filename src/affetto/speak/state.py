"""What travels between the engine and its arithmetic: the rows that speak, and the batch that they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from affetto.speak.layers import Cache
from affetto.speak.sampling import Sampling
from affetto.speak.sites import Gate
from affetto.speak.weights import Arranged

if TYPE_CHECKING:
    from affetto.speak.captured import Room
    from affetto.speak.generation import Request

SLOTS_OF_A_ROOM, FRAMES_OF_A_ROOM = 256, 128
"""Rooms of captured frames grow in steps of so many slots and frames, that batches of unlike length may share them."""
MOST_OPEN_ROOMS = 4


class Heard(NamedTuple):
    """What one row did in one frame."""

    number: int
    """As `Engine.join` gave it."""
    codes_K: NDArray[np.int64] | None
    """The frame; None where the row ended by itself."""
    is_last: bool
    """Nothing follows. With codes it was the cap that ended the row."""


@dataclass
class SpeakingRow:
    """One request and how far it is."""

    number: int
    request: Request
    gate: Gate
    uniform_TK: Tensor
    num_positions: int
    """In the cache."""
    num_frames: int = 0
    is_done: bool = False


@dataclass
class SpeakingBatch:
    """The rows that speak now and everything that is as wide as they are many."""

    rows: list[SpeakingRow]
    weights: Arranged
    sampling: Sampling
    cache: Cache
    slot: int
    """Where the next position goes; what lies before it is taken."""
    states_BD: Tensor
    """The backbone's last states, from which the next frame is drawn."""
    uniform_BTK: Tensor
    starts_B: Tensor | None
    """First slot of each row; None where all start at 0."""
    mask_N1S: Tensor | None
    depth_cache: Cache
    room: Room | None = None
    """Whose memory the caches and states are, where frames are captured."""
    num_frames: int = 0
    """That the batch has said since it was put together."""
    codes_BK: Tensor = field(default_factory=lambda: torch.zeros(0))
    """The last frame, which the backbone hasn't heard yet; nothing before the first."""

    @property
    def gates(self) -> list[Gate]:
        """Of the rows."""
        return [row.gate for row in self.rows]
