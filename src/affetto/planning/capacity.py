"""The number of emotions that a machine can train at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence

import psutil
import torch

from affetto.codes.codec import codec_frame_rate
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.model.base import find_base
from affetto.planning.plan import plan
from affetto.planning.workload import Data
from affetto.processes import num_launched

EVALUATION_BYTES = 10**9
"""Memory of a process besides its training's plan: judges, pictures and sounds; 0.22 GB for the miniature's own."""


def num_jobs(config: Config, prepared: Prepared, emotions: Sequence[str]) -> int:
    """The number of `emotions` to train at a time: at most one per core, as far as their planned memory is free.

    One if a GPU trains or several processes share a run, since one emotion keeps these busy.
    """
    if torch.cuda.is_available() or num_launched() > 1:
        return 1
    most = min(len(emotions), processors())
    if most < 2:
        return 1
    frames = prepared.num_frames()
    clips = [clip for emotion in emotions for clip in prepared.select(emotion, "train")]
    seconds = sum(frames[clip.id] for clip in clips) / codec_frame_rate(find_base(config.base))
    each = plan(config, Data(max(1, len(clips) // len(emotions)), seconds / max(1, len(clips))), tflops=1.0).peak_bytes
    return max(1, min(most, int(psutil.virtual_memory().available // (each + EVALUATION_BYTES))))


def processors() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
