"""Clips to rows: the prompt in the base's own template, the codes, the earlier turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from affetto.model.base import Base
from affetto.model.batch import Row, Turn
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
    """One row per clip. `template` wraps the text of the clip itself; earlier turns (`context`) are read plainly."""

    def turn(clip: Clip, wording: str) -> Turn:
        assert clip.text is not None, f"{clip.id} has no text"
        ids = base.prompt_ids(wording.replace("{text}", clip.text), speakers[clip.speaker])
        return Turn(ids, codes_of(clip))

    known = by_id or {}
    return [
        Row(clip.id, (*(turn(known[earlier], PLAIN_TEMPLATE) for earlier in clip.context), turn(clip, template)))
        for clip in clips
    ]
