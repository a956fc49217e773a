"""How many emotions a machine can train at a time."""

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
"""What a process holds beside its training's plan: judges, pictures and sounds; 0.22 GB for the miniature's own."""


def num_jobs(config: Config, prepared: Prepared, emotions: Sequence[str]) -> int:
    """As many of `emotions` at a time as there are processors, and as their planned memory fits what is free.

    One where a GPU trains or several processes already share a run: these are busy with one emotion.
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
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
