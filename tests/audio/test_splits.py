"""Splits against the definition of a leak, on generated corpora of the shapes that real ones have."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.audio.splits import assert_disjoint, assign_splits, normalise_text
from affetto.errors import DataError
from affetto.types import SPLITS, Clip

_EMOTIONS = ("happy", "sad", None)


def _clip(name: str, text: str | None, emotion: str | None, speaker: str, **more: object) -> Clip:
    return Clip(name, Path(f"/data/{name}.wav"), text, emotion, speaker, "c", **more)  # type: ignore[arg-type]


def _crossed(num_texts: int, num_speakers: int, emotions: Sequence[str | None]) -> list[Clip]:
    """Every speaker says every text in every emotion, as in RAVDESS, CREMA-D and ESD."""
    return [
        _clip(f"{emotion}-{text}-{speaker}", f"Sentence {text}.", emotion, f"s{speaker}")
        for text, speaker, emotion in product(range(num_texts), range(num_speakers), emotions)
    ]


def _splits_of(clips: Sequence[Clip], by: Callable[[Clip], str | None]) -> dict[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for clip in clips:
        value = by(clip)
        if value is not None and clip.split is not None:
            found[value].add(clip.split)
    return found


def _words(clip: Clip) -> str | None:
    return clip.text and " ".join(clip.text.lower().rstrip(".!").split())


def _kinds(problems: Sequence[object]) -> list[str]:
    return [problem.kind for problem in problems]  # type: ignore[attr-defined]


@st.composite
def _corpora(draw: st.DrawFn) -> list[Clip]:
    num_texts, num_speakers = draw(st.integers(3, 12)), draw(st.integers(1, 6))
    cells = st.tuples(st.integers(0, num_texts - 1), st.integers(0, num_speakers - 1), st.sampled_from(_EMOTIONS))
    drawn = draw(st.lists(cells, min_size=1, max_size=40))
    spellings = st.sampled_from(["Text {}.", "text {}", "TEXT  {}!"])
    return [
        _clip(str(index), draw(spellings).format(text), emotion, f"s{speaker}")
        for index, (text, speaker, emotion) in enumerate(drawn)
    ]


@given(_corpora(), st.integers(0, 5), st.booleans())
@settings(max_examples=100, deadline=None)
def test_pitfall_23_no_text_and_no_speaker_in_two_splits_unless_told(clips: list[Clip], seed: int, ask: bool) -> None:
    placed, problems = assign_splits(clips, seed=seed, by_speaker=ask)
    assert [replace(clip, split=None) for clip in placed] == clips
    is_told = "split-overlap" in _kinds(problems)
    num_texts = {emotion: len({_words(clip) for clip in clips if clip.emotion == emotion}) for emotion in _EMOTIONS}
    for text, splits in _splits_of(placed, _words).items():
        is_scarce = any(num_texts[clip.emotion] == 2 for clip in clips if _words(clip) == text)
        assert len(splits) == 1 or (splits == {"validation", "test"} and is_scarce and is_told)
    if ask:
        voices = {emotion: {clip.speaker for clip in clips if clip.emotion == emotion} for emotion in _EMOTIONS}
        for speaker, splits in _splits_of(placed, lambda clip: clip.speaker).items():
            heard = [voices[clip.emotion] for clip in clips if clip.speaker == speaker]
            is_alone = all(others == {speaker} for others in heard)
            is_one_of_two = splits == {"validation", "test"} and any(len(others) == 2 for others in heard)
            assert len(splits) == 1 or (is_told and (is_alone or is_one_of_two))
    else:
        assert all(clip.split in SPLITS for clip in placed)


@given(_corpora(), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_and_place_of_the_clips_do_not_matter(clips: list[Clip], ask: bool, draw: random.Random) -> None:
    placed, problems = assign_splits(clips, by_speaker=ask)
    shuffled = draw.sample(clips, len(clips))
    moved = [replace(clip, audio=Path("/elsewhere") / clip.audio.name) for clip in shuffled]
    again, same = assign_splits(moved, by_speaker=ask)
    assert {clip.id: clip.split for clip in again} == {clip.id: clip.split for clip in placed}
    assert same == problems


@given(_corpora(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_splitting_what_is_split_changes_nothing(clips: list[Clip], ask: bool) -> None:
    placed, _ = assign_splits(clips, by_speaker=ask)
    used = [clip for clip in placed if clip.split]
    assert assign_splits(used, seed=9, by_speaker=ask)[0] == used


@given(st.integers(3, 60), st.integers(1, 4), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_pitfall_23_every_emotion_gets_every_split(num_texts: int, num_speakers: int, seed: int) -> None:
    clips = _crossed(num_texts, num_speakers, ["happy", "sad", "angry", None])
    placed, problems = assign_splits(clips, seed=seed)
    assert problems == []
    counts = Counter((clip.emotion, clip.split) for clip in placed)
    assert len(counts) == 12
    for emotion, split in product(["happy", None], ["validation", "test"]):
        wanted = max(1, 0.1 * num_texts)
        assert abs(counts[emotion, split] / num_speakers - wanted) <= 0.5 + 1e-9


def test_shares_are_met_per_emotion() -> None:
    clips = [_clip(f"h{n}", f"happy words {n}", "happy", "a") for n in range(200)]
    clips += [_clip(f"g{n}", f"general words {n}", None, "b") for n in range(100)]
    placed, problems = assign_splits(clips, validation=0.05, test=0.2)
    assert problems == []
    counts = Counter((clip.emotion, clip.split) for clip in placed)
    assert counts == {
        ("happy", "train"): 150, ("happy", "validation"): 10, ("happy", "test"): 40,
        (None, "train"): 75, (None, "validation"): 5, (None, "test"): 20,
    }  # fmt: skip


def test_seeds_differ() -> None:
    clips = _crossed(40, 1, ["happy"])
    ways = {tuple(clip.split for clip in assign_splits(clips, seed=seed)[0]) for seed in range(5)}
    assert len(ways) == 5


def test_a_split_of_no_size_stays_empty() -> None:
    placed, problems = assign_splits(_crossed(2, 2, ["happy"]), validation=0.0, test=0.5)
    assert (Counter(clip.split for clip in placed), problems) == ({"train": 2, "test": 2}, [])
    placed, problems = assign_splits(_crossed(2, 2, ["happy"]), validation=0.0, test=0.0)
    assert (Counter(clip.split for clip in placed), problems) == ({"train": 4}, [])


def test_pitfall_23_two_texts_keep_training_apart_and_tell_the_rest() -> None:
    clips = _crossed(2, 6, ["happy", "sad", "neutral"])  # RAVDESS
    placed, problems = assign_splits(clips)
    assert Counter(clip.split for clip in placed) == {"train": 18, "validation": 9, "test": 9}
    assert _kinds(problems) == ["split-overlap"]
    assert "validation and test share 1 text" in problems[0].message
    by_split = {split: [clip for clip in placed if clip.split == split] for split in SPLITS}
    for held in ("validation", "test"):
        assert_disjoint({"train": by_split["train"], held: by_split[held]}, "text")
        assert {clip.emotion for clip in by_split[held]} == {"happy", "sad", "neutral"}
    assert_disjoint({"validation": by_split["validation"], "test": by_split["test"]}, "speaker")


def test_two_texts_by_speaker_leave_out_what_would_leak() -> None:
    placed, problems = assign_splits(_crossed(2, 6, ["happy", "sad"]), by_speaker=True)
    by_split = {split: [clip for clip in placed if clip.split == split] for split in SPLITS}
    assert all(by_split.values())
    assert_disjoint(by_split, "speaker")
    assert_disjoint({"train": by_split["train"], "held": by_split["validation"] + by_split["test"]}, "text")
    num_left = sum(clip.split is None for clip in placed)
    assert num_left > 0
    assert any(problem.kind == "unplaced" and problem.message.startswith(f"{num_left} of 24") for problem in problems)


def test_one_text_is_for_training_and_two_with_one_speaker_for_validation_too() -> None:
    placed, problems = assign_splits(_crossed(1, 4, ["happy"]))
    assert ({clip.split for clip in placed}, _kinds(problems)) == ({"train"}, ["missing-split"])
    placed, problems = assign_splits(_crossed(2, 1, ["happy"]))
    assert sorted(str(clip.split) for clip in placed) == ["train", "validation"]
    assert _kinds(problems) == ["missing-split"]
    assert "no test" in problems[0].message


def test_two_held_out_speakers_of_one_text_stay_together() -> None:
    """Each emotion has two voices, so two of three speakers may be held out, and both say sentence 1."""
    said = {"sad": ["0 s0", "1 s0", "1 s1", "2 s0"], "happy": ["0 s1", "0 s2"], None: ["0 s0", "0 s2"]}
    clips = [
        _clip(f"{emotion} {cell}", f"Sentence {cell[0]}", emotion, cell[2:])
        for emotion, cells in said.items()
        for cell in cells
    ]
    for seed in range(30):
        placed, _ = assign_splits(clips, seed=seed, by_speaker=True)
        assert all(len(splits) == 1 for splits in _splits_of(placed, _words).values())


def test_crossed_corpus_by_speaker_has_no_leak_at_all() -> None:
    placed, problems = assign_splits(_crossed(12, 20, ["happy", "sad"]), by_speaker=True)  # CREMA-D
    by_split = {split: [clip for clip in placed if clip.split == split] for split in SPLITS}
    assert_disjoint(by_split, "speaker")
    assert_disjoint(by_split, "text")
    assert all(by_split.values())
    assert _kinds(problems) == ["unplaced"]


def test_by_speaker_wastes_nothing_where_texts_are_not_shared() -> None:
    clips = [_clip(f"{s}-{n}", f"words {s} {n}", None, f"s{s}") for s in range(10) for n in range(5)]  # LibriTTS
    placed, problems = assign_splits(clips, by_speaker=True)
    assert problems == []
    assert Counter(clip.split for clip in placed) == {"train": 40, "validation": 5, "test": 5}
    assert all(len(splits) == 1 for splits in _splits_of(placed, lambda clip: clip.speaker).values())


def test_by_speaker_an_only_speaker_is_split_by_text_and_told() -> None:
    clips = [_clip(str(n), f"words {n}", None, "LJ") for n in range(50)]
    placed, problems = assign_splits(clips, by_speaker=True)
    assert Counter(clip.split for clip in placed) == {"train": 40, "validation": 5, "test": 5}
    assert set(_kinds(problems)) == {"split-overlap"}
    assert all("LJ" in problem.message for problem in problems)


def test_an_emotion_of_one_speaker_does_not_move_that_speaker_out_of_training() -> None:
    clips = [*_crossed(9, 6, ["happy"]), _clip("rare", "A rare sentence.", "weary", "s3")]
    placed, _ = assign_splits(clips, by_speaker=True)
    assert {clip.split for clip in placed if clip.speaker == "s3"} <= {"train", None}
    assert placed[-1].split == "train"


def test_general_speech_and_emotions_share_no_text() -> None:
    shared = [_clip(f"g{n}", f"sentence {n}", None, "b") for n in range(4)]
    general = [_clip(f"o{n}", f"other {n}", None, "b") for n in range(40)]
    placed, problems = assign_splits(_crossed(4, 3, ["happy"]) + shared + general)
    assert problems == []
    assert all(len(splits) == 1 for splits in _splits_of(placed, _words).values())
    assert len(Counter((clip.emotion, clip.split) for clip in placed)) == 6


def test_context_stays_with_its_clip() -> None:
    clips = []
    for talk in range(20):
        clips += [_clip(f"{talk}-0", f"opening {talk}", None, "a"), _clip(f"{talk}-2", f"aside {talk}", None, "a")]
        clips.append(_clip(f"{talk}-1", f"reply {talk}", "happy", "b", context=(f"{talk}-0",)))
    clips[3] = replace(clips[3], text="opening 0")  # the same words open the first two talks
    placed, problems = assign_splits(clips)
    split_of = {clip.id: clip.split for clip in placed}
    assert problems == []
    assert all(split_of[turn] == clip.split for clip in placed for turn in clip.context)
    assert split_of["0-1"] == split_of["1-1"], "through the shared text"
    assert {clip.split for clip in placed if clip.emotion} == set(SPLITS)


def test_given_splits_stay_and_bind_their_text() -> None:
    clips = _crossed(10, 2, ["happy"])
    clips[0] = replace(clips[0], split="test")
    for seed in range(5):
        placed, problems = assign_splits(clips, seed=seed)
        assert problems == []
        assert (placed[0].split, placed[1].split) == ("test", "test"), "same text, other speaker"
        assert Counter(clip.split for clip in placed) == {"train": 16, "validation": 2, "test": 2}


def test_given_splits_that_leak_stay_and_are_told() -> None:
    clips = [
        _clip("a", "Same words.", "happy", "x", split="train"), _clip("b", "same words", "happy", "y", split="test"),
    ]  # fmt: skip
    placed, problems = assign_splits(clips)
    assert placed == clips
    assert ["same words" in problem.message for problem in problems] == [True]


def test_clips_without_text_and_segments_of_one_file() -> None:
    silent = [_clip(str(n), None, None, "a") for n in range(20)]
    twin = replace(silent[0], id="twin")
    placed, problems = assign_splits([*silent, twin])
    assert problems == []
    assert {clip.split for clip in placed} == set(SPLITS)
    assert placed[0].split == placed[-1].split, "the same recording under two ids"


def test_one_huge_text_does_not_become_the_validation_set() -> None:
    clips = [_clip(f"x{n}", "the common one", "happy", "a") for n in range(100)]
    clips += [_clip(f"y{n}", f"rare {n}", "happy", "a") for n in range(10)]
    for seed in range(10):
        placed, _ = assign_splits(clips, seed=seed)
        assert placed[0].split == "train"


@pytest.mark.parametrize("sizes", [(10, 5, 1), (6, 1)])
def test_few_texts_train_on_the_one_with_most_clips(sizes: tuple[int, ...]) -> None:
    clips = [
        _clip(f"{text}-{n}", f"words {text}", "happy", f"s{n}") for text, size in enumerate(sizes) for n in range(size)
    ]
    for seed in range(10):
        placed, _ = assign_splits(clips, seed=seed)
        assert {clip.text for clip in placed if clip.split == "train"} == {"words 0"}


def test_more_clips_of_a_text_that_leaks_already_go_to_training() -> None:
    given_splits = [_clip("a", "Same.", None, "x", split="test"), _clip("b", "same", None, "x", split="train")]
    placed, problems = assign_splits([*given_splits, _clip("c", "Same", None, "x")])
    assert placed[-1].split == "train"
    assert "split-overlap" in _kinds(problems)


def test_held_out_texts_stay_held_out_beside_given_splits_that_leak() -> None:
    leaking = [_clip("a", "Same.", None, "x", split="test"), _clip("b", "same", None, "x", split="train")]
    acted = [_clip(f"{text}-{speaker}", f"acted {text}", "happy", speaker) for text in (1, 2) for speaker in "xyz"]
    placed, _ = assign_splits([*leaking, *acted])
    assert all("train" not in splits or len(splits) == 1 for splits in _splits_of(placed[2:], _words).values())


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.5, 0.5), (1.0, 0.0), (float("nan"), 0.1)])
def test_impossible_shares(validation: float, test: float) -> None:
    with pytest.raises(DataError, match="shares"):
        assign_splits(_crossed(3, 1, ["happy"]), validation=validation, test=test)


def test_repeated_ids_are_refused() -> None:
    clips = _crossed(3, 1, ["happy"])
    with pytest.raises(DataError, match="happy-0-0"):
        assign_splits([*clips, clips[0]])


def test_no_clips() -> None:
    assert assign_splits([]) == ([], [])


@pytest.mark.parametrize(
    ("by", "other", "named"),
    [
        ("id", _clip("a", "x", None, "t"), "'a'"),
        ("text", _clip("b", "Hello,  THERE!", None, "t"), "'hello there'"),
        ("speaker", _clip("b", "x", None, "s"), "'s'"),
        ("audio", replace(_clip("b", "x", None, "t"), audio=Path("/data/a.wav")), r"a\.wav"),
    ],
)
def test_pitfall_20_overlap_is_named(by: str, other: Clip, named: str) -> None:
    one = _clip("a", "Hello there.", "happy", "s")
    apart = _clip("z", "quite different", None, "u")
    assert_disjoint({"replay": [one], "validation": [apart]}, by)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"replay and validation share 1 {by}: .*{named}"):
        assert_disjoint({"replay": [one], "validation": [apart, other]}, by)  # type: ignore[arg-type]


def test_clips_without_text_share_none() -> None:
    one, two = _clip("a", None, None, "s"), _clip("b", None, None, "s")
    assert_disjoint({"one": [one], "two": [two]}, "text")


@pytest.mark.parametrize(
    ("one", "two", "are_equal"),
    [
        ("Don\u2019t go!", "dont  GO", True),
        ("ＡＢＣ", "abc", True),
        ("well-known", "well known", True),
        ("Straße", "STRASSE", True),
        ("你好。", "你好", True),
        ("one", "two", False),
        ("?!", "...", False),
    ],
)
def test_normalised_texts(one: str, two: str, are_equal: bool) -> None:
    assert (normalise_text(one) == normalise_text(two)) is are_equal
