"""Two speakers in two channels, or one sound twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from affetto.audio.channels import channel_use, is_same_sound
from affetto.audio.sound import SoundError, read_sound
from affetto.types import Clip

RATE = 24_000


def speech(seed: int, start_s: float, end_s: float, duration_s: float = 3.0) -> np.ndarray:
    """Noise in syllables between two times, silence elsewhere."""
    rng, times = np.random.default_rng(seed), np.arange(round(duration_s * RATE)) / RATE
    loudness = np.repeat(rng.random(len(times) // 3600 + 1), 3600)[: len(times)]
    return 0.2 * loudness * rng.standard_normal(len(times)) * ((times >= start_s) & (times < end_s))


def clip(folder: Path, *channels: np.ndarray, **segment: float) -> Clip:
    path = folder / "a.wav"
    soundfile.write(path, np.stack(channels, axis=1), RATE, subtype="FLOAT")
    return Clip("a", path, "hello", None, "x", "made-up", **segment)  # type: ignore[arg-type]


def test_speakers_who_take_turns(tmp_path: Path) -> None:
    assert channel_use(clip(tmp_path, speech(0, 0, 1.5), speech(1, 1.5, 3))) == "two"
    assert channel_use(clip(tmp_path, speech(0, 0, 3), speech(1, 0, 3))) == "two", "both at once"


def test_a_silent_channel_is_a_silent_speaker(tmp_path: Path) -> None:
    voice = speech(0, 0, 3)
    assert channel_use(clip(tmp_path, voice, np.zeros(len(voice)))) == "two"
    hum = 1e-4 * np.random.default_rng(5).standard_normal(len(voice))
    assert channel_use(clip(tmp_path, voice, hum)) == "two"


@pytest.mark.parametrize("factor", [1.0, 0.3, -1.0])
def test_one_sound_recorded_twice(tmp_path: Path, factor: float) -> None:
    voice = speech(0, 0.3, 2.7)
    late = np.roll(voice, 40)
    noise = 0.002 * np.random.default_rng(1).standard_normal(len(voice))
    assert channel_use(clip(tmp_path, voice, factor * late + noise)) == "same"


def test_one_channel_and_three(tmp_path: Path) -> None:
    voice = speech(0, 0, 3)
    assert channel_use(clip(tmp_path, voice)) == "one"
    assert channel_use(clip(tmp_path, voice, speech(1, 0, 3), speech(2, 0, 3))) == "one"


def test_only_the_segment_counts(tmp_path: Path) -> None:
    """Both channels hear the same sound in the first second alone."""
    both = speech(0, 0, 1)
    whole = clip(tmp_path, both + speech(1, 1, 2), both + speech(2, 2, 3))
    assert channel_use(whole) == "two"
    assert channel_use(Clip("a", whole.audio, "hello", None, "x", "made-up", end_s=1.0)) == "same"


def test_too_short_to_tell() -> None:
    assert not is_same_sound(np.ones(700), np.ones(700))


def test_a_channel_is_read_by_its_number(tmp_path: Path) -> None:
    first, second = speech(0, 0, 1), speech(1, 0, 1)
    path = clip(tmp_path, first, second).audio
    np.testing.assert_allclose(read_sound(path, RATE, channel=1), first, atol=1e-6)
    np.testing.assert_allclose(read_sound(path, RATE, channel=2), second, atol=1e-6)
    np.testing.assert_allclose(read_sound(path, RATE), (first + second) / 2, atol=1e-6)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SoundError, match="no such file"):
        channel_use(Clip("a", tmp_path / "b.wav", "hello", None, "x", "made-up"))
