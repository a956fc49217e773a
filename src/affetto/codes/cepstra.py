"""Mel-cepstra: the shape of a sound's spectrum over time, in a few numbers per frame."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

HOP_S = 0.02
"""Time from one frame to the next; a window is twice as long."""
NUM_CEPSTRA, _NUM_BANDS = 24, 40
_HIGHEST_HZ = 8000.0
_FLOOR = 1e-8
"""Added to the power of every band, so that silence has a logarithm."""


def mel_cepstra(samples: NDArray[np.floating], sample_rate: int) -> NDArray[np.float64]:
    """Cepstra (S, 24) of mono samples, one every 20 ms: the cosine transform of the log power of 40 mel bands."""
    from scipy.fft import dct  # imported here to keep the command line's start quick

    hop = round(HOP_S * sample_rate)
    framed_SN = np.lib.stride_tricks.sliding_window_view(np.pad(samples, hop), 2 * hop)[::hop]
    power_SF = np.abs(np.fft.rfft(framed_SN * np.hanning(2 * hop))) ** 2 / hop
    bands_SM = np.log(power_SF @ _filters(2 * hop, sample_rate) + _FLOOR)
    return np.asarray(dct(bands_SM, norm="ortho", axis=1)[:, :NUM_CEPSTRA])


@cache
def _filters(window: int, sample_rate: int) -> NDArray[np.float64]:
    from transformers.audio_utils import mel_filter_bank

    highest = min(_HIGHEST_HZ, sample_rate / 2)
    return np.asarray(mel_filter_bank(window // 2 + 1, _NUM_BANDS, 0.0, highest, sample_rate, mel_scale="slaney"))
