from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_judges
from affetto.errors import JudgeError
from affetto.judges import listeners
from affetto.judges.beam_search import WordModel
from affetto.judges.choice import Source, load_judge
from affetto.judges.ngrams import BackoffModel, write_arpa
from evaluate_fakes import RATE, silence, voice

LABELS = ("hap", "exc", "sad", "ang", "fear", "surprise", "neu", "calm")
SOUNDS = [
    voice(120, 0.9),
    voice(220, 0.31, end_hz=150),
    np.random.default_rng(0).normal(0, 0.1, 9137).astype(np.float32),
    np.concatenate([voice(90, 0.4), silence(0.3), voice(300, 0.5)]),
    voice(180, 0.15),
]


@pytest.fixture(scope="module")
def emotion(tmp_path_factory: pytest.TempPathFactory) -> listeners.EmotionListener:
    judge = load_judge("emotion", tiny_judges.bert_emotion(tmp_path_factory.mktemp("j") / "emotion", LABELS))
    assert isinstance(judge, listeners.EmotionListener)
    return judge


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> listeners.CtcListener:
    judge = load_judge("words", tiny_judges.bert_words(tmp_path_factory.mktemp("j") / "words"))
    assert isinstance(judge, listeners.CtcListener)
    return judge


def test_a_batch_hears_what_each_sound_alone_does(emotion: listeners.EmotionListener) -> None:
    assert emotion.batch_size > 1
    together = emotion.posteriors(SOUNDS)
    alone = np.concatenate([emotion.posteriors([sound]) for sound in SOUNDS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.ptp(alone, axis=0).max() > 1e-2, "a judge that hears no difference would pass anything"


def test_without_the_mask_the_batch_would_differ(emotion: listeners.EmotionListener) -> None:
    inputs = emotion.extractor([SOUNDS[0], SOUNDS[1]], sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.inference_mode():
        masked = emotion.model(**inputs).logits
        unmasked = emotion.model(input_features=inputs["input_features"]).logits
    assert (masked - unmasked)[1].abs().max() > 1e-3


def test_posteriors_follow_their_sounds(emotion: listeners.EmotionListener) -> None:
    np.testing.assert_allclose(emotion.posteriors(SOUNDS[::-1]), emotion.posteriors(SOUNDS)[::-1], atol=1e-6)


def test_pitfall_24_outputs_that_mean_the_same_are_added_and_calm_is_not_neutral(
    emotion: listeners.EmotionListener,
) -> None:
    assert emotion.labels == ("happy", "sad", "angry", "fearful", "surprised", "neutral", "calm")
    found = emotion.posteriors(SOUNDS[:2])
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-9)
    inputs = emotion.extractor(SOUNDS[:1], sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.inference_mode():
        own = torch.softmax(emotion.model(**inputs).logits.double(), dim=-1)[0].numpy()
    assert found[0, 0] == pytest.approx(own[0] + own[1], abs=1e-6)
    np.testing.assert_allclose(found[0, 1:], own[2:], atol=1e-6)


def test_ctc_words_are_the_same_alone_and_in_a_batch(words: listeners.CtcListener) -> None:
    together = words.transcribe(SOUNDS)
    assert together == [words.transcribe([sound])[0] for sound in SOUNDS]
    assert len(set(together)) > 1, "the fixture must say different things"
    assert all(together)


def test_padding_frames_spell_nothing(words: listeners.CtcListener) -> None:
    inputs = words.extractor([SOUNDS[0], SOUNDS[4]], sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.inference_mode():
        tokens = words.model(**inputs).logits.argmax(-1)
    real = inputs["attention_mask"][1].bool()
    assert (tokens[1][~real] != words.tokenizer.pad_token_id).any(), "the fixture's padding would spell something"
    assert words.transcribe([SOUNDS[0], SOUNDS[4]])[1] == words.tokenizer.decode(tokens[1][real]).strip()


def test_a_word_model_in_the_folder_is_heard_with_and_named(tmp_path: Path, words: listeners.CtcListener) -> None:
    folder = tiny_judges.bert_words(tmp_path / "with")
    (folder / "language_model").mkdir()
    listed = {("<unk>",): -3.0, ("</s>",): -0.1, ("<s>",): -99.0, ("a",): -1.0}
    write_arpa(BackoffModel(1, listed, {}), folder / "language_model" / "1gram.arpa")
    with_words = load_judge("words", folder)
    assert isinstance(with_words, listeners.CtcListener)
    assert "+lm@" in with_words.id
    assert "+lm@" not in words.id
    together = with_words.transcribe(SOUNDS)
    assert together == [with_words.transcribe([sound])[0] for sound in SOUNDS]
    # What isn't listed has its price, so that it says less than the letters alone do.
    assert sum(map(len, together)) < sum(map(len, words.transcribe(SOUNDS)))


def test_a_word_model_without_a_token_between_words_is_refused(words: listeners.CtcListener) -> None:
    class Joined:
        word_delimiter_token_id = None

    model = WordModel(BackoffModel(1, {("<unk>",): -1.0}, {}), name="0123456789")
    source = Source("here", "local/joined", "local", None)
    with pytest.raises(JudgeError, match="no token between words"):
        listeners.CtcListener(words.model, words.extractor, Joined(), source, "cpu", model)


def test_models_that_cannot_mask_hear_one_sound_at_a_time(tmp_path: Path) -> None:
    judge = load_judge("emotion", tiny_judges.group_norm_emotion(tmp_path / "group", LABELS))
    assert isinstance(judge, listeners.EmotionListener)
    assert judge.batch_size == 1
    together = judge.posteriors(SOUNDS)
    alone = np.concatenate([judge.posteriors([sound]) for sound in SOUNDS])
    np.testing.assert_array_equal(together, alone)


def test_whisper_writes_the_same_alone_and_in_a_batch_and_cuts_long_sounds(tmp_path: Path) -> None:
    judge = load_judge("words", tiny_judges.whisper_words(tmp_path / "whisper"))
    assert isinstance(judge, listeners.SequenceListener)
    assert judge.window == RATE
    sounds = [*SOUNDS, np.concatenate([voice(100, 0.9), silence(0.2), voice(250, 0.9)])]
    together = judge.transcribe(sounds)
    assert together == [judge.transcribe([sound])[0] for sound in sounds]
    halves = [judge.transcribe([piece])[0] for piece in listeners.cut(sounds[-1], RATE, RATE)]
    assert len(halves) >= 2
    assert together[-1] == " ".join(half for half in halves if half)
    assert any(together)


@given(st.integers(1, 5000), st.integers(400, 1000))
@settings(max_examples=50)
def test_pieces_make_up_the_sound(length: int, limit: int) -> None:
    sound = np.random.default_rng(length).normal(size=length).astype(np.float32)
    pieces = listeners.cut(sound, limit, 1000)
    np.testing.assert_array_equal(np.concatenate(pieces), sound)
    assert all(0 < len(piece) <= limit for piece in pieces)


def test_long_sounds_are_cut_in_the_silence() -> None:
    sound = np.concatenate([voice(100, 0.9), silence(0.06), voice(100, 0.5)])
    first, _ = listeners.cut(sound, RATE, RATE)
    assert 0.9 * RATE <= len(first) <= 0.96 * RATE


def test_a_checkpoint_of_another_task_is_refused_and_its_missing_weights_named(tmp_path: Path) -> None:
    folder = tiny_judges.bert_words(tmp_path / "words")
    with pytest.raises(JudgeError, match=r"classifier\.weight"):
        load_judge("emotion", folder)
    folder = tiny_judges.bert_emotion(tmp_path / "emotion", LABELS)
    with pytest.raises(JudgeError, match="vocabulary size of the language model head"):
        load_judge("words", folder)


def test_an_empty_folder_is_no_judge(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="can't load"):
        load_judge("emotion", tmp_path)
