"""Voice activity and pauses of a recording, from energy alone.

Frames last 10 ms and don't overlap; a frame is silent if its power is 40 dB below the 95th percentile of all frames, or
below -70 dBFS. Recordings whose noise is louder than that have no pauses by this measure. Times are exact to one frame.

The idea is the active speech level of ITU-T P.56 (2011): the level over active frames, with a threshold relative to it.
P.56's method B smooths an envelope, puts the threshold 15.9 dB below the level and counts the 200 ms after every sound
as active; here frames are independent and the threshold is far lower, so soft sounds count and short pauses are seen.
`level_db` isn't comparable with P.56's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAME_S = 0.01
RELATIVE_DB = -40.0
FLOOR_DB = -70.0
MIN_PAUSE_S = 0.1
"""Shorter silences are stop consonants, not pauses."""
METRICS = ("level_db", "pause_share", "longest_silence_s")
"""The values that enter the results."""


@dataclass(frozen=True)
class Activity:
    """When a recording is active, and how loud."""

    start_s: float
    """Start of the first sound."""
    end_s: float
    """End of the last sound."""
    level_db: float
    """RMS of the active frames, dB re full scale (a full-scale sine has -3)."""
    pause_share: float
    """Silences of at least `MIN_PAUSE_S`, as a share of the time between first and last sound."""
    longest_silence_s: float
    """Longest silence between first and last sound; 0 if there is none."""

    def to_values(self) -> dict[str, float | None]:
        """`METRICS` by their names in the results."""
        return {name: getattr(self, name) for name in METRICS}


def validate(samples: NDArray[np.floating], sample_rate: int) -> None:
    """Raise ValueError if samples aren't mono (N,), floating-point and finite, or the rate isn't positive."""
    if samples.ndim != 1:
        raise ValueError(f"samples must be mono, shape (num_samples,), not {samples.shape}; average or pick channels")
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"samples must be floats, 1 being full scale, not {samples.dtype}; divide by its full scale")
    if num_bad := np.count_nonzero(~np.isfinite(samples)):
        raise ValueError(f"{num_bad} of {len(samples)} samples are NaN or infinite; render the sound again")
    if not 0 < sample_rate < np.inf:
        raise ValueError(f"the sample rate must be a positive number of Hz, not {sample_rate}; take the file's")


def evaluate(samples: NDArray[np.floating], sample_rate: int) -> dict[str, float | None]:
    """`METRICS` of mono samples, all None if no frame is active; ValueError as in `validate`."""
    activity = find_activity(samples, sample_rate)
    return dict.fromkeys(METRICS) if activity is None else activity.to_values()


def find_activity(samples: NDArray[np.floating], sample_rate: int) -> Activity | None:
    """Activity of mono samples, None if no frame is active; ValueError as in `validate`."""
    validate(samples, sample_rate)
    frame = _frame(sample_rate)
    power = _frame_power(samples, frame)
    is_active = _active(power)
    if not is_active.any():
        return None
    first, last = np.flatnonzero(is_active)[[0, -1]]
    silences_s = _run_lengths(~is_active[first : last + 1]) * (frame / sample_rate)
    span_s = (last + 1 - first) * frame / sample_rate
    return Activity(
        start_s=float(first * frame / sample_rate),
        end_s=float((last + 1) * frame / sample_rate),
        level_db=float(10 * np.log10(power[is_active].mean())),
        pause_share=float(silences_s[silences_s >= MIN_PAUSE_S - 1e-9].sum() / span_s),
        longest_silence_s=float(silences_s.max(initial=0.0)),
    )


def sounding_frames(samples: NDArray[np.floating], sample_rate: int) -> NDArray[np.bool_]:
    """Which frames (T,) of `FRAME_S` are active, without a last partial one. ValueError as in `validate`."""
    validate(samples, sample_rate)
    return _active(_frame_power(samples, _frame(sample_rate)))


def _frame(sample_rate: int) -> int:
    return max(1, round(FRAME_S * sample_rate))


def _frame_power(samples: NDArray[np.floating], frame: int) -> NDArray[np.float64]:
    whole = samples[: len(samples) // frame * frame].astype(np.float64).reshape(-1, frame)
    power: NDArray[np.float64] = np.mean(whole**2, axis=1)
    return power


def _active(power_T: NDArray[np.float64]) -> NDArray[np.bool_]:
    if not len(power_T):
        return np.zeros(0, dtype=bool)
    level = 10 * np.log10(np.maximum(power_T, 1e-20))
    flags: NDArray[np.bool_] = level > max(float(np.percentile(level, 95)) + RELATIVE_DB, FLOOR_DB)
    return flags


def _run_lengths(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lengths of the runs of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    lengths: NDArray[np.int64] = edges[1::2] - edges[::2]
    return lengths
