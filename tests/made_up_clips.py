"""Clips of a small run that exist as codes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from affetto.codes.cache import CodeCache
from affetto.codes.prepare import Prepared
from affetto.types import Clip

COUNTS = {("happy", "train"): 8, ("happy", "validation"): 4, (None, "train"): 10, (None, "validation"): 4}


def made_up_clips(folder: Path, num_frames: int, codebook_size: int, num_codebooks: int) -> Prepared:
    """`COUNTS` clips of `num_frames` frames of random codes, whose cache is in `folder`."""
    clips, codes = [], {}
    for (emotion, split), count in COUNTS.items():
        for number in range(count):
            name = f"{emotion}-{split}-{number}"
            clips.append(Clip(name, folder / "x.wav", f"text {name}", emotion, "a", "made-up", split))
            codes[name] = np.random.default_rng(number).integers(0, codebook_size, (num_frames, num_codebooks))
    cache = CodeCache(folder / "codes")
    cache.add(codes)
    return Prepared(tuple(clips), (), (), {"a": 0}, {clip.id: clip.id for clip in clips}, cache)
