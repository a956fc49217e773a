"""How many rows a CPU speaks at once, and how its threads share them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from affetto.model.base import Base
from affetto.model.csm import CsmNetwork
from affetto.speak.native_frames import speaks_natively
from affetto.speak.requests import Request
from affetto.speak.weights import SpeakingWeights

_HOST_CACHE_BYTES = 2**28
"""Most bytes of key-value cache for the rows that a CPU speaks at once."""


def rows_at_once(base: Base, requests: Sequence[Request], batch_size: int) -> int:
    """`batch_size`, or more on a CPU, where a row costs less the more rows there are (docs/performance.md).

    If all rows have the same gate, as many as `_HOST_CACHE_BYTES` has room for; with several gates twice `batch_size`,
    since each row then has adapters of its own.
    """
    if base.device.type != "cpu" or not isinstance(base.network, CsmNetwork) or batch_size < 1:
        return batch_size
    config, most = base.network.backbone.config, 2 * batch_size
    if len({request.gate for request in requests}) != 1:
        return most
    position_bytes: int = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    longest = max(
        len(request.text_ids) + sum(turn.num_positions for turn in request.context) + request.max_frames
        for request in requests
    )
    return max(most, _HOST_CACHE_BYTES // (position_bytes * longest))


_LEAST_ROWS, _LEAST_NATIVE_ROWS = 48, 6
"""Fewest rows for which another thread saves time, in NumPy and in C (docs/performance.md)."""


def shares_of(weights: SpeakingWeights, requests: Sequence[Request], batch_size: int) -> list[Sequence[int]]:
    """The places of the requests that each thread speaks; lengths are spread evenly over the threads.

    There is more than one share only on a CPU in float32 with single-threaded products (the command line makes NumPy's
    so, because they are small), and only if all requests have the same gate: the adapters of several gates are arranged
    anew for every batch.
    """
    everything = range(len(requests))
    is_native = speaks_natively(weights)
    is_numpy = weights.device.type == "cpu" and weights.dtype == torch.float32
    is_single_threaded = is_native or (is_numpy and os.environ.get("OPENBLAS_NUM_THREADS") == "1")
    if not is_single_threaded or len({request.gate for request in requests}) != 1:
        return [everything]
    least = _LEAST_NATIVE_ROWS if is_native else _LEAST_ROWS
    num_shares = max(1, min(torch.get_num_threads(), min(len(requests), batch_size) // least))
    by_length = sorted(everything, key=lambda index: (requests[index].max_frames, index))
    return [by_length[first::num_shares] for first in range(num_shares)]
