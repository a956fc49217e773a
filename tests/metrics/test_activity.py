from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.metrics import activity as activity_metrics
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
    assert activity_metrics.evaluate(sound, RATE) == dict.fromkeys(("level_db", "pause_share", "longest_silence_s"))


@pytest.mark.parametrize(
    ("sound", "rate", "message"),
    [
        (np.ones((100, 2), np.float32), RATE, r"mono.*\(100, 2\)"),
        (np.full(RATE, np.nan), RATE, "16000 of 16000 samples are NaN"),
        (np.array([0.1, np.inf] * 800, np.float32), RATE, "800 of 1600"),
        (np.full(RATE, 1000, np.int16), RATE, "floats.*int16"),
        (voice(100), 0, "positive.*not 0"),
        (voice(100), -RATE, "positive"),
        (voice(100), float("nan"), "positive"),
        (voice(100), float("inf"), "positive"),
    ],
)
def test_what_is_no_mono_sound_is_refused_and_never_taken_for_silence(
    sound: np.ndarray, rate: int, message: str
) -> None:
    measures = (
        activity_metrics.validate, find_activity, activity_metrics.sounding_frames, activity_metrics.evaluate,
    )  # fmt: skip
    for measure in measures:
        with pytest.raises(ValueError, match=message):
            measure(sound, rate)


def test_evaluate_has_what_is_found() -> None:
    sound = np.concatenate([silence(0.1), voice(150, 0.5), silence(0.3), voice(150, 0.2)])
    assert activity_metrics.evaluate(sound, RATE) == pytest.approx(
        {"level_db": -20.0, "pause_share": 0.3, "longest_silence_s": 0.3}, abs=0.1
    )
    assert activity_metrics.evaluate(sound, RATE)["longest_silence_s"] == pytest.approx(0.3, abs=FRAME_S)
