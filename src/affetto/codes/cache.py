"""The code cache on disk: content-addressed, written shard by shard, safe to interrupt at any moment and to delete.

A cache is a folder of immutable shards. Each is a safetensors file with one tensor `codes` (all frames of
its clips, one after the other) whose header lists key, start and length of every clip, so opening a cache
reads headers only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from affetto.errors import CacheError
from affetto.files import hash_text, visible, write_atomically

CodeArray = NDArray[np.int16]


class CodeCache:
    """Codes (T, K) by key. A key identifies everything that determines the codes: samples, segment, codec."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._loaded: dict[Path, CodeArray] = {}
        for shard in visible(folder, "*.safetensors"):
            self._index(shard)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """All keys, in the order of the shards."""
        return iter(self._places)

    def __getitem__(self, key: str) -> CodeArray:
        """Codes (T, K) of `key`."""
        shard, start, length = self._places[key]
        if shard not in self._loaded:
            with safe_open(shard, framework="numpy") as file:
                self._loaded[shard] = file.get_tensor("codes")
        return self._loaded[shard][start : start + length]

    def num_frames(self, key: str) -> int:
        """Length of the clip without reading its codes."""
        return self._places[key][2]

    def add(self, clips: Mapping[str, NDArray[np.integer]]) -> None:
        """Write one shard with `clips`, all or nothing.

        Keys identify contents, so a key that the cache already has is not written again.
        """
        keys = sorted(key for key in clips if key not in self)
        if not keys:
            return
        lengths = [len(clips[key]) for key in keys]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).tolist()
        index = {key: [start, length] for key, start, length in zip(keys, starts, lengths, strict=True)}
        codes = np.concatenate([np.asarray(clips[key]) for key in keys])
        assert codes.ndim == 2, f"codes are (T, K), not {codes.shape}"
        assert codes.size == 0 or (codes.min() >= 0 and codes.max() < 2**15), "codes don't fit into 15 bits"
        # safetensors writes memory in storage order and ignores strides: columns would become rows.
        codes = np.ascontiguousarray(codes, dtype=np.int16)
        shard = self.folder / f"{hash_text(*keys)[:24]}.safetensors"
        metadata = {"index": json.dumps(index, separators=(",", ":"))}
        write_atomically(shard, lambda path: save_file({"codes": codes}, path, metadata=metadata))
        self._index(shard)

    def _index(self, shard: Path) -> None:
        try:
            with safe_open(shard, framework="numpy") as file:
                index = json.loads(file.metadata()["index"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CacheError(f"{shard} is damaged ({error}): delete it, and its clips are coded again") from error
        for key, (start, length) in index.items():
            self._places[key] = (shard, start, length)
