"""Many codes to sound: side by side where the codec allows it, and the same samples as one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from affetto.codes.vocoder import VocoderCodec
from affetto.types import Codec

_SOUNDS_AT_ONCE = 64
"""That wait to be taken, at most."""


def decode_each(codec: Codec, codes: Sequence[NDArray[np.integer]]) -> Iterator[NDArray[np.float32]]:
    """Mono samples of each of `codes` (T, K), in their order, as `Codec.decode` gives them.

    WORLD computes one sound on one processor and doesn't hold Python's lock meanwhile, so that threads decode several.
    A network's products take all processors already.
    """
    if not isinstance(codec, VocoderCodec):
        yield from map(codec.decode, codes)
        return
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(codes), _SOUNDS_AT_ONCE):
            yield from pool.map(codec.decode, codes[start : start + _SOUNDS_AT_ONCE])
