"""Emotional prosody by rule: how the miniature's voices act.

Directions and sizes follow the tables of Murray & Arnott (1993, JASA 93(2), table I: rate, pitch
average, range, intensity, voice quality, pitch changes) and Burkhardt & Sendlmeier (2000, ISCA
Workshop on Speech and Emotion: the wave model for joy, narrowed range and falling contour for
sadness, final rise for surprise, irregular voicing for fear). Every parameter is drawn around its
rule so that the classes overlap in each single one.

Tempo is left to the synthesiser; everything else is done on WORLD parameters (Morise et al. 2016).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyworld
from numpy.typing import NDArray

FRAME_MS = 10.0
_FFT_SIZE = 1024


@dataclass(frozen=True)
class ActingRule:
    """How one emotion is spoken at strength 1, relative to the same voice's plain speech."""

    rate: float
    """Tempo factor."""
    level_st: float
    """Shift of the median F0, in semitones."""
    span: float
    """Factor on F0's deviation from its median."""
    gain_db: float
    """Loudness."""
    tilt_db: float
    """Spectral tilt in dB per octave around 1 kHz; positive is tense, negative is lax."""
    formants: float = 1.0
    """Factor on formant frequencies (lip spreading is above 1)."""
    jitter_st: float = 0.05
    """Standard deviation of F0 from frame to frame, in semitones."""
    wave_st: float = 0.0
    """Amplitude of a slow pitch wave across stressed syllables, in semitones."""
    tremor_st: float = 0.0
    """Amplitude of a 6 Hz tremor, in semitones."""
    glide_st: float = 0.0
    """Straight rise (+) or fall (-) over the utterance, in semitones."""
    ending_st: float = 0.0
    """Rise (+) or fall (-) over the last third, in semitones."""

    @property
    def is_lively(self) -> bool:
        """Whether it changes how a voice speaks, tempo excepted."""
        return replace(self, rate=1.0) != ActingRule(1.0, 0.0, 1.0, 0.0, 0.0, jitter_st=0.0)


RULES: dict[str, ActingRule] = {
    "happy": ActingRule(1.10, 5.0, 1.6, 2.0, 1.0, formants=1.05, wave_st=1.6, glide_st=1.0),
    "sad": ActingRule(0.80, -2.0, 0.45, -5.0, -2.5, jitter_st=0.12, glide_st=-2.5),
    "angry": ActingRule(1.16, 2.0, 1.5, 6.0, 3.0, jitter_st=0.25, ending_st=-3.5),
    "fearful": ActingRule(1.30, 7.0, 0.6, -1.0, -1.0, jitter_st=0.45, tremor_st=0.8),
    "surprised": ActingRule(0.98, 4.5, 1.5, 2.0, 0.5, glide_st=1.0, ending_st=8.0),
    "neutral": ActingRule(0.93, -0.7, 0.6, -0.5, 0.0, jitter_st=0.03),
}
"""The six emotions. `neutral` is the guide's "more controlled expression": slower and flatter than plain reading."""


def varied(rule: ActingRule, strength: float, rng: np.random.Generator) -> ActingRule:
    """`rule` at `strength` (0 is plain), each parameter drawn around its value."""

    def draw(value: float, absolute: float) -> float:
        return value * strength * rng.normal(1.0, 0.15) + rng.normal(0.0, absolute)

    def draw_factor(value: float, spread: float) -> float:
        return float(np.exp(np.log(value) * strength * rng.normal(1.0, 0.15) + rng.normal(0.0, spread)))

    return ActingRule(
        rate=draw_factor(rule.rate, 0.03),
        level_st=draw(rule.level_st, 0.5),
        span=draw_factor(rule.span, 0.10),
        gain_db=draw(rule.gain_db, 0.8),
        tilt_db=draw(rule.tilt_db, 0.3),
        formants=draw_factor(rule.formants, 0.005),
        jitter_st=abs(draw(rule.jitter_st, 0.01)),
        wave_st=draw(rule.wave_st, 0.1),
        tremor_st=draw(rule.tremor_st, 0.05),
        glide_st=draw(rule.glide_st, 0.5),
        ending_st=draw(rule.ending_st, 0.6),
    )


def lively(rng: np.random.Generator) -> ActingRule:
    """A lively reader: every parameter but the tempo is drawn independently, over the range of all emotions."""
    return ActingRule(
        rate=1.0,
        level_st=rng.normal(2.0, 3.0),
        span=float(np.exp(rng.normal(0.1, 0.4))),
        gain_db=rng.normal(1.0, 3.0),
        tilt_db=rng.normal(0.5, 1.5),
        formants=float(np.exp(rng.normal(0.02, 0.025))),
        jitter_st=abs(rng.normal(0.0, 0.25)),
        wave_st=abs(rng.normal(0.0, 1.2)),
        tremor_st=abs(rng.normal(0.0, 0.4)),
        glide_st=rng.normal(0.0, 2.0),
        ending_st=rng.normal(0.0, 4.0),
    )


def act(
    samples: NDArray[np.float64], sample_rate: int, rule: ActingRule, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Re-speak `samples` by `rule` (tempo excepted); same length, same rate."""
    f0, times = pyworld.dio(samples, sample_rate, f0_floor=60.0, f0_ceil=500.0, frame_period=FRAME_MS, speed=2)
    f0 = pyworld.stonemask(samples, f0, times, sample_rate)
    voiced = f0 > 0
    if voiced.sum() < 10:
        return samples
    envelope = pyworld.cheaptrick(samples, f0, times, sample_rate, fft_size=_FFT_SIZE)
    aperiodicity = pyworld.d4c(samples, f0, times, sample_rate, fft_size=_FFT_SIZE)
    envelope = envelope * _power_gain(envelope.shape[1], sample_rate, rule.gain_db, rule.tilt_db)
    if abs(rule.formants - 1.0) > 1e-3:
        envelope = _warp(envelope, rule.formants)
    contour = _contour(f0, voiced, times, rule, rng)
    spoken = pyworld.synthesize(contour, np.ascontiguousarray(envelope), aperiodicity, sample_rate, FRAME_MS)
    return np.asarray(spoken[: len(samples)])


def _contour(
    f0: NDArray[np.float64],
    voiced: NDArray[np.bool_],
    times: NDArray[np.float64],
    rule: ActingRule,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    log_f0 = np.zeros_like(f0)
    log_f0[voiced] = 12.0 * np.log2(f0[voiced])
    median = float(np.median(log_f0[voiced]))
    first, last = times[voiced][0], times[voiced][-1]
    place = np.clip((times - first) / max(last - first, 1e-3), 0.0, 1.0)
    ending = np.clip((place - 0.65) / 0.35, 0.0, 1.0)
    added = (
        rule.level_st
        + rule.glide_st * (place - 0.5)
        + rule.ending_st * ending**1.5
        + rule.wave_st * np.sin(2 * np.pi * (2.6 * times + rng.uniform()))
        + rule.tremor_st * np.sin(2 * np.pi * (6.0 * times + rng.uniform()))
        + rng.normal(0.0, 1.0, len(f0)) * rule.jitter_st
    )
    moved = median + rule.span * (log_f0 - median) + added
    return np.asarray(np.where(voiced, np.clip(2.0 ** (moved / 12.0), 55.0, 620.0), 0.0))


def colour(samples: NDArray[np.float64], sample_rate: int, gain_db: float, tilt_db: float) -> NDArray[np.float64]:
    """`samples` louder by `gain_db` and brighter by `tilt_db` per octave around 1 kHz; same length."""
    spectrum = np.fft.rfft(samples)
    gain = np.sqrt(_power_gain(len(spectrum), sample_rate, gain_db, tilt_db))
    return np.fft.irfft(spectrum * gain, len(samples))


def _power_gain(num_bins: int, sample_rate: int, gain_db: float, tilt_db: float) -> NDArray[np.float64]:
    frequency = np.linspace(0.0, sample_rate / 2, num_bins)
    octaves = np.log2(np.clip(frequency, 125.0, 8000.0) / 1000.0)
    return np.asarray(10.0 ** ((gain_db + tilt_db * octaves) / 10.0))


def _warp(envelope: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    bins = np.arange(envelope.shape[1], dtype=np.float64)
    source = bins / factor
    low = np.clip(np.floor(source).astype(int), 0, envelope.shape[1] - 2)
    share = np.clip(source - low, 0.0, 1.0)
    logs = np.log(envelope)
    return np.asarray(np.exp(logs[:, low] * (1 - share) + logs[:, low + 1] * share))
