"""The codes of silence: what Moshi hears from a user who says nothing, and says itself after its words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affetto.codes.codec import codec_hash, load_codec
from affetto.errors import CacheError
from affetto.files import cache_root, write_atomically
from affetto.types import Codec

SILENT_FRAMES = 256
"""Number of frames coded, 20 s. Mimi looks back over 10 s, so the last frame's codes are those of all that follow."""


def silence_codes(base_folder: Path, num_frames: int) -> NDArray[np.int64]:
    """Codes (T, K) of `num_frames` frames of digital silence; coded once and cached.

    In training `codes.prepare` has already coded it, in another process.
    """
    path = silence_path(base_folder)
    if not path.is_file():
        save_silence(base_folder, code_silence(load_codec(base_folder), SILENT_FRAMES))
    try:
        stored_TK: NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CacheError(f"{path} can't be read ({error}); delete it") from error
    return stored_TK[np.minimum(np.arange(num_frames), len(stored_TK) - 1)]


def silence_path(base_folder: Path) -> Path:
    """The cache file of the codes of silence for a base's codec."""
    return cache_root() / "silence" / f"{codec_hash(base_folder)[:24]}.npy"


def code_silence(codec: Codec, num_frames: int) -> NDArray[np.int64]:
    """Codes (T, K) of `num_frames` frames of digital silence, not cached."""
    return codec.encode(np.zeros(round(num_frames * codec.sample_rate / codec.frame_rate), dtype=np.float32))


def save_silence(base_folder: Path, codes_TK: NDArray[np.integer]) -> None:
    """Cache the codes that `code_silence` returned for `SILENT_FRAMES`."""

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, codes_TK)

    write_atomically(silence_path(base_folder), save)
