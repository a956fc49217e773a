"""Makes rows from clips: the prompt in the base's own template, the codes, the earlier turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from affetto.codes.silence import silence_codes
from affetto.codes.timing import Beside
from affetto.errors import BaseModelError, DataError
from affetto.model.base import Base
from affetto.model.batch import Row, Turn
from affetto.model.monologue import TAIL_FRAMES, heard_turn, monologue_turn
from affetto.types import Clip

PLAIN_TEMPLATE = "{text}"


def make_rows(
    base: Base,
    clips: Sequence[Clip],
    codes_of: Callable[[Clip], NDArray[np.integer]],
    speakers: Mapping[str, int],
    *,
    template: str = PLAIN_TEMPLATE,
    by_id: Mapping[str, Clip] | None = None,
    beside_of: Callable[[Clip], Beside | None] = lambda _: None,
) -> list[Row]:
    """One row per clip. `template` wraps the text of the clip itself; earlier turns (`context`) have no template.

    If the base's text runs in parallel with its frames, it is the words that are said, and `template` isn't used;
    `beside_of` gives their times and the other speaker's codes. Earlier turns of a clip's own speaker, and clips with
    both speakers, become the base's own speech; those of others become the user's. To fit a row into the base's window
    the oldest turns are dropped. DataError if a clip doesn't fit even without its context, BaseModelError if the codes
    are another base's.
    """

    def frames(clip: Clip) -> NDArray[np.integer]:
        codes_TK = codes_of(clip)
        if codes_TK.shape[1] != base.network.num_codebooks:
            raise BaseModelError(
                f"{base.id} reads {base.network.num_codebooks} codebooks and its codec has {codes_TK.shape[1]}: the "
                "codec that its folder names is another base's; fetch the whole checkpoint again"
            )
        return codes_TK

    def stream(clip: Clip, speaker: str) -> Turn:
        codes_TK, beside = frames(clip), beside_of(clip)
        silence_TK = silence_codes(base.folder, len(codes_TK) + TAIL_FRAMES)
        if clip.speaker == speaker or (beside is not None and beside.user_TK is not None):
            return monologue_turn(clip, codes_TK, silence_TK, base.tokenizer, base.frame_rate, beside)
        return heard_turn(codes_TK, silence_TK)

    def turn(clip: Clip, speaker: str, wording: str) -> Turn:
        if base.has_text_stream:
            return stream(clip, speaker)
        assert clip.text is not None, f"{clip.id} has no text"
        ids = base.prompt_ids(wording.replace("{text}", clip.text), speakers[clip.speaker])
        return Turn(ids, frames(clip), end_code=base.network.end_code)

    def row(clip: Clip) -> Row:
        earlier = [turn(clips_by_id[name], clip.speaker, PLAIN_TEMPLATE) for name in clip.context]
        return windowed(Row(clip.id, (*earlier, turn(clip, clip.speaker, template))), base.window)

    clips_by_id = by_id or {}
    return [row(clip) for clip in clips]


def windowed(row: Row, window: int) -> Row:
    """`row` without its oldest turns, so that it fits into `window`. Turns are dropped whole, since half a turn would
    lose its text. DataError if the last turn alone is longer.
    """
    turns = list(row.turns)
    while len(turns) > 1 and replace(row, turns=tuple(turns)).num_positions > window:
        turns.pop(0)
    fitting = replace(row, turns=tuple(turns))
    if fitting.num_positions > window:
        raise DataError(
            f"{row.clip_id} takes {fitting.num_positions} positions ({fitting.num_frames} frames and its text), and "
            f"the base's window is {window}: cut the clip, or leave it out"
        )
    return fitting
