"""What the backbone reads: earlier turns, the words to be said, and frames that were said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from affetto.speak.weights import SpeakingWeights

if TYPE_CHECKING:
    from affetto.speak.generation import Request


def embed_prompt(weights: SpeakingWeights, request: Request) -> Tensor:
    """Input embeddings (S, D) of a request's earlier turns and of the text to be spoken."""
    parts = []
    for turn in request.context:
        parts.append(_embed_text(weights, turn.text_ids))
        if turn.codes_TK is not None:
            # What was said ends with the frame that ends speech, all zeros.
            parts.append(embed_frames(weights, np.pad(turn.codes_TK, ((0, 1), (0, 0)))))
    return torch.cat([*parts, _embed_text(weights, request.text_ids)])


def embed_frames(weights: SpeakingWeights, codes_TK: NDArray[np.integer]) -> Tensor:
    """Input embeddings (T, D) of frames."""
    offsets_K = torch.arange(weights.num_codebooks, device=weights.device) * weights.vocab_size
    codes = torch.from_numpy(np.asarray(codes_TK, dtype=np.int64)).to(weights.device) + offsets_K
    return functional.embedding(codes, weights.heard_table).sum(1)


def _embed_text(weights: SpeakingWeights, ids: Sequence[int]) -> Tensor:
    # The table may be on another device than the layers: only the rows that are read travel.
    table = weights.text_table
    rows_SD: Tensor = table[torch.tensor(ids, dtype=torch.int64, device=table.device)]
    return rows_SD.to(weights.device)
