"""Sounds with a known pitch, and clips of them on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affetto.audio.manifest import write_manifest
from affetto.audio.sound import write_sound
from affetto.types import Clip

RATE = 24_000
FORMANTS = {"a": (700, 1200, 2600), "i": (300, 2200, 3000), "u": (320, 800, 2400)}


def vowel(
    hertz: float, duration_s: float = 0.8, *, name: str = "a", semitones: float = 0.0, level: float = 0.2
) -> NDArray[np.float64]:
    """A vowel: the harmonics of `hertz` under three formants; `semitones` is a glide from start to end."""
    times = np.arange(round(duration_s * RATE)) / RATE
    f0 = hertz * 2 ** (semitones / 12 * (times / max(duration_s, 1e-9) - 0.5))
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    sound = np.zeros_like(times)
    for harmonic in range(1, int(5000 / hertz)):
        gain = sum(1 / (1 + ((harmonic * hertz - place) / 120) ** 2) for place in FORMANTS[name])
        sound += (gain + 0.01) * np.cos(harmonic * phase + harmonic)
    return level * sound / max(np.abs(sound).max(), 1e-9)


def hiss(duration_s: float, level: float = 0.05, seed: int = 0) -> NDArray[np.float64]:
    """Noise without pitch."""
    return level * np.random.default_rng(seed).standard_normal(round(duration_s * RATE))


def make_clips(folder: Path, count: int, *, emotion: str | None = None, first: int = 0, **fields: object) -> list[Clip]:
    """`count` good clips on disk, each with its own pitch and text."""
    clips = []
    for index in range(first, first + count):
        name = f"{emotion or 'general'}-{index}"
        path = folder / f"{name}.wav"
        write_sound(path, vowel(110 + 7 * index, 0.5 + 0.01 * index, level=0.25 if emotion else 0.2), RATE)
        plain = {"id": name, "audio": path, "text": f"take number {index} {emotion or ''}".strip(), "emotion": emotion}
        clips.append(Clip(**(plain | {"speaker": str(index % 2), "corpus": "test"} | fields)))  # type: ignore[arg-type]
    return clips


def manifest(path: Path, clips: list[Clip]) -> Path:
    """Write the manifest and return its path."""
    write_manifest(path, clips)
    return path
