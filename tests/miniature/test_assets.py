"""The weights that are shipped: complete, of one codec, and as good as docs/log.md says they are."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from affetto.codes.vocoder import NUM_CEPSTRA, VocoderCodec, analyse
from affetto.judges.choice import WordJudge, default_judge
from affetto.metrics.words import score_words, word_error_rate
from affetto.miniature.base import CODEBOOK_SIZE, NUM_CODEBOOKS
from affetto.miniature.corpus import EMOTIONS, SAMPLE_RATE, Line, acted_lines, general_lines, render
from affetto.model.base import MINIATURE, find_base
from affetto.speak.voice import Voice


@pytest.fixture(scope="module")
def shipped() -> VocoderCodec:
    return VocoderCodec.load(find_base(MINIATURE))


def test_codec_fits_the_base(shipped: VocoderCodec) -> None:
    assert (shipped.num_codebooks, shipped.codebook_size) == (NUM_CODEBOOKS, CODEBOOK_SIZE)
    inner = shipped.basis_DP.T @ shipped.basis_DP
    np.testing.assert_allclose(inner, np.eye(len(inner)), atol=1e-5, err_msg="principal components are orthonormal")


def test_codec_keeps_pitch_and_voicing(shipped: VocoderCodec) -> None:
    errors, kept = [], []
    for line in general_lines(6, "general", "test"):
        features = analyse(render(line))
        coded = shipped.features(shipped.quantise(features))
        voiced, again = features[:, -1] > 0.5, coded[:, -1] > 0.5
        errors.append(np.median(np.abs(features - coded)[voiced & again, NUM_CEPSTRA]) * 12 / np.log(2))
        kept.append(np.mean(voiced == again))
    assert np.mean(errors) < 1.0, f"{np.mean(errors):.1f} semitones"
    assert np.mean(kept) > 0.85


@pytest.fixture(scope="module")
def words() -> WordJudge:
    return default_judge("words")


def _wer(judge: WordJudge, texts: list[str], sounds: list[NDArray[np.float32]]) -> float:
    scores = [score_words(text, heard) for text, heard in zip(texts, judge.transcribe(sounds), strict=True)]
    return word_error_rate([score for score in scores if score is not None])


def _hear(shipped: VocoderCodec, line: Line) -> NDArray[np.float32]:
    heard = soxr.resample(shipped.decode(shipped.encode(render(line))), SAMPLE_RATE, 16_000, quality="HQ")
    return np.asarray(heard, dtype=np.float32)


def test_recogniser_hears_words_through_the_codec(shipped: VocoderCodec, words: WordJudge) -> None:
    lines = list(general_lines(24, "general", "test"))
    assert _wer(words, [line.text for line in lines], [_hear(shipped, line) for line in lines]) < 0.06


def test_emotion_judge_hears_unseen_actors(shipped: VocoderCodec) -> None:
    judge = default_judge("emotion")
    recalls = {}
    for emotion in EMOTIONS:
        sounds = [_hear(shipped, line) for line in acted_lines(emotion, {"test": 3})]
        recalls[emotion] = np.mean(judge.posteriors(sounds).argmax(axis=1) == judge.labels.index(emotion))
    assert np.mean(list(recalls.values())) > 0.84, recalls


def test_base_speaks_clearly_and_stops(words: WordJudge) -> None:
    voice = Voice.load(MINIATURE)
    texts = [line.text for line in general_lines(24, "general", "test")]
    spoken = voice.generate([voice.request(text, speaker=index % 6, seed=index) for index, text in enumerate(texts)])
    assert not any(item.hit_cap or len(item.codes_TK) == 0 for item in spoken)
    sounds = [
        np.asarray(soxr.resample(voice.decode(item), SAMPLE_RATE, 16_000, quality="HQ"), dtype=np.float32)
        for item in spoken
    ]
    assert _wer(words, texts, sounds) < 0.12
