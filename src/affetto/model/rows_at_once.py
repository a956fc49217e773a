"""How many rows to run through a network together when that affects nothing but memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from affetto.model.batch import Row

MOST_BYTES = 2**29
"""Memory limit for the frames of such a batch; a single row may exceed it."""
MOST_PART_BYTES = 2**28
"""Memory limit for the frames of a part of a batch, when the depth decoder runs part by part."""


def rows_at_once(network: Any, rows: Sequence[Row], most: int, *, with_gradient: bool = False) -> int:
    """Up to `most` rows, fewer if that many of the longest of `rows` would exceed `MOST_BYTES`.

    The teacher's answers, the Fisher and validation need every frame of a row, and each frame is 32 positions in
    CSM-1B's depth decoder.
    """
    return frames_at_once(network, max((row.num_frames for row in rows), default=0), most, with_gradient=with_gradient)


def frames_at_once(network: Any, longest: int, most: int, *, with_gradient: bool = False) -> int:
    """`rows_at_once` for rows of up to `longest` frames."""
    if not hasattr(network, "frame_bytes"):
        return most
    needed = longest * int(network.frame_bytes(with_gradient=with_gradient))
    return max(1, min(most, MOST_BYTES // max(1, needed)))


def depth_frames_at_once(network: Any) -> int:
    """How many frames may run through the depth decoder's layers together with a gradient."""
    if not hasattr(network, "frame_bytes"):
        return sys.maxsize
    return max(1, MOST_PART_BYTES // max(1, int(network.frame_bytes(with_gradient=True))))
