"""Which recordings stand beside what the systems say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from affetto.evaluate.sentences import recordings_in_turn, texts_of
from affetto.types import Clip


def clips_of(num_texts: int) -> list[Clip]:
    """Texts x voices x intensities, in the order in which corpora lie."""
    return [
        Clip(f"{text}-{who}-{intensity}", Path("/a"), f"text {text}", "happy", who, "c", intensity=intensity)
        for text in range(num_texts)
        for who in "ab"
        for intensity in (0.6, 1.0)
    ]


def test_every_voice_intensity_and_text_is_heard() -> None:
    clips = clips_of(15)
    for most in (8, 30, 31):
        chosen = recordings_in_turn(clips, most)
        assert len(chosen) == most == len({clip.id for clip in chosen})
        strata = Counter((clip.speaker, clip.gate) for clip in chosen)
        assert len(strata) == 4
        assert max(strata.values()) - min(strata.values()) <= 1
    texts = Counter(clip.text for clip in recordings_in_turn(clips, 30))
    assert len(texts) == 15
    assert max(texts.values()) <= 3
    assert [clips.index(clip) for clip in chosen] == sorted(clips.index(clip) for clip in chosen)


def test_few_recordings_are_all_heard() -> None:
    assert recordings_in_turn(clips_of(2), 30) == clips_of(2)
    assert recordings_in_turn([], 5) == []


def test_texts_that_nobody_could_speak_are_left_out() -> None:
    texts = ["one", "…", "two", None, "one", "?!", "", "three"]
    clips = [Clip(f"{index}", Path("/a"), text, "happy", "a", "c") for index, text in enumerate(texts)]
    assert texts_of(clips, 9) == ["one", "two", "three"]
    assert texts_of(clips, 2) == ["one", "two"]
