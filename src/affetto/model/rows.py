"""Clips to rows: the prompt in the base's own template, the codes, the earlier turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from affetto.codes.silence import silence_codes
from affetto.model.base import Base
from affetto.model.batch import Row, Turn
from affetto.model.monologue import TAIL_FRAMES, monologue_turn
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
) -> list[Row]:
    """One row per clip. `template` wraps the text of the clip itself; earlier turns (`context`) are read plainly.

    In a base whose text runs beside its frames it is what is said, word by word, and no template can wrap it.
    """

    def stream(clip: Clip) -> Turn:
        codes_TK = codes_of(clip)
        silence_TK = silence_codes(base.folder, len(codes_TK) + TAIL_FRAMES)
        return monologue_turn(clip, codes_TK, silence_TK, base.tokenizer, base.frame_rate)

    def turn(clip: Clip, wording: str) -> Turn:
        assert clip.text is not None, f"{clip.id} has no text"
        ids = base.prompt_ids(wording.replace("{text}", clip.text), speakers[clip.speaker])
        return Turn(ids, codes_of(clip))

    known = by_id or {}
    if base.has_text_stream:
        return [Row(clip.id, (*(stream(known[earlier]) for earlier in clip.context), stream(clip))) for clip in clips]
    return [
        Row(clip.id, (*(turn(known[earlier], PLAIN_TEMPLATE) for earlier in clip.context), turn(clip, template)))
        for clip in clips
    ]
