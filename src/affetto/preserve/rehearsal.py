"""Rehearsal: a fixed, stratified buffer of general clips that is mixed into every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from affetto.audio.stratified import spread
from affetto.errors import DataError
from affetto.types import Clip


def rehearsal_buffer(clips: Sequence[Clip], num_frames: Mapping[str, int], size: int, seed: int) -> list[Clip]:
    """At most `size` general training clips, spread evenly over speakers and lengths; the same for the same `seed`.

    `num_frames` gives each clip's length. Raises DataError if a clip is emotional or not for training.
    """
    for clip in clips:
        if clip.emotion is not None or clip.split != "train":
            kind = f"{clip.emotion or 'general'} speech of split {clip.split}"
            raise DataError(f"{clip.id} can't be rehearsed: it is {kind}; give general clips of split train")
    return spread(clips, num_frames, size, f"rehearsal/{seed}")
