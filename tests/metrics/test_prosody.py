from __future__ import annotations

import numpy as np
import pytest

from affetto.metrics import prosody
from evaluate_fakes import RATE, silence, voice


@pytest.mark.parametrize("f0_hz", [80.0, 100.0, 147.0, 210.0, 330.0, 480.0])
@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_a_steady_voice_has_its_pitch(f0_hz: float, rate: int) -> None:
    pitch = prosody.measure_pitch(voice(f0_hz, 1.0, rate=rate), rate)
    assert pitch.median_st == pytest.approx(12 * np.log2(f0_hz / 100), abs=0.1)
    assert pitch.range_st == pytest.approx(0, abs=0.2)
    assert pitch.jitter == pytest.approx(0, abs=0.005)


def test_a_glide_of_an_octave_spans_four_fifths_of_it() -> None:
    pitch = prosody.measure_pitch(voice(120, 2.0, end_hz=240), RATE)
    assert pitch.range_st == pytest.approx(0.8 * 12, abs=0.4)
    assert pitch.median_st == pytest.approx(12 * np.log2(120 * 2**0.5 / 100), abs=0.25)


def test_pulses_are_heard_like_harmonics() -> None:
    pulses = np.zeros(RATE, dtype=np.float32)
    pulses[:: RATE // 125] = 0.8
    assert prosody.measure_pitch(pulses, RATE).median_st == pytest.approx(12 * np.log2(125 / 100), abs=0.1)


def test_pitch_ignores_level_and_silence() -> None:
    sound = voice(180, 1.0)
    padded = np.concatenate([silence(0.5), sound * 0.1, silence(0.5)])
    one, other = prosody.measure_pitch(sound, RATE), prosody.measure_pitch(padded, RATE)
    assert one.median_st == pytest.approx(other.median_st, abs=0.05)


def test_no_voice_has_no_pitch() -> None:
    for sound in (silence(1.0), voice(150, 0.05)):
        assert prosody.measure_pitch(sound, RATE) == prosody.Pitch(None, None, None)


def test_jitter_is_the_mean_period_step_within_voiced_stretches() -> None:
    periods = np.array([0.010, 0.011, 0.010, 0.012] * 10)
    f0 = np.concatenate([1 / periods, [0.0, 0.0], 1 / (2 * periods)])
    steps = np.concatenate([np.abs(np.diff(periods)), np.abs(np.diff(2 * periods))])
    expected = steps.mean() / np.concatenate([periods, 2 * periods]).mean()
    assert prosody.summarise_contour(f0).jitter == pytest.approx(expected)


def test_a_rough_voice_has_more_jitter() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(RATE) / RATE
    hz = 150 * 2 ** (np.repeat(rng.normal(0, 1, 100), RATE // 100) / 12)
    rough = 0.2 * sum(np.sin(k * 2 * np.pi * np.cumsum(hz) / RATE) / k for k in range(1, 8)) + 0 * t
    smooth_jitter = prosody.measure_pitch(voice(150), RATE).jitter
    rough_jitter = prosody.measure_pitch(rough, RATE).jitter
    assert rough_jitter is not None
    assert smooth_jitter is not None
    assert rough_jitter > 3 * smooth_jitter


def test_pitfall_28_twice_gives_the_same_bits() -> None:
    sound = voice(140) + np.random.default_rng(1).normal(0, 0.01, RATE).astype(np.float32)
    np.testing.assert_array_equal(prosody.f0_contour(sound, RATE), prosody.f0_contour(sound, RATE))


@pytest.mark.parametrize(
    ("sound", "rate", "message"),
    [
        (np.ones((100, 2)), RATE, "mono"),
        (np.full(RATE, np.nan), RATE, "NaN or infinite"),
        (np.ones(RATE, np.int16), RATE, "floats"),
        (voice(150), 0, "positive"),
        (voice(150), 1399, "700 Hz needs twice that rate, not 1399 Hz"),
    ],
)
def test_what_has_no_pitch_to_be_measured_is_refused(sound: np.ndarray, rate: int, message: str) -> None:
    for measure in (prosody.validate, prosody.f0_contour, prosody.measure_pitch, prosody.evaluate):
        with pytest.raises(ValueError, match=message):
            measure(sound, rate)


def test_twice_the_ceiling_is_rate_enough() -> None:
    assert prosody.measure_pitch(voice(150, rate=1400), 1400) is not None


def test_evaluate_names_what_is_measured() -> None:
    sound = voice(120, 1.0, end_hz=240)
    pitch = prosody.measure_pitch(sound, RATE)
    named = {"f0_median_st": pitch.median_st, "f0_range_st": pitch.range_st, "jitter": pitch.jitter}
    assert None not in named.values()
    assert prosody.evaluate(sound, RATE) == named
    assert prosody.evaluate(silence(1.0), RATE) == dict.fromkeys(named)
