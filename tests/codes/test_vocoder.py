"""The miniature's codec against its definition: explicit loops, known pitches, and what must not matter."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from code_signals import RATE, hiss, vowel
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from affetto.codes.vocoder import (
    FRAME_SAMPLES,
    NUM_CEPSTRA,
    NUM_FEATURES,
    VocoderCodec,
    _kmeans,
    _weights,
    analyse,
    synthesise,
)
from affetto.errors import BaseModelError


def pitch(features: NDArray[np.float64]) -> tuple[float, float]:
    """(median F0 of the voiced frames in Hz, share of voiced frames), the edges left out."""
    inside = features[5:-5]
    voiced = inside[:, NUM_CEPSTRA + 1] > 0.5
    return float(np.exp(np.median(inside[voiced, NUM_CEPSTRA]))) if voiced.any() else math.nan, float(voiced.mean())


@pytest.mark.parametrize("hertz", [85.0, 140.0, 260.0, 410.0])
def test_analysis_finds_the_pitch_of_a_vowel(hertz: float) -> None:
    found, voiced = pitch(analyse(vowel(hertz)))
    assert found == pytest.approx(hertz, rel=0.02)
    assert voiced > 0.95


@pytest.mark.parametrize("hertz", [85.0, 140.0, 260.0, 410.0])
def test_synthesis_keeps_pitch_and_voicing(hertz: float) -> None:
    features = analyse(vowel(hertz, 1.0))
    again = analyse(synthesise(features).astype(np.float64))
    assert pitch(again)[0] == pytest.approx(pitch(features)[0], rel=0.03)
    assert np.mean((again[:, -1] > 0.5) == (features[:, -1] > 0.5)) > 0.9


def test_noise_is_unvoiced_before_and_after() -> None:
    features = analyse(hiss(1.0))
    assert pitch(features)[1] < 0.1
    assert pitch(analyse(synthesise(features).astype(np.float64)))[1] < 0.1


def test_glide_is_followed() -> None:
    features = analyse(vowel(180.0, 1.0, semitones=8))
    octaves = np.diff(features[[15, 85], NUM_CEPSTRA])[0] / np.log(2)
    assert 12 * octaves == pytest.approx(8 * 0.7, abs=0.4)


def test_louder_is_louder_by_the_same_factor() -> None:
    quiet, loud = (synthesise(analyse(vowel(150.0, level=level))).astype(np.float64) for level in (0.05, 0.2))
    assert 20 * np.log10(loud.std() / quiet.std()) == pytest.approx(20 * np.log10(4), abs=0.5)


@pytest.mark.parametrize("num_samples", [0, 1, 239, 1919, 1920, 1921, 24_000, 25_001])
def test_number_of_frames(codec: VocoderCodec, num_samples: int) -> None:
    codes = codec.encode(np.resize(vowel(150.0), num_samples))
    assert len(codes) == max(1, math.ceil(num_samples / RATE * 12.5))
    assert len(codec.decode(codes)) == len(codes) * FRAME_SAMPLES


def test_nothing_decodes_to_nothing(codec: VocoderCodec) -> None:
    assert codec.decode(np.zeros((0, codec.num_codebooks), dtype=np.int64)).shape == (0,)


SOUNDS = {
    "silence": np.zeros(9_600),
    "one sample": np.ones(1),
    "constant": np.full(4_800, 0.5),
    "click": np.eye(1, 6_000, 3_000)[0],
    "full scale": np.sign(vowel(200.0, 0.4)),
    "whisper": hiss(0.3, level=1e-5),
    "float32": vowel(150.0, 0.3).astype(np.float32),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_odd_sounds_are_coded_safely(codec: VocoderCodec, name: str) -> None:
    codes = codec.encode(SOUNDS[name])
    assert codes.dtype == np.int64
    assert codes.shape[1] == codec.num_codebooks
    assert codes.min() >= 0
    assert codes.max() < codec.codebook_size
    sound = codec.decode(codes)
    assert np.isfinite(sound).all()
    assert np.abs(sound).max() <= 1.0


def test_silence_stays_quiet(codec: VocoderCodec) -> None:
    assert np.sqrt(np.mean(codec.decode(codec.encode(np.zeros(9_600))) ** 2)) < 0.01


def test_pitfall_08_neighbours_do_not_matter(codec: VocoderCodec) -> None:
    sounds = [vowel(120.0, 0.5), hiss(0.7), vowel(240.0, 0.31, name="i")]
    alone = [codec.encode(sound) for sound in sounds]
    backwards = [codec.encode(sound) for sound in reversed(sounds)][::-1]
    for one, other in zip(alone, backwards, strict=True):
        np.testing.assert_array_equal(one, other)
    together = codec.quantise(np.concatenate([analyse(sound) for sound in sounds]))
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_decoding_is_a_function_of_the_codes(codec: VocoderCodec) -> None:
    codes = codec.encode(vowel(150.0))
    first = codec.decode(codes)
    codec.decode(codec.encode(hiss(0.4)))
    np.testing.assert_array_equal(codec.decode(codes), first)


def test_quantise_equals_a_beam_search_in_loops(codec: VocoderCodec) -> None:
    features = analyse(vowel(170.0, 0.6, name="u", semitones=3))
    codes = codec.quantise(features)
    for block, row in zip(features.reshape(len(codes), -1), codes, strict=True):
        beam = [((), ((block - codec.mean_D) / codec.scale_D) @ codec.basis_DP)]
        for book in codec.codebooks_KVP:
            longer = [((*begun, code), left - centroid) for begun, left in beam for code, centroid in enumerate(book)]
            beam = sorted(longer, key=lambda item: float(np.sum(item[1] ** 2)))[:8]
        assert tuple(row) == beam[0][0]


def test_searching_is_closer_than_taking_the_nearest_of_each_book(codec: VocoderCodec) -> None:
    features = analyse(vowel(170.0, 1.2, name="u", semitones=3))
    points = ((features.reshape(-1, 8 * NUM_FEATURES) - codec.mean_D) / codec.scale_D) @ codec.basis_DP
    codes = codec.quantise(features)
    found = points - sum(book[codes[:, k]] for k, book in enumerate(codec.codebooks_KVP))
    greedy = points
    for book in codec.codebooks_KVP:
        greedy = greedy - book[((greedy[:, None] - book) ** 2).sum(axis=-1).argmin(axis=1)]
    assert np.mean(found**2) < 0.97 * np.mean(greedy**2)


def test_refining_brings_the_codebooks_closer_to_what_they_code() -> None:
    features = [analyse(vowel(hertz, 1.2, semitones=3)) for hertz in (100, 130, 170, 210)]
    how = {"num_components": 8, "num_codebooks": 3, "codebook_size": 8, "iterations": 3}
    errors = []
    for refinements in (0, 1, 4):
        codec = VocoderCodec.fit(features, refinements=refinements, **how)
        blocks = np.concatenate(features).reshape(-1, 8 * NUM_FEATURES)
        points = (blocks - codec.mean_D) / codec.scale_D @ codec.basis_DP
        coded = codec.features(codec.quantise(np.concatenate(features))).reshape(blocks.shape) - codec.mean_D
        errors.append(np.mean((points - coded / codec.scale_D @ codec.basis_DP) ** 2))
    assert errors[0] > errors[1] > errors[2], errors


def test_pitch_and_voicing_weigh_most_and_fine_structure_least() -> None:
    weights = _weights(np.linspace(4.0, 0.5, NUM_FEATURES))
    assert np.mean(weights[:NUM_CEPSTRA] ** 2) == pytest.approx(1.0)
    assert weights[0] / weights[NUM_CEPSTRA - 1] == pytest.approx(np.sqrt(4.0 / np.linspace(4.0, 0.5, 26)[23]))
    assert weights[NUM_CEPSTRA] == 3.0
    assert weights[NUM_CEPSTRA + 1] == 2.0


def test_every_codebook_brings_the_features_closer(codec: VocoderCodec) -> None:
    features = analyse(vowel(170.0, 0.6, semitones=3))
    target = ((features.reshape(-1, 8 * NUM_FEATURES) - codec.mean_D) / codec.scale_D) @ codec.basis_DP
    codes, errors, coded = codec.quantise(features), [], np.zeros_like(target)
    for k, book in enumerate(codec.codebooks_KVP):
        errors.append(np.mean((target - coded) ** 2))
        coded = coded + book[codes[:, k]]
    errors.append(np.mean((target - coded) ** 2))
    assert all(later < earlier for earlier, later in pairwise(errors)), errors


def test_coding_what_was_decoded_keeps_most_of_codebook_zero(codec: VocoderCodec) -> None:
    kept = []
    for hertz, name in ((110.0, "a"), (200.0, "i"), (280.0, "u")):
        codes = codec.encode(vowel(hertz, 1.2, name=name, semitones=2))
        kept.append(np.mean(codec.encode(codec.decode(codes))[:, 0] == codes[:, 0]))
    assert np.mean(kept) > 0.6, kept


def test_pitch_survives_the_codes(codec: VocoderCodec) -> None:
    low, high = (pitch(analyse(codec.decode(codec.encode(vowel(hertz, 1.0))).astype(float)))[0] for hertz in (120, 230))
    assert high / low == pytest.approx(230 / 120, rel=0.15)


def test_fit_depends_on_the_seed_alone() -> None:
    features = [analyse(vowel(hertz, 1.2, semitones=3)) for hertz in (100, 150, 210)]
    how = {"num_components": 8, "num_codebooks": 2, "codebook_size": 8, "iterations": 3}
    one, same, other = (VocoderCodec.fit(features, seed=seed, **how) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.codebooks_KVP, same.codebooks_KVP)
    assert not np.array_equal(one.codebooks_KVP, other.codebooks_KVP)


def test_fit_without_variation_in_a_feature_stays_finite() -> None:
    features = analyse(hiss(2.0))
    assert len(set(features[:, -1])) == 1, "the fixture should be unvoiced throughout"
    fitted = VocoderCodec.fit([features], num_components=4, num_codebooks=1, codebook_size=4, iterations=2)
    assert np.isfinite(fitted.codebooks_KVP).all()
    assert np.isfinite(fitted.features(fitted.quantise(features))).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=6, max_size=30), st.integers(0, 1000))
def test_one_round_of_kmeans_equals_an_explicit_loop(values: list[int], seed: int) -> None:
    points, size = np.asarray(values, dtype=np.float64)[:, None], 5
    book = points[np.random.default_rng(seed).choice(len(points), size, replace=False)]
    nearest = [min(range(size), key=lambda k: abs(point - book[k, 0])) for point in values]
    fitted = _kmeans(points, size, 1, np.random.default_rng(seed))
    for k in set(nearest):
        mine = [point for point, code in zip(values, nearest, strict=True) if code == k]
        assert fitted[k, 0] == pytest.approx(sum(mine) / len(mine), abs=1e-12)


def test_save_and_load_change_nothing(codec: VocoderCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    loaded = VocoderCodec.load(tmp_path)
    for name in ("mean_D", "scale_D", "basis_DP", "codebooks_KVP"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(codec, name))
    sound = vowel(133.0, 0.9, semitones=5)
    np.testing.assert_array_equal(loaded.encode(sound), codec.encode(sound))
    np.testing.assert_array_equal(loaded.decode(loaded.encode(sound)), codec.decode(codec.encode(sound)))


def test_saved_files_are_as_readable_as_others(codec: VocoderCodec, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        codec.save(tmp_path)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "codec.json": 0o644, "codec.safetensors": 0o644,
    }  # fmt: skip


def test_damaged_codec_is_named(codec: VocoderCodec, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=str(tmp_path)):
        VocoderCodec.load(tmp_path)
    codec.save(tmp_path)
    (tmp_path / "codec.safetensors").write_bytes(b"torn")
    with pytest.raises(BaseModelError, match="can't be read"):
        VocoderCodec.load(tmp_path)
