"""What the backbone reads: earlier turns, the text to speak, and spoken frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from affetto.speak.layers import Cache, Rotary, normed, spread
from affetto.speak.requests import Request
from affetto.speak.weights import Arranged, SpeakingWeights


def embed_prompt(weights: SpeakingWeights, request: Request) -> Tensor:
    """Input embeddings (S, D) of a request's earlier turns and the text to speak."""
    parts = []
    for turn in request.context:
        parts.append(_embed_text(weights, turn.text_ids))
        if turn.codes_TK is not None:
            # A turn ends with the end-of-audio frame, all zeros.
            parts.append(embed_frames(weights, np.pad(turn.codes_TK, ((0, 1), (0, 0)))))
    return torch.cat([*parts, _embed_text(weights, request.text_ids)])


def embed_frames(weights: SpeakingWeights, codes_TK: NDArray[np.integer]) -> Tensor:
    """Input embeddings (T, D) of frames."""
    offsets_K = torch.arange(weights.num_codebooks, device=weights.device) * weights.vocab_size
    codes = torch.from_numpy(np.asarray(codes_TK, dtype=np.int64)).to(weights.device) + offsets_K
    return functional.embedding_bag(codes, weights.heard_table, mode="sum")


def _embed_text(weights: SpeakingWeights, ids: Sequence[int]) -> Tensor:
    # The table may be on another device than the layers; only the rows that are needed are copied.
    table = weights.text_table
    rows_SD: Tensor = table[torch.tensor(ids, dtype=torch.int64, device=table.device)]
    return rows_SD.to(weights.device)


def read(
    weights: SpeakingWeights, arranged: Arranged, prompts: Sequence[Tensor], cache: Cache, rotary: Rotary
) -> Tensor:
    """Read the rows' prompts (S, D) into an empty cache, padded on the left; the backbone's last states (B, D)."""
    width, device = max(map(len, prompts)), weights.device
    starts = [width - len(prompt_SD) for prompt_SD in prompts]
    x_BSD = torch.stack([functional.pad(x_SD, (0, 0, width - len(x_SD), 0)) for x_SD in prompts])
    slots_S = torch.arange(width, device=device)
    positions, mask_BSS = slots_S, None
    if any(starts):
        starts_B = torch.tensor(starts, device=device)
        positions = (slots_S - starts_B[:, None]).clamp(min=0)
        is_prompt_BS = slots_S >= starts_B[:, None]
        # Padding attends to itself: attention over nothing would be NaN, which masks don't hide.
        seen_BSS = is_prompt_BS[:, None] | torch.eye(width, dtype=torch.bool, device=device)
        mask_BSS = seen_BSS & (slots_S[:, None] >= slots_S)
    shape = weights.backbone_shape
    eps = torch.tensor([shape.eps], dtype=torch.float32, device=device)
    cos, sin = rotary.cos_S2H[positions], rotary.sin_S2H[positions]
    hidden_BD = spread(x_BSD, arranged.backbone, shape, cache, eps, cos, sin, mask_BSS)
    return normed(hidden_BD, eps) * weights.norm_D
