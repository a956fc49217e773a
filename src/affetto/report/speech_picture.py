"""One utterance as a picture: a spectrogram with the pitch contour drawn over it on the same axes.

The frequency axis is logarithmic, so equal musical steps have equal heights, and shared, so the contour lies on the
fundamental that it follows. Levels are relative to the clip's loudest spot (the page's table has absolute levels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from affetto.metrics.prosody import FRAME_MS, f0_contour, summarise_contour
from affetto.report.canvas import FAINT, INK, PAPER, Picture, picture, plot_area, system_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 390, 215
LEFT, RIGHT, TOP, BOTTOM = 40, 6, 6, 32
"""Margins of the plot in CSS pixels; the page's playhead moves between them."""
LOW_HZ, HIGH_HZ = 60.0, 5000.0
_TICKS_HZ = (100, 200, 400, 800, 1600, 3200)
_WINDOW_S, _HOP_S, _ROWS, _RANGE_DB, _LEVELS = 0.05, 0.01, 128, 55.0, 20
"""A 50 ms Hann window resolves the harmonics of voices above 80 Hz. Few levels keep the page small."""


@dataclass(frozen=True)
class Voice:
    """Samples of an utterance with their pitch."""

    samples: NDArray[np.float32]
    rate: int
    f0_hz: NDArray[np.float64]
    """Every 5 ms, 0 where unvoiced."""

    @property
    def duration_s(self) -> float:
        """Duration of the sound."""
        return len(self.samples) / self.rate

    @property
    def median_hz(self) -> float | None:
        """Median F0; None if too little is voiced."""
        median_st = summarise_contour(self.f0_hz).median_st
        return None if median_st is None else float(100.0 * 2 ** (median_st / 12))

    @property
    def range_st(self) -> float | None:
        """10th to 90th percentile of F0 in semitones."""
        return summarise_contour(self.f0_hz).range_st


def hear(samples: NDArray[np.float32], rate: int) -> Voice:
    """Samples with their pitch; sounds too short to analyse have none."""
    if len(samples) < rate * 0.05:
        return Voice(samples, rate, np.zeros(1))
    return Voice(samples, rate, f0_contour(samples, rate))


def spectrogram(samples: NDArray[np.floating], rate: int) -> NDArray[np.float64]:
    """Level in dB below the loudest cell, clipped at the range: (rows of log frequency from low to high, frames)."""
    size, hop = round(_WINDOW_S * rate), round(_HOP_S * rate)
    padded = np.pad(np.asarray(samples, dtype=np.float64), (size // 2, size))
    starts = np.arange(0, max(1, len(samples)), hop)
    frames = padded[starts[:, None] + np.arange(size)] * np.hanning(size)
    fft_size = 1 << (2 * size).bit_length()
    power = np.abs(np.fft.rfft(frames, fft_size, axis=1)) ** 2
    bins = np.geomspace(LOW_HZ, min(HIGH_HZ, rate / 2), _ROWS) * fft_size / rate
    below = bins.astype(int).clip(max=power.shape[1] - 2)
    share = bins - below
    rows = power[:, below] * (1 - share) + power[:, below + 1] * share
    decibels = 10 * np.log10(rows.T + 1e-12)
    result: NDArray[np.float64] = np.maximum(decibels - decibels.max(), -_RANGE_DB)
    return result if np.any(samples) else np.full_like(result, -_RANGE_DB)


def speech_picture(
    voice: Voice, *, duration_s: float, number: int, reference_hz: float | None, system: str, name: str,
    is_reference: bool = False,
) -> Picture:  # fmt: skip
    """Spectrogram and F0 of `voice` on a time axis of `duration_s`, which all pictures of a row share.

    `reference_hz`, the median pitch of the row's first picture, is drawn as a dashed line in all of them, so that
    higher and lower can be seen; with `is_reference` it is labelled.
    """

    def draw(figure: Figure) -> None:
        axes = plot_area(figure, LEFT, RIGHT, TOP, BOTTOM)
        top = min(HIGH_HZ, voice.rate / 2)
        extent = (0.0, voice.duration_s, float(np.log2(LOW_HZ)), float(np.log2(top)))
        axes.imshow(_ink(voice), origin="lower", aspect="auto", extent=extent, interpolation="none")
        if reference_hz is not None:
            axes.axhline(np.log2(reference_hz), color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
        seconds = np.arange(len(voice.f0_hz)) * FRAME_MS / 1000
        contour = np.log2(np.where(voice.f0_hz > 0, voice.f0_hz, np.nan))
        if voice.median_hz is not None:  # very few voiced frames are errors of the pitch tracker
            axes.plot(seconds, contour, color=PAPER, linewidth=6, alpha=0.85)
            axes.plot(seconds, contour, color=system_colour(number), linewidth=2.8)
        axes.set_xlim(0, duration_s)
        axes.set_ylim(np.log2(LOW_HZ), np.log2(HIGH_HZ))
        axes.set_yticks([float(np.log2(hz)) for hz in _TICKS_HZ], [str(hz) for hz in _TICKS_HZ])
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel("s", color=FAINT, fontsize=10)
        axes.text(-0.014, 1.0, "Hz", transform=axes.transAxes, color=FAINT, fontsize=10, ha="right", va="top")
        if reference_hz is not None and is_reference:
            axes.annotate(
                "median", (duration_s, np.log2(reference_hz)), xytext=(-3, 3), textcoords="offset points", color=INK,
                fontsize=9, ha="right",
            )  # fmt: skip

    return picture(WIDTH, HEIGHT, draw, name=name, alt=_alt(voice, system, reference_hz))


def _ink(voice: Voice) -> NDArray[np.uint8]:
    """Black with the level as opacity; dark pages invert it."""
    share = 1 + spectrogram(voice.samples, voice.rate) / _RANGE_DB
    steps = np.rint(share**1.3 * (_LEVELS - 1)) / (_LEVELS - 1)
    image = np.zeros((*steps.shape, 4), dtype=np.uint8)
    image[..., 3] = np.rint(steps * 225)
    return image


def _alt(voice: Voice, system: str, reference_hz: float | None) -> str:
    start = f"Spectrogram and pitch of {system}, {voice.duration_s:.1f} s"
    if voice.median_hz is None or voice.range_st is None:
        return f"{start}; too little is voiced to measure a pitch."
    shift = ""
    if reference_hz is not None and abs(steps := 12 * np.log2(voice.median_hz / reference_hz)) >= 0.05:
        shift = f", {abs(steps):.1f} semitones {'above' if steps > 0 else 'below'} the first"
    return f"{start}; median pitch {voice.median_hz:.0f} Hz{shift}, range {voice.range_st:.1f} semitones."
