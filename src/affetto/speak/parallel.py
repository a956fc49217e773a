"""How many rows a CPU speaks at once, and how its cores share them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from affetto.model.base import Base
from affetto.model.csm import CsmNetwork
from affetto.speak.native_frames import suits
from affetto.speak.requests import Request
from affetto.speak.weights import SpeakingWeights

_HOST_CACHE_BYTES = 2**28
"""Largest key-value cache of the rows that a CPU speaks at once."""


def rows_at_once(base: Base, requests: Sequence[Request], batch_size: int) -> int:
    """`batch_size`, or more on a CPU, where a row costs less the more rows there are (docs/performance.md).

    With the same gate for all rows, as many as fit into memory; with several gates twice `batch_size`, as each row then
    has its own adapters beside it.
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
"""Rows from which on a thread of their own saves time, in NumPy and in C (docs/performance.md)."""


def shares_of(weights: SpeakingWeights, requests: Sequence[Request], batch_size: int) -> list[Sequence[int]]:
    """Places of the requests that each thread speaks, with similar lengths in each share.

    There is more than one share only on a CPU in float32 whose products are single-threaded (NumPy's are in the command
    line, which sees to that because they are small), and only if all requests have the same gate: the adapters of
    several gates are laid out anew for every batch.
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
