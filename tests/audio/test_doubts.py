"""Doubts: doubles told by their samples, durations against what is usual, balance, and leaks of given splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from affetto.audio.doubts import balance, duplicate_doubts, duplicates, odd_durations
from affetto.audio.overview import examine
from affetto.types import EMOTIONS, Clip

Tone = Callable[..., Path]
MakeClip = Callable[..., Clip]


def test_a_double_is_one_whatever_file_holds_it(tone: Tone, tmp_path: Path, make_clip: MakeClip) -> None:
    first = tone("a.wav", duration_s=0.5, hertz=300)
    samples, rate = soundfile.read(first)
    soundfile.write(tmp_path / "b.flac", samples, rate)
    soundfile.write(tmp_path / "long.wav", np.concatenate([np.zeros(rate), samples]), rate)
    tone("other.wav", duration_s=0.5, hertz=301)
    clips = [
        make_clip("a", audio=first),
        make_clip("b", audio=tmp_path / "b.flac", text="other words"),
        make_clip("segment", audio=tmp_path / "long.wav", start_s=1.0, emotion="sad"),
        make_clip("whole", audio=tmp_path / "long.wav"),
        make_clip("other", audio=tmp_path / "other.wav"),
        make_clip("gone", audio=tmp_path / "gone.wav"),
    ]
    (group,) = duplicates(clips)
    assert [clip.id for clip in group] == ["a", "b", "segment"]
    told = {doubt.where: doubt.message for doubt in duplicate_doubts([group])}
    assert told.keys() == {"b", "segment"}
    assert "another text;" in told["b"]
    assert "another text and another emotion;" in told["segment"]


def test_durations_are_held_against_their_corpus(make_clip: MakeClip) -> None:
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(4.0), 0.1, 40))
    clips = [make_clip(str(number)) for number in range(40)]
    seconds = {str(number): float(value) for number, value in enumerate(lengths)}
    assert odd_durations(clips, seconds) == []
    spoilt = seconds | {"3": 40.0, "4": 0.4}
    found = odd_durations(clips, spoilt)
    assert [(doubt.where, doubt.kind) for doubt in found] == [("3", "odd-duration"), ("4", "odd-duration")]
    assert ["longer" in doubt.message for doubt in found] == [True, False]
    logs = np.log([spoilt[clip.id] for clip in clips])
    score = (logs[3] - np.median(logs)) / (1.4826 * np.median(np.abs(logs - np.median(logs))))
    assert f"robust z {score:+.0f}" in found[0].message
    assert odd_durations(clips[:7], spoilt) == [], "too few to know what is usual"


def speech(make_clip: MakeClip, **counts: int) -> list[Clip]:
    """Clips by `emotion_speaker`; `general` is no emotion."""
    return [
        make_clip(f"{key}-{number}", emotion=None if key.startswith("general") else key[:-2], speaker=key[-1])
        for key, count in counts.items()
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"happy_a": 10, "sad_a": 10, "general_a": 90}, []),
        ({"happy_a": 60, "sad_a": 10}, [("emotions", "unbalanced")]),
        ({"happy_a": 9, "happy_b": 1, "general_a": 1}, [("happy", "unbalanced")]),
        ({"happy_a": 8, "happy_b": 2, "general_a": 1}, []),
        ({"happy_a": 10, "general_b": 10}, [("happy", "confounded")]),
        ({"happy_a": 10, "happy_b": 10, "general_b": 10}, []),
        ({"happy_a": 10}, []),
    ],
)  # fmt: skip
def test_balance(make_clip: MakeClip, counts: dict[str, int], expected: list[tuple[str, str]]) -> None:
    clips = speech(make_clip, **counts)
    found = balance(clips, {clip.id: 2.0 for clip in clips})
    assert [(doubt.where, doubt.kind) for doubt in found] == expected


@pytest.fixture
def split_by_hand(tone: Tone, tmp_path: Path) -> Path:
    """Nothing shared but the speaker."""
    rows = []
    for number in range(12):
        tone(f"set/{number}.wav", duration_s=1.0, hertz=200 + 20 * number)
        split = ("train", "validation", "test")[number // 4]
        rows.append({"id": str(number), "audio": f"{number}.wav", "text": f"Sentence {number}", "split": split})
    (tmp_path / "set/manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "set"


def test_leaks_of_given_splits_are_told_by_text_sound_and_where_asked_speaker(split_by_hand: Path) -> None:
    assert examine([split_by_hand], EMOTIONS).leaks == ()
    by_speaker = examine([split_by_hand], EMOTIONS, by_speaker=True)
    assert {"speakers" in leak.message for leak in by_speaker.leaks} == {True}
    assert len(by_speaker.leaks) == 3, "each pair of splits"
    (split_by_hand / "11.wav").write_bytes((split_by_hand / "0.wav").read_bytes())
    manifest = split_by_hand / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("Sentence 5", "sentence, 1!"))
    found = examine([split_by_hand], EMOTIONS)
    assert [leak.message.split(":")[0] for leak in found.leaks] == [
        "train and validation share 1 text ('sentence 1')", "train and test share a sound",
    ]  # fmt: skip
    assert [doubt.where for doubt in found.doubts if doubt.kind == "duplicate-sound"] == ["11"]
    assert not [doubt for doubt in found.doubts if doubt.kind == "split-overlap"], "said once"


def test_overlaps_that_affetto_had_to_accept_are_doubts(tone: Tone, tmp_path: Path) -> None:
    for number in range(12):
        tone(f"happy/{number}.wav", duration_s=1.0, hertz=200 + number)
        (tmp_path / f"happy/{number}.txt").write_text(f"Only {number % 2}")
    found = examine([tmp_path / "happy"], EMOTIONS)
    assert found.leaks == ()
    assert "missing-split" in {doubt.kind for doubt in found.doubts}
