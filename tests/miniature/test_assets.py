"""The weights that are shipped: complete, of one codec, and as good as docs/log.md says they are."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
import torch
from numpy.typing import NDArray

from affetto.codes.vocoder import NUM_CEPSTRA, VocoderCodec, analyse
from affetto.judges.choice import WordJudge, default_judge
from affetto.metrics.words import score_words, word_error_rate
from affetto.miniature.base import CODEBOOK_SIZE, NUM_CODEBOOKS
from affetto.miniature.corpus import EMOTIONS, SAMPLE_RATE, Line, acted_lines, general_lines, render
from affetto.model.base import MINIATURE, find_base, load_base
from affetto.model.batch import Row, Turn, collate
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
    assert _wer(words, [line.text for line in lines], [_hear(shipped, line) for line in lines]) <= 0.03


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
    assert _wer(words, texts, sounds) <= 0.10


@torch.no_grad()
def test_pitfall_04_the_base_knows_where_held_out_clips_end(shipped: VocoderCodec) -> None:
    """After all of a clip the frame of zeros is the likeliest, in every codebook; before its end hardly ever."""
    base = load_base(MINIATURE)
    lines = list(general_lines(24, "general", "test"))
    turns = [Turn(base.prompt_ids(line.text, int(line.speaker)), shipped.encode(render(line))) for line in lines]
    batch = collate([Row(line.id, (turn,)) for line, turn in zip(lines, turns, strict=True)], NUM_CODEBOOKS)
    logits = base.network(batch)
    rows_N = batch.frames_N2[:, 0]
    is_last_N = torch.cat([rows_N[1:] != rows_N[:-1], torch.tensor([True])])
    best_NK = torch.cat([logits.c0_NV[:, None], logits.depth_MJV], dim=1).argmax(dim=-1)
    assert (batch.c0_targets_N[is_last_N] == 0).all()
    assert is_last_N.sum() == len(lines)
    recall = (best_NK[is_last_N, :-1] == 0).all(dim=1).double().mean().item()
    false_alarms = (best_NK[~is_last_N, 0] == 0).double().mean().item()
    assert recall > 0.95
    assert false_alarms < 0.02
