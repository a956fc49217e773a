"""Decodes many clips' codes, in parallel if the codec allows it; the samples are the same either way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from affetto.codes.vocoder import VocoderCodec
from affetto.types import Codec

_SOUNDS_AT_ONCE = 64
"""Most decoded sounds that wait to be taken."""


def decode_each(codec: Codec, codes: Sequence[NDArray[np.integer]]) -> Iterator[NDArray[np.float32]]:
    """Mono samples of each of `codes` (T, K), in order, the same as from `Codec.decode`.

    WORLD decodes a sound on one core and releases Python's lock, so threads decode several. A network already uses all
    cores.
    """
    if not isinstance(codec, VocoderCodec):
        yield from map(codec.decode, codes)
        return
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(codes), _SOUNDS_AT_ONCE):
            yield from pool.map(codec.decode, codes[start : start + _SOUNDS_AT_ONCE])
