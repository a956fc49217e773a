"""The rehearsal buffer: general, stratified, always the same."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from affetto.audio.stratified import spread
from affetto.errors import DataError
from affetto.preserve.rehearsal import rehearsal_buffer
from affetto.types import Clip

# Speaker a has most of the clips; lengths run from 10 to 99.
CLIPS = [
    Clip(f"clip-{number:03}", Path("x.wav"), f"text {number}", None, "aaaaaaab"[number % 8], "made-up", "train")
    for number in range(160)
]
FRAMES = {clip.id: 10 + number * 37 % 90 for number, clip in enumerate(CLIPS)}


def test_pitfall_20_emotional_and_held_out_clips_are_refused() -> None:
    for wrong, message in (
        (replace(CLIPS[3], emotion="happy"), "clip-003 can't be rehearsed: it is happy speech of split train"),
        (replace(CLIPS[3], split="validation"), "it is general speech of split validation"),
        (replace(CLIPS[3], split="test"), "it is general speech of split test"),
        (replace(CLIPS[3], split=None), "it is general speech of split None"),
    ):
        with pytest.raises(DataError, match=message):
            rehearsal_buffer([*CLIPS[:3], wrong], FRAMES, 4, 0)


def test_pitfall_20_speakers_and_durations_are_spread_evenly() -> None:
    chosen = rehearsal_buffer(CLIPS, FRAMES, 24, seed=0)
    assert len({clip.id for clip in chosen}) == 24
    edges = [sorted(FRAMES.values())[len(FRAMES) * quarter // 4] for quarter in (1, 2, 3)]
    strata = Counter((clip.speaker, sum(FRAMES[clip.id] >= edge for edge in edges)) for clip in chosen)
    # Though a spoke seven times as much.
    assert strata == {(speaker, quarter): 3 for speaker in "ab" for quarter in range(4)}


def test_pitfall_20_the_choice_depends_on_clips_and_seed_alone() -> None:
    shuffled = random.Random(1).sample(CLIPS, len(CLIPS))
    chosen = [clip.id for clip in rehearsal_buffer(CLIPS, FRAMES, 40, seed=0)]
    assert [clip.id for clip in rehearsal_buffer(shuffled, FRAMES, 40, seed=0)] == chosen
    assert [clip.id for clip in rehearsal_buffer(CLIPS, FRAMES, 40, seed=1)] != chosen


@pytest.mark.parametrize("size", [0, 1, 159, 160, 1000])
def test_sizes(size: int) -> None:
    assert len(rehearsal_buffer(CLIPS, FRAMES, size, 0)) == min(size, len(CLIPS))
    assert rehearsal_buffer([], {}, size, 0) == []


def test_a_smaller_choice_is_the_start_of_a_larger_one() -> None:
    large = spread(CLIPS, FRAMES, 100, "seed")
    assert spread(CLIPS, FRAMES, 30, "seed") == large[:30]
