"""Pitch of a voice from WORLD's F0 (DIO, then StoneMask; Morise et al. 2009, 2016), every 5 ms between 60 and 700 Hz.

Jitter here is the mean difference of consecutive frames' periods over the mean period, within voiced stretches.
Praat's local jitter compares neighbouring glottal cycles; F0 frames are smoothed over several cycles and 5 ms apart,
so this number follows intonation as well as roughness and is not comparable with Praat's or with clinical norms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyworld
from numpy.typing import NDArray

from affetto.metrics import activity

FRAME_MS = 5.0
FLOOR_HZ = 60.0
CEILING_HZ = 700.0
REFERENCE_HZ = 100.0
MIN_VOICED_FRAMES = 20
"""A tenth of a second; with less, no pitch is reported."""


@dataclass(frozen=True)
class Pitch:
    """Summary of an F0 contour; None if fewer than `MIN_VOICED_FRAMES` are voiced."""

    median_st: float | None
    """Semitones re 100 Hz."""
    range_st: float | None
    """Semitones from the 10th to the 90th percentile of voiced frames."""
    jitter: float | None
    """Share; see the module's docstring."""

    def to_values(self) -> dict[str, float | None]:
        """The values by their names in the results."""
        return {"f0_median_st": self.median_st, "f0_range_st": self.range_st, "jitter": self.jitter}


def validate(samples: NDArray[np.floating], sample_rate: int) -> None:
    """Raise ValueError if samples aren't sound (`activity.validate`) or the rate is too low for `CEILING_HZ`."""
    activity.validate(samples, sample_rate)
    if sample_rate < 2 * CEILING_HZ:
        raise ValueError(
            f"pitch up to {CEILING_HZ:.0f} Hz needs twice that rate, not {sample_rate} Hz; take a file of a higher rate"
        )


def evaluate(samples: NDArray[np.floating], sample_rate: int) -> dict[str, float | None]:
    """`f0_median_st`, `f0_range_st` and `jitter` of mono samples; ValueError as in `validate`."""
    return measure_pitch(samples, sample_rate).to_values()


def measure_pitch(samples: NDArray[np.floating], sample_rate: int) -> Pitch:
    """Pitch of mono samples; ValueError as in `validate`."""
    return summarise_contour(f0_contour(samples, sample_rate))


def f0_contour(samples: NDArray[np.floating], sample_rate: int) -> NDArray[np.float64]:
    """F0 in Hz every 5 ms, 0 where unvoiced; ValueError as in `validate`."""
    validate(samples, sample_rate)
    signal = np.ascontiguousarray(samples, dtype=np.float64)
    coarse, times = pyworld.dio(signal, sample_rate, FLOOR_HZ, CEILING_HZ, frame_period=FRAME_MS)
    refined: NDArray[np.float64] = pyworld.stonemask(signal, coarse, times, sample_rate)
    return refined


def summarise_contour(f0_hz: NDArray[np.float64]) -> Pitch:
    """Median, range and jitter of an F0 contour (0 is unvoiced)."""
    voiced = f0_hz > 0
    if voiced.sum() < MIN_VOICED_FRAMES:
        return Pitch(None, None, None)
    semitones = 12 * np.log2(f0_hz[voiced] / REFERENCE_HZ)
    low, median, high = np.percentile(semitones, [10, 50, 90])
    return Pitch(float(median), float(high - low), _jitter(f0_hz))


def _jitter(f0_hz: NDArray[np.float64]) -> float | None:
    neighbours = (f0_hz[1:] > 0) & (f0_hz[:-1] > 0)
    if not neighbours.any():
        return None
    after, before = 1 / f0_hz[1:][neighbours], 1 / f0_hz[:-1][neighbours]
    return float(np.abs(after - before).mean() / (1 / f0_hz[f0_hz > 0]).mean())
