"""Connected groups against an explicit search, and allocation against its promises."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.audio.grouping import allocate, connected, first_split
from affetto.types import Clip


def _clip(name: str, emotion: str | None = None) -> Clip:
    return Clip(name, Path("/a.wav"), None, emotion, "0", "c")


@given(st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1, max_size=3), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_groups_are_what_a_search_reaches(keys: list[set[str]]) -> None:
    clips = [_clip(str(index)) for index in range(len(keys))]
    groups = connected(clips, lambda clip: sorted(keys[int(clip.id)]))
    expected = set()
    for start in range(len(keys)):
        reached, heard = {start}, set(keys[start])
        for _ in keys:
            reached |= {index for index, own in enumerate(keys) if own & heard}
            heard = set().union(*(keys[index] for index in reached))
        expected.add((min(heard), frozenset(str(index) for index in reached)))
    assert {(group.name, frozenset(clip.id for clip in group.clips)) for group in groups} == expected


def test_overlapping_emotions_each_get_all_splits_where_the_first_order_fails() -> None:
    said = {"happy": "123", "sad": "345", "angry": "146", "fearful": "256"}
    clips = [_clip(f"{emotion}-{text}", emotion) for emotion, texts in said.items() for text in texts]
    groups = connected(clips, lambda clip: [clip.id[-1]])
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    for seed in range(10):
        plan = allocate(groups, shares, seed, frozenset({"train"}))
        for texts in said.values():
            assert sorted(first_split(plan[text]) for text in texts) == sorted(shares)


def test_first_split() -> None:
    assert first_split(["test", "validation"]) == "validation"
    assert first_split(["test", "train"]) == "train"
