"""Moshi's inner monologue: the text stream that shows, frame by frame, when each word of a clip is said.

A word's tokens start at the frame in which the word begins, one per frame; all other frames are padding, and the last
one before a word has a padding token of its own (Défossez et al. 2024, section 3.4.4). `affetto.codes.timing` times the
words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affetto.codes.timing import Beside, Word, annotated_words, annotation_of, spread_words
from affetto.errors import DataError
from affetto.model.batch import Streams, Turn
from affetto.types import Clip

END_PADDING, PADDING = 0, 3
"""Moshi's padding tokens: the last one before a word, and all others."""
PADDING_WEIGHT = 0.5
"""Weight of padding in the text's loss, as in moshi-finetune."""
TAIL_FRAMES = 6
"""Frames of silence after a clip: half a second that teaches the model to end. The last one is only input."""


def clip_words(clip: Clip, num_frames: int, frame_rate: float) -> Sequence[Word]:
    """A clip's words without a recogniser: timed by the annotation beside its file, else spread evenly."""
    path = annotation_of(clip.audio)
    if path is not None:
        return annotated_words(path, clip.start_s or 0.0, clip.end_s)
    assert clip.text is not None, f"{clip.id} has no text"
    return spread_words(clip.text, num_frames / frame_rate)


def text_stream(
    words: Sequence[Word], num_frames: int, tokenizer: Any, frame_rate: float, name: str = "clip"
) -> NDArray[np.int64]:
    """The inner monologue (T,). A word starts after the previous one ends, or earlier than said if frames run out.

    DataError if the words have more tokens than the clip has frames.
    """
    pieces = [tokenizer(word.text, add_special_tokens=False)["input_ids"] for word in words]
    left = sum(map(len, pieces))
    if left > num_frames:
        raise DataError(
            f"{name}: its text has {left} tokens and its sound {num_frames} frames of {1 / frame_rate:g} s, each of "
            "which holds at most one token: text and sound don't belong together. Leave the clip out"
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
    clip: Clip, codes_TK: NDArray[np.integer], silence_TK: NDArray[np.integer], tokenizer: Any, frame_rate: float,
    beside: Beside | None = None,
) -> Turn:  # fmt: skip
    """The clip as Moshi's own speech with its words in parallel, followed by half a second of silence.

    The user is the clip's other speaker, if `beside` has one, or silent. `silence_TK` are the codes of silence, at
    least `TAIL_FRAMES` frames longer than the clip. Without `beside` the words are those of `clip_words`.
    """
    frames = len(codes_TK)
    words = beside.words if beside else clip_words(clip, frames, frame_rate)
    said_T = text_stream(words, frames, tokenizer, frame_rate, clip.id)
    text_T = np.concatenate([said_T, np.full(TAIL_FRAMES, PADDING, dtype=np.int64)])
    weights_T = np.where(np.isin(text_T, (PADDING, END_PADDING)), PADDING_WEIGHT, 1.0)
    if beside is None or beside.user_TK is None:
        user_TK = np.asarray(silence_TK[: frames + TAIL_FRAMES], dtype=np.int64)
    else:
        assert len(beside.user_TK) == frames, (
            f"{clip.id}: {frames} frames of its own, {len(beside.user_TK)} of the user"
        )
        user_TK = _ended(beside.user_TK, silence_TK)
    return Turn((), _ended(codes_TK, silence_TK), Streams(text_T, weights_T, user_TK))


def heard_turn(codes_TK: NDArray[np.integer], silence_TK: NDArray[np.integer]) -> Turn:
    """A turn in which the user speaks and Moshi is silent: context for another turn, never trained on."""
    length = len(codes_TK) + TAIL_FRAMES
    streams = Streams(np.full(length, PADDING, dtype=np.int64), np.zeros(length), _ended(codes_TK, silence_TK))
    return Turn((), np.asarray(silence_TK[:length], dtype=np.int64), streams)


def _ended(codes_TK: NDArray[np.integer], silence_TK: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.concatenate([np.asarray(codes_TK, dtype=np.int64), silence_TK[:TAIL_FRAMES]])
