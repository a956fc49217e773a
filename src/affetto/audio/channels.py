"""Two-channel files: either each channel is one speaker of a dialogue, or both hold the same sound."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from affetto.audio.sound import read_sound, sound_info
from affetto.types import Clip

_RATE, _FRAME = 8000, 640
"""Hz, and samples of 80 ms."""
SAME_SOUND = 0.9
"""Channels whose frame levels correlate at least this much are the same sound. Speakers who take turns are below 0;
two channels of one speaker's recording are above 0.99 even if their phases differ."""


def channel_use(clip: Clip) -> Literal["one", "same", "two"]:
    """What the channels of a clip's file are: `two` speakers, the `same` sound twice, or `one` sound.

    Files with more than two channels, and clips that name a channel, count as one sound. Raises `SoundError` as
    `read_sound` does.
    """
    if clip.channel is not None or sound_info(clip.audio).channels != 2:
        return "one"
    first_N, second_N = (
        read_sound(clip.audio, _RATE, start_s=clip.start_s, end_s=clip.end_s, channel=channel) for channel in (1, 2)
    )
    return "same" if is_same_sound(first_N, second_N) else "two"


def is_same_sound(first_N: NDArray[np.floating], second_N: NDArray[np.floating]) -> bool:
    """Whether two channels at 8 kHz rise and fall together; a channel of constant level counts as a silent speaker."""
    levels = [_levels(sound_N) for sound_N in (first_N, second_N)]
    if min(len(levels[0]), len(levels[1])) < 2 or min(level.std() for level in levels) < 1e-9:
        return False
    return bool(np.corrcoef(levels[0], levels[1])[0, 1] >= SAME_SOUND)


def _levels(sound_N: NDArray[np.floating]) -> NDArray[np.float64]:
    """Root mean square of every frame."""
    frames = np.asarray(sound_N[: len(sound_N) // _FRAME * _FRAME], dtype=np.float64).reshape(-1, _FRAME)
    return np.asarray(np.sqrt((frames**2).mean(axis=1)))
