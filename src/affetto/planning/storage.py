"""Sizes in bytes of weights, adapters, caches and what a run writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from affetto.preserve.curvature.memory import Shapes
from affetto.preserve.teacher import cache_bytes

CODE_BYTES = 2
"""Codes are stored in 16 bits."""


def weight_bytes(model: Any, left_out: Sequence[str] = ()) -> int:
    """Bytes of a model's parameters and buffers, shared ones counted once, without names that begin with `left_out`."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    kept = {id(tensor): tensor.nbytes for name, tensor in tensors if not name.startswith(tuple(left_out))}
    return sum(kept.values())


def adapter_parameters(shapes: Shapes, rank: int | None) -> int:
    """Number of an adapter's trained parameters; `rank` None is full rank."""
    return sum(o * i if rank is None else rank * (o + i) for o, i in shapes.values())


def teacher_bytes(
    num_clips: int, frames: int, num_codebooks: int, vocab_size: int, share: float, text_size: int = 0
) -> int:
    """Bytes of the teacher's answers on `num_clips` clips of `frames` predicted frames; see `cache_bytes`."""
    return cache_bytes([frames] * num_clips, num_codebooks, vocab_size, share, text_size)


def codes_bytes_per_hour(num_codebooks: int, frame_rate: float) -> int:
    """Bytes on disk of an hour's codes."""
    return round(3600 * frame_rate * num_codebooks * CODE_BYTES)
