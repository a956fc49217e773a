"""Dummy batches, with the shapes of a base's real ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from affetto.model.batch import Batch, Row, Streams, Turn, collate


def blank_batch(network: Any, rows: int, frames: int, text_tokens: int, depth_frames: int) -> Batch:
    """`rows` rows of `frames` predicted frames each, `depth_frames` in all for the depth decoder, with a gate of 1.

    `text_tokens` precede the frames, unless the base has a text stream; then there is one more input frame instead.
    """
    books = network.num_codebooks
    if network.has_text_stream:
        text_T, codes_TK = np.zeros(frames + 1, dtype=np.int64), np.zeros((frames + 1, books), dtype=np.int64)
        turn = Turn((), codes_TK, Streams(text_T, np.ones(frames + 1), codes_TK))
    else:
        codes_TK = np.zeros((frames - 1, books), dtype=np.int64)
        turn = Turn((0,) * text_tokens, codes_TK, end_code=network.end_code)
    per_row = np.split(np.arange(rows * frames) < depth_frames, rows)
    chosen = [np.flatnonzero(is_chosen) for is_chosen in per_row]
    return collate([Row(f"clip-{place}", (turn,), (1.0,)) for place in range(rows)], books, chosen)
