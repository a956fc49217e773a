"""The miniature's judges: padding, batches, and training that learns and saves what transformers loads."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForAudioClassification, AutoModelForCTC, Wav2Vec2BertProcessor

from affetto.codes.vocoder import NUM_CEPSTRA
from affetto.miniature.corpus import EMOTIONS, PLAIN, Rendered
from affetto.miniature.judges import (
    LABELS,
    VOCABULARY,
    JudgeRecipe,
    _groups,
    _spelled,
    label,
    letter_places,
    make_feature_extractor,
    make_pitch_extractor,
    pad,
    pitch_loss,
    pitch_track,
    train_emotion_judge,
    train_recogniser,
)

Features = dict[str, NDArray[np.float16]]
Pitched = tuple[Features, dict[str, str], Features]


def recipe(num_epochs: int, frames_per_batch: int = 150) -> JudgeRecipe:
    return JudgeRecipe(num_epochs, hidden_size=32, num_layers=1, frames_per_batch=frames_per_batch, lr=3e-3)


@pytest.fixture(scope="module")
def world() -> tuple[Features, dict[str, str], dict[str, str]]:
    """Features, emotions and texts: each emotion and each letter is a pattern of its own."""
    rng = np.random.default_rng(0)
    emotion_patterns = {label: rng.standard_normal(240) for label in LABELS}
    letter_patterns = {letter: 2 * rng.standard_normal(240) for letter in "abc "}
    features, emotions, texts = {}, {}, {}
    for index in range(28):
        name, label = f"clip-{index}", LABELS[index % len(LABELS)]
        text = "".join(rng.permutation(list("abc"))[: 2 + index % 2])
        frames = np.repeat([letter_patterns[letter] for letter in f" {text} "], 6, axis=0)
        noise = 0.1 * rng.standard_normal(frames.shape)
        features[name] = (frames + emotion_patterns[label] + noise).astype(np.float16)
        emotions[name], texts[name] = label, text
    return features, emotions, texts


def places(texts: dict[str, str]) -> dict[str, NDArray[np.int16]]:
    """Six frames a letter in `world`, and six of silence at both ends."""
    heard = {key: np.repeat([-1, *range(len(text)), -1], 6) for key, text in texts.items()}
    return {key: value.astype(np.int16) for key, value in heard.items()}


@pytest.fixture(scope="module")
def pitched() -> Pitched:
    """Windows of the pitch extractor's shape, emotions and pitch: each emotion is a pattern over the bands."""
    rng = np.random.default_rng(0)
    patterns = {emotion: rng.standard_normal(128) for emotion in LABELS}
    emotions = {f"clip-{index}": LABELS[index % len(LABELS)] for index in range(24)}
    noise = {name: 0.1 * rng.standard_normal((400, 128)) for name in emotions}
    features = {name: (patterns[emotions[name]] + noise[name]).astype(np.float16) for name in emotions}
    pitches = {
        name: np.full((200, 2), (0.2 * LABELS.index(emotions[name]), 1.0)).astype(np.float16) for name in emotions
    }
    return features, emotions, pitches


def test_plain_reading_is_neutral_to_the_judge() -> None:
    assert LABELS[label(PLAIN)] == "neutral"
    assert [LABELS[label(emotion)] for emotion in EMOTIONS] == list(EMOTIONS)


def test_the_pitch_extractor_tells_a_mans_pitches_apart() -> None:
    """100 and 112 Hz, two semitones: their harmonics fall into different bands, which windows of 25 ms blur."""
    seconds = np.arange(16_000) / 16_000
    bands = []
    for f0 in (100.0, 112.0):
        tone = sum(np.sin(2 * np.pi * f0 * k * seconds) for k in range(1, 20)) / 20
        (window,) = make_pitch_extractor()(tone, sampling_rate=16_000, return_tensors="np")["input_features"]
        assert window.shape == (128, 400)
        bands.append(window[:40, 20:60].mean(axis=1))
    contrast = bands[0].max() - bands[0].min()
    assert np.abs(bands[0] - bands[1]).max() > 0.3 * contrast


def test_pitch_track_is_the_codecs_pitch_at_the_judges_frames() -> None:
    """A glide of an octave a second from 150 Hz, voiced for a second and a half of two."""
    seconds = np.arange(200) * 0.01
    features = np.zeros((200, 26))
    features[:, NUM_CEPSTRA] = np.log(150.0) + np.log(2.0) * seconds
    features[:, NUM_CEPSTRA + 1] = seconds < 1.5
    track = pitch_track(features).astype(float)
    assert track.shape == (200, 2)
    assert 6.0 * track[40, 0] == pytest.approx(12.0, abs=0.13), "one second in, one octave up"
    assert track[:, 1].tolist() == [float(index < 60) for index in range(200)]
    assert not track[80:].any(), "after the clip's end"


def test_letters_share_their_words_time() -> None:
    """ "ab cde": the first word starts at 60 ms, the second at 240 ms, silence at 420 ms; frames of 30 ms."""
    rendered = Rendered(np.zeros(24_000), ((0, 0.06), (3, 0.24)), end=0.42)
    assert letter_places(rendered, "ab cde", 16).tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, -1, -1]


def test_a_text_is_spelled_in_sounds_and_reads_back_as_it_was() -> None:
    """Doubled letters are one unit: CTC would need a blank between them."""
    units = list(VOCABULARY)
    for text in ("They will call the button", "Eighteen graphs can't be lit", "a"):
        spelled = _spelled(text)
        parts = [units[unit] for unit in spelled.units]
        assert "".join(parts) == text.lower().replace(" ", "|")
        assert not any(one == other for one, other in itertools.pairwise(parts))
        assert len(spelled.by_letter) == len(text)
        assert all(letter.lower().replace(" ", "|") in units[unit]
                   for letter, unit in zip(text, spelled.by_letter, strict=True))  # fmt: skip
    assert [units[unit] for unit in _spelled("they will").units] == ["th", "ey", "|", "w", "i", "ll"]


def test_pitch_counts_only_where_there_is_voice() -> None:
    true = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    sure = torch.tensor([[[1.0, 30.0], [5.0, -30.0]]])
    assert pitch_loss(sure, true).item() == pytest.approx(0.0, abs=1e-6)
    off = torch.tensor([[[1.5, 30.0], [5.0, -30.0]]])
    assert pitch_loss(off, true).item() == pytest.approx(0.5)
    assert pitch_loss(-sure, true).item() > 10.0


def test_padding_and_mask() -> None:
    short, long = np.ones((2, 3), dtype=np.float16), np.full((4, 3), 2, dtype=np.float16)
    inputs, mask = pad([short, long])
    assert inputs.dtype == torch.float32
    assert inputs.tolist() == [[[1] * 3] * 2 + [[0] * 3] * 2, [[2] * 3] * 4]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_groups_hold_every_clip_once_within_the_budget(world: tuple[Features, dict[str, str], dict[str, str]]) -> None:
    features = world[0]
    epochs = [list(_groups(features, recipe(1), epoch)) for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    for group in epochs[0]:
        assert group
        assert len(group) * max(len(features[key]) for key in group) <= 150
    assert sorted(key for group in epochs[0] for key in group) == sorted(features)


def test_clips_beyond_the_budget_come_alone() -> None:
    features = {str(index): np.zeros((500, 240), dtype=np.float16) for index in range(3)}
    assert sorted(_groups(features, recipe(1), 0)) == [["0"], ["1"], ["2"]]


@torch.no_grad()
def accuracy(model: torch.nn.Module, features: Features, emotions: dict[str, str]) -> float:
    inputs, _ = pad(list(features.values()))
    guesses = model(inputs.mT).logits.argmax(dim=1).tolist()
    return float(np.mean([LABELS[guess] == emotions[key] for guess, key in zip(guesses, features, strict=True)]))


def test_emotion_judge_learns_and_loads(pitched: Pitched, tmp_path: Path) -> None:
    features, emotions, pitches = pitched
    judge = train_emotion_judge(features, emotions, pitches, recipe(40, 3_300), tmp_path)
    assert next(judge.parameters()).dtype == torch.float32, "what is returned must run on a CPU"
    assert not judge.training
    early = train_emotion_judge(features, emotions, pitches, recipe(1, 3_300), tmp_path / "early")
    assert accuracy(judge, features, emotions) > 0.8 > accuracy(early, features, emotions)
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert accuracy(loaded, features, emotions) == accuracy(judge, features, emotions)


def test_padding_does_not_change_what_is_heard(
    world: tuple[Features, dict[str, str], dict[str, str]], tmp_path: Path
) -> None:
    features, _, texts = world
    judge = train_recogniser(features, texts, places(texts), recipe(1), tmp_path)
    keys = sorted(features, key=lambda key: len(features[key]))
    with torch.no_grad():
        inputs, mask = pad([features[keys[0]], features[keys[-1]]])
        together = judge(input_features=inputs, attention_mask=mask).logits[0, : len(features[keys[0]])]
        inputs, mask = pad([features[keys[0]]])
        alone = judge(input_features=inputs, attention_mask=mask).logits[0]
    assert len(features[keys[0]]) < len(features[keys[-1]])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_judges_depend_on_their_seed_alone(pitched: Pitched, tmp_path: Path) -> None:
    features, emotions, pitches = pitched
    one = train_emotion_judge(features, emotions, pitches, recipe(1, 3_300), tmp_path)
    np.random.default_rng().standard_normal(3)
    torch.rand(7)
    other = train_emotion_judge(features, emotions, pitches, recipe(1, 3_300), tmp_path)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@torch.no_grad()
def ctc_loss(model: torch.nn.Module, features: Features, texts: dict[str, str]) -> float:
    losses = []
    for key, item in features.items():
        inputs, mask = pad([item])
        log_probs = model(input_features=inputs, attention_mask=mask).logits.log_softmax(dim=-1).transpose(0, 1)
        target = torch.tensor([[VOCABULARY[letter] for letter in texts[key]]])
        lengths = torch.tensor([len(log_probs)]), torch.tensor([target.shape[1]])
        losses.append(torch.nn.functional.ctc_loss(log_probs, target, *lengths, blank=0, reduction="sum").item())
    return float(np.mean(losses))


def test_recogniser_learns_and_loads(world: tuple[Features, dict[str, str], dict[str, str]], tmp_path: Path) -> None:
    features, _, texts = world
    early = train_recogniser(features, texts, places(texts), recipe(1), tmp_path / "early")
    late = train_recogniser(features, texts, places(texts), recipe(25), tmp_path / "late")
    assert ctc_loss(late, features, texts) < 0.6 * ctc_loss(early, features, texts)
    loaded = AutoModelForCTC.from_pretrained(tmp_path / "late", dtype=torch.float32).eval()
    assert ctc_loss(loaded, features, texts) == pytest.approx(ctc_loss(late, features, texts), rel=0.02)
    processor = Wav2Vec2BertProcessor.from_pretrained(tmp_path / "late")
    spelled = [VOCABULARY[letter] for letter in "c"] + [0, VOCABULARY["a"], VOCABULARY["|"], VOCABULARY["b"]]
    assert processor.decode(spelled) == "ca b"


def test_feature_extractor_stacks_three_frames() -> None:
    sound = 0.1 * np.sin(np.arange(16_000) * 0.2)
    found = make_feature_extractor()(sound, sampling_rate=16_000, return_tensors="np", padding=False)
    assert found["input_features"].shape[2] == 240
    assert found["input_features"].shape[1] == pytest.approx(100 / 3, abs=2)
