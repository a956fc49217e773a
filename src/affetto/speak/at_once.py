"""How many rows a CPU speaks at once, and how its processors share them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from affetto.model.base import Base
from affetto.model.csm import CsmNetwork
from affetto.speak.native import suits
from affetto.speak.weights import SpeakingWeights

if TYPE_CHECKING:
    from affetto.speak.generation import Request

_HOST_CACHE_BYTES = 2**28
"""Of the keys and values of the rows that a CPU speaks at once."""


def rows_at_once(base: Base, requests: Sequence[Request], batch_size: int) -> int:
    """`batch_size`, or more on a CPU, which is the quicker for a row the more of them it has (docs/performance.md).

    Of one gate as many as have room in memory; of several twice `batch_size`: each row has its adapters beside it.
    """
    if base.device.type != "cpu" or not isinstance(base.network, CsmNetwork) or batch_size < 1:
        return batch_size
    config, most = base.network.backbone.config, 2 * batch_size
    if len({one.gate for one in requests}) != 1:
        return most
    place: int = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    longest = max(
        len(one.text_ids) + sum(turn.num_positions for turn in one.context) + one.max_frames for one in requests
    )
    return max(most, _HOST_CACHE_BYTES // (place * longest))


_LEAST_ROWS, _LEAST_NATIVE_ROWS = 48, 6
"""With which a thread of its own saves time, in NumPy and in C (docs/performance.md)."""


def shares_of(weights: SpeakingWeights, requests: Sequence[Request], batch_size: int) -> list[Sequence[int]]:
    """Places of the requests that each thread speaks, alike in length.

    More than one share only on a CPU in float32, where products don't have all processors already (NumPy's: the command
    line sees to that, since they are small), and of one gate: adapters of many gates are laid out anew for every batch.
    """
    everything = range(len(requests))
    is_native = suits(weights)
    is_numpys = weights.device.type == "cpu" and weights.dtype == torch.float32
    is_alone = is_native or (is_numpys and os.environ.get("OPENBLAS_NUM_THREADS") == "1")
    if not is_alone or len({one.gate for one in requests}) != 1:
        return [everything]
    least = _LEAST_NATIVE_ROWS if is_native else _LEAST_ROWS
    number = max(1, min(torch.get_num_threads(), min(len(requests), batch_size) // least))
    by_length = sorted(everything, key=lambda index: (requests[index].max_frames, index))
    return [by_length[first::number] for first in range(number)]
