"""When each word of a clip is said: as annotated beside its sound file, as a recogniser hears it, or guessed.

Annotations are `.json` files in moshi-finetune's format. Without one, the clip's text is aligned to its sound by a
recogniser with a CTC head (`alignment`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from affetto.codes.alignment import align
from affetto.errors import DataError
from affetto.files import read_json

MAIN = "SPEAKER_MAIN"
"""The speaker whose words Moshi says, in moshi-finetune's annotations."""


@dataclass(frozen=True)
class Word:
    """A word and when it is said, from the start of its clip."""

    text: str
    start_s: float


@dataclass(frozen=True)
class Beside:
    """The streams that run in parallel with a clip's codes in a base that listens while it speaks."""

    words: tuple[Word, ...]
    user_TK: NDArray[np.integer] | None = None
    """Codes of the clip's other speaker, with as many frames as the clip; None is silence."""


@dataclass(frozen=True)
class Aligned:
    """A clip's words as a recogniser hears them."""

    words: tuple[Word, ...]
    doubt: float
    """How much less likely the text is than what the recogniser hears by itself, in nats per token; at least 0."""


class Recogniser(Protocol):
    """What alignment needs from a recogniser with a CTC head."""

    @property
    def id(self) -> str:
        """Identifies the weights."""
        ...

    @property
    def sample_rate(self) -> int:
        """Rate of the sounds that it hears."""
        ...

    @property
    def blank(self) -> int:
        """The token of a frame that adds nothing."""
        ...

    @property
    def between(self) -> int | None:
        """The token between words, if it has one."""
        ...

    def log_probs(self, sound: NDArray[np.float32]) -> NDArray[np.float64]:
        """Log-probabilities (T, V) of the frames of one mono sound."""
        ...

    def spell(self, word: str) -> list[int]:
        """The tokens of a word; letters that it can't spell are left out."""
        ...


def aligned_words(text: str, sound: NDArray[np.float32], recogniser: Recogniser) -> Aligned:
    """When the words of `text` are said in a mono sound at the recogniser's rate.

    A word begins with the first frame of its first token. A word without a letter that the recogniser knows begins
    where the previous word ends. Raises DataError if the text can't be said in the sound.
    """
    words = text.split()
    tokens: list[int] = []
    places: list[range] = []
    for word in words:
        spelled = recogniser.spell(word)
        if spelled and tokens and recogniser.between is not None:
            tokens.append(recogniser.between)
        places.append(range(len(tokens), len(tokens) + len(spelled)))
        tokens += spelled
    if not tokens:
        raise DataError(
            f"{recogniser.id} knows no letter of its text, so its words can't be aligned: write numbers and signs as "
            "words, choose another recogniser (--judge words=ID), or give the words' times in a .json beside the sound"
        )
    log_probs_TV = recogniser.log_probs(sound)
    alignment = align(log_probs_TV, tokens, recogniser.blank)
    if alignment is None:
        raise DataError(
            f"its text takes {len(tokens)} tokens of {recogniser.id}, which hears {len(log_probs_TV)} frames in it: "
            "the words can't be aligned. Mend the text, or leave the clip out"
        )
    frame_s = len(sound) / recogniser.sample_rate / len(log_probs_TV)
    starts_s, end_s = [], 0.0
    for place in places:
        starts_s.append(alignment.spans_L2[place.start, 0] * frame_s if place else end_s)
        end_s = alignment.spans_L2[place.stop - 1, 1] * frame_s if place else end_s
    doubt = (float(log_probs_TV.max(axis=1).sum()) - alignment.log_prob) / len(tokens)
    timed = tuple(Word(word, float(start_s)) for word, start_s in zip(words, starts_s, strict=True))
    return Aligned(timed, max(0.0, doubt))


def annotation_of(audio: Path) -> Path | None:
    """The annotation beside a sound file, if there is one."""
    path = audio.with_suffix(".json")
    return path if path.is_file() else None


def annotated_words(path: Path, start_s: float = 0.0, end_s: float | None = None) -> list[Word]:
    """Moshi's words between `start_s` and `end_s` of a file in moshi-finetune's format.

    The format is `{"alignments": [[word, [start, end], speaker], …]}`. DataError if the file hasn't it.
    """
    try:
        rows = [(str(word), float(times[0]), str(speaker)) for word, times, speaker in read_json(path)["alignments"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f'{path} is no annotation ({error!r}): it should be {{"alignments": [[word, [start, end], "{MAIN}"], …]}}, '
            "in seconds. Mend it, or move it away to have the words aligned by a recogniser"
        ) from error
    last_s = float("inf") if end_s is None else end_s
    words = [Word(word.strip(), at - start_s) for word, at, who in rows if who == MAIN and start_s <= at < last_s]
    if not words:
        raise DataError(f"{path} has no word of {MAIN} in the clip: mend it, or move it away")
    return sorted(words, key=lambda word: word.start_s)


def spread_words(text: str, duration_s: float) -> list[Word]:
    """Words spread over the first nine tenths of the clip, each as long as its share of the letters."""
    words: Sequence[str] = text.split()
    lengths = [len(word) + 1 for word in words]
    before = np.cumsum([0, *lengths[:-1]]) / max(1, sum(lengths))
    return [Word(word, float(share) * 0.9 * duration_s) for word, share in zip(words, before, strict=True)]
