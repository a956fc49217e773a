"""Judges' doubts: wrong texts and labels are found, and a judge that is no better than guessing is not believed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from affetto.evaluate.clip_doubts import doubt_labels, doubt_texts
from affetto.types import Clip
from evaluate_fakes import RATE, PitchJudge, PitchWords, voice

WORDS = {12: "twelve", 13: "thirteen", 14: "fourteen", 25: "twenty five"}


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Low voices are sad, high ones happy, and each says its pitch."""
    found = []
    for number in range(24):
        hertz = 120 if number % 2 else 250
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, voice(hertz, 0.4), RATE)
        emotion = "sad" if number % 2 else "happy"
        found.append(Clip(str(number), path, f"{WORDS[hertz // 10].capitalize()}.", emotion, "0", "test"))
    return found


def test_a_text_that_another_sound_says_is_doubted(clips: list[Clip]) -> None:
    hearing = doubt_texts(clips, PitchWords())
    assert (hearing.num_clips, hearing.measure, hearing.doubts, hearing.reason) == (24, 0.0, (), None)
    clips[2] = replace(clips[2], text="Something else was said.")
    clips[5] = replace(clips[5], text="Wrong, too", transcribed_by="fake/numbers")
    clips[7] = replace(clips[7], text=None)
    hearing = doubt_texts(clips, PitchWords())
    assert hearing.num_clips == 22, "without text, or with its own, there is nothing to compare"
    assert [(doubt.where, doubt.kind) for doubt in hearing.doubts] == [("2", "text-mismatch")]
    assert "'twenty five' is heard" in hearing.doubts[0].message


def test_a_recogniser_that_understands_nothing_doubts_nothing(clips: list[Clip]) -> None:
    shouted = [replace(clip, text="A sentence of quite other words") for clip in clips]
    hearing = doubt_texts(shouted, PitchWords())
    assert hearing.doubts == ()
    assert "doesn't understand these voices" in str(hearing.reason)
    assert "didn't write itself" in str(doubt_texts([replace(clip, text=None) for clip in clips], PitchWords()).reason)


def test_a_label_that_sounds_otherwise_is_doubted(clips: list[Clip]) -> None:
    class Sure(PitchJudge):
        def posteriors(self, sounds: object) -> np.ndarray:
            return np.where(super().posteriors(sounds) > 0.5, 0.97, 0.03)  # type: ignore[arg-type]

    assert doubt_labels(clips, Sure()).doubts == ()
    clips[3] = replace(clips[3], emotion="happy")
    clips[4] = replace(clips[4], emotion="angry")
    hearing = doubt_labels(clips, Sure())
    assert [(doubt.where, doubt.kind) for doubt in hearing.doubts] == [("3", "label-doubt")]
    assert "labelled happy (0.03), but heard as sad (0.97)" in hearing.doubts[0].message
    assert hearing.num_clips == 23
    assert hearing.reason == "it has no label for angry"
    assert hearing.measure == pytest.approx((11 / 12 + 1) / 2)


def test_a_judge_that_guesses_is_not_believed(clips: list[Clip]) -> None:
    rng = np.random.default_rng(0)

    class Guessing(PitchJudge):
        def posteriors(self, sounds: list[object]) -> np.ndarray:  # type: ignore[override]
            happy = rng.integers(2, size=len(sounds)).astype(float)
            return np.stack([1 - happy, happy], axis=1)

    hearing = doubt_labels(clips, Guessing())
    assert hearing.doubts == ()
    assert re.fullmatch(r"it isn't believed about happy \(\d+ of 12\), sad \(\d+ of 12\)", str(hearing.reason))
    assert hearing.num_clips == 24


def test_a_judge_is_believed_about_what_it_hears_alone(clips: list[Clip]) -> None:
    """It calls every high voice happy and half of the low ones, too: so nothing is said about sad ones."""

    class HalfDeaf(PitchJudge):
        def posteriors(self, sounds: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
            high = super().posteriors(sounds)[:, 1] > 0.5
            happy = np.where(high | (np.arange(len(sounds)) % 4 > 0), 0.99, 0.01)
            return np.stack([1 - happy, happy], axis=1)

    clips[2] = replace(clips[2], emotion="sad")
    hearing = doubt_labels(clips, HalfDeaf())
    assert hearing.doubts == ()
    assert str(hearing.reason).startswith("it isn't believed about sad (")


def test_emotions_that_nobody_can_judge_are_told(clips: list[Clip]) -> None:
    unknown = doubt_labels([replace(clip, emotion="angry") for clip in clips], PitchJudge())
    assert (unknown.num_clips, unknown.measure, unknown.reason) == (0, None, "it has no label for angry")
    assert "no clip has an emotion" in str(doubt_labels([replace(clips[0], emotion=None)], PitchJudge()).reason)
