"""Which clips an adapter was trained on: `trained_clips.txt` beside its weights, with a short hash per line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from affetto.files import write_text

TRAINED = "trained_clips.txt"
_DIGITS = 16
"""64 bits: the chance that any of 10,000 clips collides with any of a million others is below one in a billion."""


def clip_hashes(keys: Mapping[str, str], names: Iterable[str]) -> frozenset[str]:
    """Hashes of the clips `names`, from their `Prepared.keys`: of sound, segment and text, wherever the file is."""
    return frozenset(keys[name][:_DIGITS] for name in names)


def write_trained(folder: Path, hashes: Collection[str]) -> None:
    """Write `hashes` into an adapter's `folder`."""
    write_text(folder / TRAINED, "".join(f"{one}\n" for one in sorted(hashes)))


def read_trained(folder: Path) -> frozenset[str] | None:
    """Hashes of the clips that the adapter in `folder` was trained on; None if it doesn't say."""
    path = folder / TRAINED
    return frozenset(path.read_text(encoding="utf-8", errors="replace").split()) if path.is_file() else None
