"""Weights in eight bits, as the package ships them, and their unpacking into the cache.

Matrices are stored as int8 with one scale per row (absolute maximum over 127), which costs the miniature 0.0005
nats per code; everything else in float16. A row is the last dimension, or the last few of a convolution's kernel, so
that a scale serves at least 16 weights. Unpacked they are a plain transformers checkpoint in float16, made once.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from affetto.errors import BaseModelError
from affetto.files import cache_root, hash_folder, made_once, visible, write_atomically

PACKED, PLAIN = "model.q8.safetensors", "model.safetensors"
_SHORTEST_ROW = 16
_SCALE = "@scale"
"""Suffix of a packed matrix's name; no torch parameter has it."""


def pack(source: Path, target: Path) -> None:
    """Copy the checkpoint in `source` to `target`, its weights packed."""
    target.mkdir(parents=True, exist_ok=True)
    _copy_others(source, target, PLAIN)
    stored: dict[str, Tensor] = {}
    for name, value in load_file(source / PLAIN).items():
        if value.ndim < 2 or not value.is_floating_point():
            stored[name] = value.half() if value.is_floating_point() else value
            continue
        rows_RC = value.float().reshape(-1, _row_length(value))
        scale_R = (rows_RC.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        stored[name] = (rows_RC / scale_R[:, None]).round().clamp(-127, 127).to(torch.int8).reshape(value.shape)
        stored[f"{name}{_SCALE}"] = scale_R
    write_atomically(target / PACKED, lambda path: save_file(stored, path, metadata={"format": "pt"}))


def _copy_others(source: Path, target: Path, weights: str) -> None:
    """Copy all files in `source`, recursively, except the weights."""
    for path in visible(source, "**/*"):
        if path.is_file() and path.name != weights:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _row_length(value: Tensor) -> int:
    length = 1
    for size in reversed(value.shape[1:]):
        length *= size
        if length >= _SHORTEST_ROW:
            break
    return length


def unpacked(folder: Path) -> Path:
    """`folder` itself, or if its weights are packed the cache's folder with the same checkpoint in float16."""
    if not (folder / PACKED).is_file():
        return folder
    target = cache_root() / "unpacked" / f"{folder.name}-{hash_folder(folder, ['**/*'])[:20]}"
    return made_once(target, lambda temporary: _unpack(folder, temporary))


def _unpack(folder: Path, target: Path) -> None:
    _copy_others(folder, target, PACKED)
    try:
        stored = load_file(folder / PACKED)
    except (OSError, SafetensorError) as error:
        raise BaseModelError(f"{folder / PACKED} can't be read ({error}); install affetto again") from error
    weights = {}
    for name, value in stored.items():
        if name.endswith(_SCALE):
            continue
        scale_R = stored.get(f"{name}{_SCALE}")
        if scale_R is None:
            weights[name] = value
        else:
            rows_RC = value.float().reshape(len(scale_R), -1)
            weights[name] = (rows_RC * scale_R[:, None]).half().reshape(value.shape)
    save_file(weights, target / PLAIN, metadata={"format": "pt"})
    (target / PLAIN).chmod(0o644)
