"""What every system is asked to say: the same words, voices and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from affetto.speak.generation import Request
from affetto.speak.voice import Voice


@dataclass(frozen=True)
class Sentence:
    """One thing to be said by every system: same words, same voice, same seed."""

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
    cued: bool,
) -> list[Request]:
    """The requests for `sentences`, in order; see `Voice.request`."""
    return [
        voice.request(
            sentence.text, emotion, intensity=intensity, speaker=sentence.number, seed=sentence.seed,
            temperature=temperature, cued=cued,
        )
        for sentence in sentences
    ]  # fmt: skip
