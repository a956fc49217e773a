"""The sentences that every system speaks, with the same words, voices and seeds; and the recordings to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from affetto.speak.arguments import has_words
from affetto.speak.requests import Request
from affetto.speak.voice import Voice
from affetto.types import Clip


@dataclass(frozen=True)
class Sentence:
    """One sentence that every system speaks with the same words, voice and seed."""

    text: str
    speaker: str
    number: int
    """CSM's speaker number."""
    seed: int


def ask(
    voice: Voice,
    sentences: Sequence[Sentence],
    emotion: str | None,
    *,
    intensity: float,
    temperature: float,
    depth_temperature: float | None = None,
    cued: bool,
    takes: int = 1,
) -> list[Request]:
    """The requests for `sentences`, in order; see `Voice.request` and, for `takes`, `Voice.num_takes`."""
    takes = voice.num_takes(takes)
    return [
        voice.request(
            sentence.text, emotion, intensity=intensity, speaker=sentence.number, seed=sentence.seed,
            temperature=temperature, depth_temperature=depth_temperature, cued=cued, takes=takes,
        )
        for sentence in sentences
    ]  # fmt: skip


def texts_of(clips: Iterable[Clip], most: int | None = None) -> list[str]:
    """The distinct texts of `clips` that contain words, at most `most` of them, in order."""
    return list(dict.fromkeys(clip.text for clip in clips if clip.text and has_words(clip.text)))[:most]


def recordings_in_turn(clips: Sequence[Clip], most: int) -> list[Clip]:
    """At most `most` of `clips`, in order, chosen from every voice and intensity in turn and spread over the texts."""
    queues: dict[tuple[str, float], list[int]] = {}
    for place, clip in enumerate(clips):
        queues.setdefault((clip.speaker, clip.gate), []).append(place)
    # Golden-ratio steps through each queue, from a different start in each, so that they give different texts.
    orders = [
        [queue[i] for i in sorted(range(len(queue)), key=lambda i, start=start: 0.618 * (i + start) % 1)]  # type: ignore[misc]
        for start, queue in enumerate(queues.values())
    ]
    turns = zip_longest(*orders)
    chosen = [place for turn in turns for place in turn if place is not None][:most]
    return [clips[place] for place in sorted(chosen)]
