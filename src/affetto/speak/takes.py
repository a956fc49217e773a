"""Takes: a sentence is said several times, and the take in which the base itself hears the words best is kept.

A language model that samples speech loses words now and then, the more of them the less it is used to a way of
speaking. Which takes lost some shows in the model's own likelihoods: codes x that say the text t are likelier after it
than after the same prompt without words t0. The score of a take is, in nats per frame,

    [log p(x | t) - LAMBDA log p(x | t0)] / frames,

by the same weights and adapters that spoke, over all codebooks, at temperature 1: the maximum mutual information of Li
et al. (2016, arXiv 1510.03055, equation 9), there for answers that fit their question. With LAMBDA 0 what is dull wins,
with 1 what would be unlikely without words. No recogniser is asked, so what one says of the result is evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from affetto.speak.frames import logits
from affetto.speak.layers import Cache, Rotary, normed, product, spread
from affetto.speak.prompts import embed_frames, embed_prompt
from affetto.speak.weights import Arranged, Layer, Shape, SpeakingWeights

if TYPE_CHECKING:
    from affetto.speak.generation import Request, Spoken

LAMBDA = 0.5
"""Of 0 to 1.25 the best for a happy adapter on validation texts (docs/log.md)."""
_SEEDS_APART = 15_485_863
"""From a take's seed to the next one's: prime, so that sentences with seeds in a row share none."""
_ROWS, _POSITIONS = 16, 4096
"""Rows that the backbone hears at once, and positions that the depth decoder does, …"""
_MOST_BYTES = 2**24
"""… of whose widest activations, gate and up, no more than this: in a large base that is a few rows at a time."""


def best_takes(
    weights: SpeakingWeights, requests: Sequence[Request], say: Callable[[list[Request]], list[Spoken]]
) -> list[Spoken]:
    """Of each request the best of its takes, the first of which has the request's own seed.

    `say` says requests of one take. A take that said nothing, or that its cap ended, is kept only where all are so.
    """
    singles = [
        replace(request, takes=1, seed=request.seed + take * _SEEDS_APART)
        for request in requests
        for take in range(request.takes)
    ]
    spoken, kept = say(singles), []
    are_weighed = [request.takes > 1 for request in requests for _ in range(request.takes)]
    weighed = [place for place, is_weighed in enumerate(are_weighed) if is_weighed]
    scores = np.zeros(len(singles))
    scores[weighed] = take_scores(weights, [singles[place] for place in weighed], [spoken[place] for place in weighed])
    start = 0
    for request in requests:
        places = range(start, start + request.takes)
        # Of equals the first: greedy takes are all the same.
        kept.append(spoken[max(places, key=lambda place: (not spoken[place].hit_cap, scores[place]))])
        start += request.takes
    return kept


def take_scores(weights: SpeakingWeights, requests: Sequence[Request], spoken: Sequence[Spoken]) -> NDArray[np.float64]:
    """Scores (N,) in nats per frame of what was said by requests of one take; -inf where that is nothing."""
    silent = [replace(request, text_ids=request.wordless_ids) for request in requests]
    lengths = np.array([max(1, len(said.codes_TK)) for said in spoken])
    after_text, after_none = (log_likelihoods(weights, asked, spoken) for asked in (requests, silent))
    is_there = np.array([len(said.codes_TK) > 0 for said in spoken])
    return np.where(is_there, (after_text - LAMBDA * after_none) / lengths, -np.inf)


@torch.inference_mode()
def log_likelihoods(
    weights: SpeakingWeights, requests: Sequence[Request], spoken: Sequence[Spoken]
) -> NDArray[np.float64]:
    """log p (N,) of all codes that were said, each after those before it, at temperature 1; 0 where nothing was."""
    found = np.zeros(len(requests))
    for rows in _batches(weights, requests, spoken):
        found[rows] = _of_batch(weights, [requests[row] for row in rows], [spoken[row].codes_TK for row in rows])
    return found


def positions_at_once(shape: Shape, dtype: torch.dtype) -> int:
    """Positions that a stack hears at once."""
    return max(1, min(_POSITIONS, _MOST_BYTES // (2 * shape.intermediate_size * dtype.itemsize)))


def _batches(weights: SpeakingWeights, requests: Sequence[Request], spoken: Sequence[Spoken]) -> Iterator[list[int]]:
    """Places of what said something, in batches of one gate and of like length."""
    most = positions_at_once(weights.backbone_shape, weights.dtype)
    lengths = [
        sum(turn.num_positions for turn in request.context) + len(request.text_ids) + len(said.codes_TK)
        for request, said in zip(requests, spoken, strict=True)
    ]
    waiting = [row for row in range(len(requests)) if len(spoken[row].codes_TK)]
    waiting.sort(key=lambda row: (requests[row].gate, lengths[row]))
    while waiting:
        rows = [row for row in waiting[:_ROWS] if requests[row].gate == requests[waiting[0]].gate]
        while len(rows) > 1 and len(rows) * lengths[rows[-1]] > most:
            rows.pop()
        yield rows
        waiting = waiting[len(rows) :]


def _of_batch(
    weights: SpeakingWeights, requests: Sequence[Request], codes: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """log p (B,) of codes (T, K) by requests of one gate."""
    gate = requests[0].gate
    arranged = weights.arranged([gate if any(gate) else ()])
    prompts = [embed_prompt(weights, request) for request in requests]
    # A frame is told by the position before it; what stands behind a row's last position is seen by none of them.
    heard = [torch.cat([x_SD, embed_frames(weights, said[:-1])]) for x_SD, said in zip(prompts, codes, strict=True)]
    width = max(map(len, heard))
    x_BSD = torch.stack([functional.pad(x_SD, (0, 0, 0, width - len(x_SD))) for x_SD in heard])
    hidden_BSD = spread_all(x_BSD, arranged.backbone, weights.backbone_shape)
    states_BSD = normed(hidden_BSD, _eps(weights.backbone_shape, hidden_BSD)) * weights.norm_D
    states_FD = torch.cat(
        [row_SD[len(x_SD) - 1 :][: len(said)] for row_SD, x_SD, said in zip(states_BSD, prompts, codes, strict=True)]
    )
    codes_FK = torch.from_numpy(np.concatenate(codes)).to(weights.device)
    frames = max(1, positions_at_once(weights.depth_shape, weights.dtype) // weights.num_codebooks)
    parts = zip(torch.split(states_FD, frames), torch.split(codes_FK, frames), strict=True)
    log_p_F = torch.cat([_of_frames(weights, arranged, *part) for part in parts])
    ends = np.cumsum([len(said) for said in codes])[:-1].tolist()
    return np.array([float(part.double().sum()) for part in torch.tensor_split(log_p_F.cpu(), ends)])


def _of_frames(weights: SpeakingWeights, arranged: Arranged, states_FD: Tensor, codes_FK: Tensor) -> Tensor:
    """log p (F,) of frames after the backbone's states."""
    tables, num = weights.spoken_tables, weights.num_codebooks
    said_FKD = [tables[k].index_select(0, codes_FK[:, k]) for k in range(num - 1)]
    x_FKD = torch.stack([states_FD, *said_FKD], dim=1)
    x_FKD = product(x_FKD.flatten(0, 1), arranged.projector).view(len(states_FD), num, -1)
    hidden_FKD = spread_all(x_FKD, arranged.depth, weights.depth_shape)
    last_FKD = normed(hidden_FKD.float(), _eps(weights.depth_shape, hidden_FKD), weights.head_norm_D)
    told_C = [logits(states_FD, weights.c0_head_DC)]
    told_C += [logits(last_FKD[:, k], weights.heads_DC[k - 1]) for k in range(1, num)]
    log_p = [-functional.cross_entropy(told_FC, codes_FK[:, k], reduction="none") for k, told_FC in enumerate(told_C)]
    return torch.stack(log_p).sum(0)


def spread_all(x_BSD: Tensor, layers: Sequence[Layer], shape: Shape) -> Tensor:
    """Outputs (B, S, D) of causal layers at every position."""
    num_rows, num_positions = x_BSD.shape[:2]
    turns = Rotary(shape, num_positions, x_BSD.dtype)
    cache = Cache.empty(len(layers), num_rows, num_positions, shape, x_BSD)
    return spread(x_BSD, layers, shape, cache, _eps(shape, x_BSD), turns.cos_S2H, turns.sin_S2H, keep_all=True)


def _eps(shape: Shape, like: Tensor) -> Tensor:
    return torch.tensor([shape.eps], device=like.device)
