"""Moshi's inner monologue: when each word of a clip is said, and the text stream that says so frame by frame.

A word's tokens stand from the frame in which it begins, one per frame; everything else is padding, of which the last
one before a word is a token of its own (Défossez et al. 2024, section 3.4.4). Where a `.json` lies beside the sound
file, in the format of moshi-finetune's annotations, it says when; otherwise the words are spread over the clip by their
length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affetto.errors import DataError
from affetto.files import read_json
from affetto.model.batch import Streams, Turn
from affetto.types import Clip

END_PADDING, PADDING = 0, 3
"""Of Moshi's text: the last padding before a word, and every other."""
PADDING_WEIGHT = 0.5
"""What padding counts in the text's loss, as moshi-finetune has it."""
MAIN = "SPEAKER_MAIN"
"""Whose words Moshi says, in moshi-finetune's annotations."""
TAIL_FRAMES = 6
"""Frames of its own silence after a clip: half a second that teaches to end, the last of which is only heard."""


@dataclass(frozen=True)
class Word:
    """A word and when it is said, from the start of its clip."""

    text: str
    start_s: float


def clip_words(clip: Clip, num_frames: int, frame_rate: float) -> list[Word]:
    """The words of a clip of `num_frames` frames: as annotated beside the sound file, else spread evenly."""
    path = clip.audio.with_suffix(".json")
    if path.is_file():
        return annotated_words(path, clip.start_s or 0.0, clip.end_s)
    assert clip.text is not None, f"{clip.id} has no text"
    return spread_words(clip.text, num_frames / frame_rate)


def annotated_words(path: Path, start_s: float = 0.0, end_s: float | None = None) -> list[Word]:
    """Moshi's words between `start_s` and `end_s` of a file annotated as moshi-finetune does.

    That is `{"alignments": [[word, [start, end], speaker], …]}`. DataError where the file isn't so.
    """
    try:
        found = [(str(word), float(times[0]), str(speaker)) for word, times, speaker in read_json(path)["alignments"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f'{path} is no annotation ({error!r}): it should be {{"alignments": [[word, [start, end], "{MAIN}"], …]}}, '
            "in seconds. Mend it, or move it away to have the words spread evenly"
        ) from error
    last_s = float("inf") if end_s is None else end_s
    words = [Word(word.strip(), at - start_s) for word, at, who in found if who == MAIN and start_s <= at < last_s]
    if not words:
        raise DataError(f"{path} has no word of {MAIN} in the clip: mend it, or move it away")
    return sorted(words, key=lambda word: word.start_s)


def spread_words(text: str, duration_s: float) -> list[Word]:
    """Words one after another, each for as long as its share of the letters; a tenth of the clip is left at its end."""
    words, lengths = text.split(), [len(word) + 1 for word in text.split()]
    before = np.cumsum([0, *lengths[:-1]]) / max(1, sum(lengths))
    return [Word(word, float(share) * 0.9 * duration_s) for word, share in zip(words, before, strict=True)]


def text_stream(
    words: Sequence[Word], num_frames: int, tokenizer: Any, frame_rate: float, name: str = "clip"
) -> NDArray[np.int64]:
    """The inner monologue (T,). A word waits for the one before it, and begins early where the frames end.

    DataError where the words have more tokens than the clip has frames.
    """
    pieces = [tokenizer(word.text, add_special_tokens=False)["input_ids"] for word in words]
    left = sum(map(len, pieces))
    if left > num_frames:
        raise DataError(
            f"{name}: its text has {left} tokens and its sound {num_frames} frames of {1 / frame_rate:g} s, of which "
            "each says at most one token: text and sound don't belong together. Leave the clip out"
        )
    text_T, free = np.full(num_frames, PADDING, dtype=np.int64), 0
    for word, tokens in zip(words, pieces, strict=True):
        place = min(max(free, int(word.start_s * frame_rate)), num_frames - left)
        text_T[place : place + len(tokens)] = tokens
        if place > free:
            text_T[place - 1] = END_PADDING
        free, left = place + len(tokens), left - len(tokens)
    return text_T


def monologue_turn(
    clip: Clip, codes_TK: NDArray[np.integer], silence_TK: NDArray[np.integer], tokenizer: Any, frame_rate: float
) -> Turn:
    """The clip as Moshi's own speech, with its words beside it, to a silent user; half a second of silence follows.

    `silence_TK` are the codes of silence, at least `TAIL_FRAMES` frames longer than the clip.
    """
    frames = len(codes_TK)
    words = clip_words(clip, frames, frame_rate)
    said_T = text_stream(words, frames, tokenizer, frame_rate, clip.id)
    text_T = np.concatenate([said_T, np.full(TAIL_FRAMES, PADDING, dtype=np.int64)])
    own_TK = np.concatenate([np.asarray(codes_TK, dtype=np.int64), silence_TK[:TAIL_FRAMES]])
    weights_T = np.where(np.isin(text_T, (PADDING, END_PADDING)), PADDING_WEIGHT, 1.0)
    return Turn((), own_TK, Streams(text_T, weights_T, np.asarray(silence_TK[: len(own_TK)], dtype=np.int64)))
