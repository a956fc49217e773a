from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.metrics.activity import FRAME_S, find_activity
from evaluate_fakes import RATE, silence, voice


def test_pauses_are_where_they_were_put() -> None:
    pieces = [
        silence(0.3),
        voice(150, 0.5),
        silence(0.25),
        voice(150, 0.4),
        silence(0.05),
        voice(150, 0.3),
        silence(0.6),
    ]
    activity = find_activity(np.concatenate(pieces), RATE)
    assert activity is not None
    assert activity.start_s == pytest.approx(0.3, abs=FRAME_S)
    assert activity.end_s == pytest.approx(1.8, abs=FRAME_S)
    assert activity.longest_silence_s == pytest.approx(0.25, abs=FRAME_S)
    assert activity.pause_share == pytest.approx(0.25 / 1.5, abs=FRAME_S / 1.5), "0.05 s is no pause"


@given(st.floats(0.001, 1.0), st.sampled_from([8000, 16_000, 22_050, 48_000]))
@settings(max_examples=20)
def test_level_is_the_sounds_rms_whatever_the_silence(level: float, rate: int) -> None:
    sound = np.concatenate([silence(0.4, rate), voice(200, 1.0, level, rate), silence(0.7, rate)])
    activity = find_activity(sound, rate)
    assert activity is not None
    assert activity.level_db == pytest.approx(20 * np.log10(level), abs=0.1)


def test_a_full_scale_sine_is_three_decibels_down() -> None:
    sine = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    activity = find_activity(sine, RATE)
    assert activity is not None
    assert activity.level_db == pytest.approx(-3.01, abs=0.01)
    assert activity.longest_silence_s == 0.0
    assert activity.pause_share == 0.0


def test_pauses_do_not_depend_on_loudness() -> None:
    sound = np.concatenate([voice(150, 0.5), silence(0.3), voice(150, 0.5)])
    loud, quiet = find_activity(sound, RATE), find_activity(sound * 0.02, RATE)
    assert loud is not None
    assert quiet is not None
    assert loud.pause_share > 0.2
    assert (loud.pause_share, loud.longest_silence_s) == (quiet.pause_share, quiet.longest_silence_s)


@pytest.mark.parametrize("sound", [silence(1.0), silence(0.0), np.full(5, 0.5, np.float32), voice(100) * 1e-4])
def test_silence_has_no_activity(sound: np.ndarray) -> None:
    assert find_activity(sound, RATE) is None
