"""Signals with known answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sine(duration_s: float, rate: int, *, hertz: float = 440.0, peak: float = 0.5) -> NDArray[np.float64]:
    """A sine of `round(duration_s * rate)` samples."""
    times = np.arange(round(duration_s * rate)) / rate
    return np.asarray(peak * np.sin(2 * np.pi * hertz * times))
