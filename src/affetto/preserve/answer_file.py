"""A safetensors file that is written tensor by tensor, in any order, once all of their shapes are known.

safetensors' own `save_file` needs all tensors at once. This writes the same bytes (a test compares them): the header of
https://github.com/huggingface/safetensors#format, then the tensors, wider types first and then by name, without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

_NAMES = {torch.int64: "I64", torch.float16: "F16"}
"""safetensors' names of the types that the teacher's answers have."""
Kind = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor."""


class AnswerFile:
    """Writes tensors of the given `kinds` to `path`; each must be passed to `write` once."""

    def __init__(self, path: Path, kinds: Mapping[str, Kind], metadata: Mapping[str, str]) -> None:
        self._kinds = kinds
        self._places, place = {}, 0
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        for name in sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name)):
            dtype, shape = kinds[name]
            self._places[name], end = place, place + dtype.itemsize * math.prod(shape)
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (place, end)}
            place = end
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._start = 8 + len(encoded)
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)
        self._file.truncate(self._start + place)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors to their places."""
        for name, tensor in tensors.items():
            kind = tensor.dtype, tuple(tensor.shape)
            assert kind == self._kinds[name], f"{name} is {kind}, not {self._kinds[name]}"
            self._file.seek(self._start + self._places[name])
            self._file.write(tensor.contiguous().numpy().tobytes())

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
