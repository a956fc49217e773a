"""Sounds whose every property is known, and judges that decide by what they hear in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from affetto.judges.choice import Judges
from affetto.metrics.prosody import f0_contour
from affetto.metrics.spelling import number_words

RATE = 16_000


def voice(
    f0_hz: float, duration_s: float = 1.0, level: float = 0.1, rate: int = RATE, end_hz: float | None = None
) -> NDArray[np.float32]:
    """A buzz of 12 harmonics gliding from `f0_hz` to `end_hz` (in log frequency), RMS `level`."""
    t = np.arange(round(duration_s * rate)) / rate
    hz = f0_hz * (1.0 if end_hz is None else end_hz / f0_hz) ** (t / duration_s)
    phase = 2 * np.pi * np.cumsum(hz) / rate
    buzz = sum(np.sin(k * phase) / k for k in range(1, 13) if 12 * max(f0_hz, end_hz or 0) < rate / 2 or k < 4)
    return (buzz * level / np.sqrt(np.mean(buzz**2))).astype(np.float32)


def silence(duration_s: float, rate: int = RATE) -> NDArray[np.float32]:
    return np.zeros(round(duration_s * rate), dtype=np.float32)


def median_f0(sound: NDArray[np.float32]) -> float:
    f0 = f0_contour(sound, RATE)
    return float(np.median(f0[f0 > 0])) if (f0 > 0).any() else 0.0


class PitchJudge:
    """Emotion by pitch: high is happy, low is sad, 175 Hz is even."""

    id, tier, licence, sample_rate = "fake/pitch", "local", None, RATE
    labels = ("sad", "happy")

    def posteriors(self, sounds: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        happy = np.array([1 / (1 + np.exp(-(median_f0(sound) - 175) / 30)) for sound in sounds])
        return np.stack([1 - happy, happy], axis=1)


class PitchWords:
    """Hears a voice of 10·k Hz as k spoken as a number: 120 Hz says "twelve"."""

    id, tier, licence, sample_rate = "fake/numbers", "local", None, RATE

    def transcribe(self, sounds: Sequence[NDArray[np.float32]]) -> list[str]:
        return [number_words(str(round(median_f0(sound) / 10))) for sound in sounds]


class LevelQuality:
    """Louder is better."""

    id, tier, licence, sample_rate = "fake/level", "local", None, RATE

    def score(self, sounds: Sequence[NDArray[np.float32]]) -> list[dict[str, float]]:
        levels = [float(np.sqrt(np.mean(np.float64(sound) ** 2))) for sound in sounds]
        return [dict.fromkeys(("mos_overall", "mos_signal", "mos_background"), 1 + 4 * level) for level in levels]


class PitchVoice:
    """Voices an octave apart are at right angles; one without pitch has no vector."""

    id, tier, licence, sample_rate = "fake/voice", "local", None, RATE

    def embed(self, sounds: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        angles = [np.pi / 2 * np.log2(max(median_f0(sound), 1.0) / 100) for sound in sounds]
        return [
            np.array([np.cos(angle), np.sin(angle)]) if median_f0(sound) else None
            for angle, sound in zip(angles, sounds, strict=True)
        ]


class LevelDimensions:
    """Loud is aroused, long is dominant, high is pleasant."""

    id, tier, licence, sample_rate = "fake/dimensions", "local", None, RATE

    def measure(self, sounds: Sequence[NDArray[np.float32]]) -> list[dict[str, float]]:
        return [
            {
                "arousal": float(np.sqrt(np.mean(np.float64(sound) ** 2))),
                "dominance": len(sound) / RATE,
                "valence": median_f0(sound) / 300,
            }
            for sound in sounds
        ]


def fake_judges() -> Judges:
    return Judges(PitchJudge(), PitchWords(), LevelQuality(), voice=PitchVoice(), dimensions=LevelDimensions())


SOUNDS = [
    voice(120, 0.9),
    voice(220, 0.31, end_hz=150),
    np.random.default_rng(0).normal(0, 0.1, 9137).astype(np.float32),
    np.concatenate([voice(90, 0.4), silence(0.3), voice(300, 0.5)]),
]
"""A steady voice, a falling one, noise, and two voices with a pause between."""
