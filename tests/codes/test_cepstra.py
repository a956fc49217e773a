"""Mel-cepstra, by which takes are compared, tell how a sound's spectrum is shaped and not how loud it is."""

from __future__ import annotations

import numpy as np
import pytest

from affetto.codes.cepstra import NUM_CEPSTRA, mel_cepstra
from affetto.codes.vocoder import VocoderCodec
from affetto.miniature.corpus import SAMPLE_RATE
from affetto.model.base import find_base


def _noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.1, num_samples)


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
@pytest.mark.parametrize("seconds", [0.0, 0.005, 1.0])
def test_there_is_one_every_twenty_milliseconds(rate: int, seconds: float) -> None:
    found = mel_cepstra(_noise(round(seconds * rate)), rate)
    assert found.shape == (round(seconds * rate) // round(0.02 * rate) + 1, NUM_CEPSTRA)
    assert np.isfinite(found).all()


def test_loudness_is_the_first_of_them_alone() -> None:
    sound = _noise(24_000)
    quiet, loud = mel_cepstra(sound, 24_000), mel_cepstra(3 * sound, 24_000)
    np.testing.assert_allclose(loud[:, 0] - quiet[:, 0], 2 * np.log(3) * np.sqrt(40), rtol=1e-3)
    np.testing.assert_allclose(loud[:, 1:], quiet[:, 1:], atol=1e-3)


def test_a_darker_sound_has_a_higher_second_one() -> None:
    """The second cosine falls from the lowest band to the highest."""
    sound = _noise(24_000)
    dark = np.convolve(sound, np.full(8, 1 / 8), "same")
    assert (mel_cepstra(dark, 24_000)[5:-5, 1] > mel_cepstra(sound, 24_000)[5:-5, 1]).all()


def test_a_sampling_rate_changes_little() -> None:
    """The same tones, sampled at two rates."""
    found = []
    for rate in (16_000, 24_000):
        times = np.arange(rate) / rate
        found.append(mel_cepstra(np.sin(2 * np.pi * 700 * times) + 0.3 * np.sin(2 * np.pi * 2500 * times), rate))
    middle = slice(10, 40)
    assert np.corrcoef(found[0][middle].mean(0), found[1][middle].mean(0))[0, 1] > 0.99


def test_the_vocoder_knows_its_own() -> None:
    """Without decoding: two sounds that are far from each other by one kind are so by the other."""
    codec = VocoderCodec.load(find_base("miniature"))
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 256, (20, 8)) for _ in range(2)]
    own = [codec.cepstra(one) for one in codes]
    assert own[0].shape == (80, 24)
    heard = [mel_cepstra(codec.decode(one), SAMPLE_RATE) for one in codes]
    assert len(heard[0]) == len(own[0]) + 1
    for one, other in zip(own, heard, strict=True):
        # What WORLD calls the spectrum's tilt is what is heard as its tilt.
        assert np.corrcoef(one[:, 1], other[:-1, 1])[0, 1] > 0.5
