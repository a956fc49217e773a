"""A stratified sample of clips, drawn evenly from all speakers and lengths."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from affetto.types import Clip


def spread(clips: Sequence[Clip], num_frames: Mapping[str, int], size: int, seed: str) -> list[Clip]:
    """At most `size` of `clips`, taken in turn from every speaker x duration quartile.

    The choice depends on the clips and `seed`, not on their order; a smaller `size` gives the start of a larger one.
    """
    lengths = sorted(num_frames[clip.id] for clip in clips)
    edges = [lengths[len(lengths) * quarter // 4] for quarter in (1, 2, 3)] if lengths else []
    strata: dict[tuple[str, int], list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: clip.id):
        strata.setdefault((clip.speaker, sum(num_frames[clip.id] >= edge for edge in edges)), []).append(clip)
    draw = random.Random(seed)
    queues = [strata[key] for key in sorted(strata)]
    for queue in queues:
        draw.shuffle(queue)
    chosen: list[Clip] = []
    while len(chosen) < min(size, len(clips)):
        for queue in queues:
            if queue and len(chosen) < size:
                chosen.append(queue.pop())
    return chosen
