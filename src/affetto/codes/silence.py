"""What silence is in a base's codes: what Moshi hears of a user who says nothing, and says itself after its words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affetto.codes.codec import codec_hash, load_codec
from affetto.errors import CacheError
from affetto.files import cache_root, write_atomically

_FRAMES = 256
"""Coded at once: 20 s. Mimi looks back over 10 s, so that its last frame stands for all that follow."""


def silence_codes(base_folder: Path, num_frames: int) -> NDArray[np.int64]:
    """Codes (T, K) of `num_frames` frames of digital silence; coded once and cached."""
    path = cache_root() / "silence" / f"{codec_hash(base_folder)[:24]}.npy"
    if not path.is_file():
        codec = load_codec(base_folder)
        codes_TK = codec.encode(np.zeros(round(_FRAMES * codec.sample_rate / codec.frame_rate), dtype=np.float32))
        write_atomically(path, lambda temporary: _save(temporary, codes_TK))
    try:
        stored_TK: NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CacheError(f"{path} can't be read ({error}); delete it") from error
    return stored_TK[np.minimum(np.arange(num_frames), len(stored_TK) - 1)]


def _save(path: Path, codes_TK: NDArray[np.int64]) -> None:
    with path.open("wb") as file:
        np.save(file, codes_TK)
