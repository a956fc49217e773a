"""What a curvature takes, told from the layers' shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from affetto.preserve.curvature.sampled import DIRECTIONS_PER_CLIP, PAIRS_PER_CLIP

Shapes = Mapping[str, Sequence[int]]
"""(out, in) of every adapted layer."""


def curvature_bytes(name: str, shapes: Shapes, num_clips: int, rank: int) -> int:
    """Bytes of a curvature of the layers, as `Curvature.site_memory` counts them."""
    if not num_clips:
        return 0
    per_layer = {
        "diagonal": lambda o, i: 4 * o * i,
        "diagonal_positions": lambda o, i: 4 * o * i,
        "rank1": lambda o, i: 4 * (o + i),
        "kfac": lambda o, i: 4 * (o * o + i * i + 1),
        "sketch": lambda o, i: num_clips * PAIRS_PER_CLIP * (2 * (o + i) + 4),
        "full": lambda o, i: num_clips * DIRECTIONS_PER_CLIP * (2 * (o + i) + 4),
        "factors": lambda o, i: 4 * o * rank,  # noqa: ARG005
        "factors_batch": lambda o, i: 4 * o * rank,  # noqa: ARG005
    }
    return sum(per_layer[name](o, i) for o, i in shapes.values())
