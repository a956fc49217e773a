"""How many rows a network is shown together where that changes nothing but memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from affetto.model.batch import Row

MOST_BYTES = 2**29
"""What the frames of such a batch may take; one row always may."""
MOST_PART_BYTES = 2**28
"""What the frames of a part of a batch may take, where the depth decoder is looked at part by part."""


def rows_at_once(network: Any, rows: Sequence[Row], most: int, *, with_gradient: bool = False) -> int:
    """Up to `most` rows, fewer where the longest of `rows` are so large that as many would take over `MOST_BYTES`.

    The teacher's answers, the Fisher and validation look at every frame of a row, which CSM-1B's depth decoder makes
    32 positions of.
    """
    return frames_at_once(network, max((row.num_frames for row in rows), default=0), most, with_gradient=with_gradient)


def frames_at_once(network: Any, longest: int, most: int, *, with_gradient: bool = False) -> int:
    """`rows_at_once` for rows of up to `longest` frames."""
    if not hasattr(network, "frame_bytes"):
        return most
    needed = longest * int(network.frame_bytes(with_gradient=with_gradient))
    return max(1, min(most, MOST_BYTES // max(1, needed)))


def depth_frames_at_once(network: Any) -> int:
    """How many frames the depth decoder's layers keep for a gradient together."""
    if not hasattr(network, "frame_bytes"):
        return sys.maxsize
    return max(1, MOST_PART_BYTES // max(1, int(network.frame_bytes(with_gradient=True))))
