"""A run's workload: clips, steps and batches, from a configuration and assumptions about the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from affetto.config import Config
from affetto.training.step import LossWeights
from affetto.training.validation import INTENSITIES


@dataclass(frozen=True)
class Data:
    """Assumptions about the data."""

    clips: int
    """Emotional clips to train on."""
    clip_s: float
    """Length of a mean clip in seconds, emotional or general."""


@dataclass(frozen=True)
class Workload:
    """The shapes and counts of one emotion's run."""

    rows: int
    """Rows of a batch."""
    frames: int
    """Predicted frames of a row, including the end frame."""
    text_tokens: int
    depth_frames: int
    """Frames of a batch that the depth decoder is trained on: the drawn ones and the teacher's."""
    taught_share: float
    """Share of a batch's frames that have a teacher's answer."""
    streams: tuple[tuple[float, bool], ...]
    """Emotional and rehearsed rows: their share of a batch, and whether the teacher answers them."""
    num_steps: int
    micro_batches: int
    """Batches of the whole run."""
    fisher_clips: int
    teacher_clips: int
    """Clips whose teacher answers are cached for `teacher_share` of the frames."""
    held_clips: int
    """Held-out general clips, whose answers are cached for all frames; there are as many emotional ones."""
    validations: int
    """Validations on the held-out clips of both kinds, including the frontier's."""


def workload(
    config: Config, data: Data, frame_rate: float, *, tokens_per_s: float = 4.0, template_tokens: int = 12,
    end_frames: int = 1,
) -> Workload:  # fmt: skip
    """The workload of one emotion's run, as in `plan_run`, if all clips have the mean length.

    The facts about the base's speech are those of its `Outline`.
    """
    frames = math.ceil(data.clip_s * frame_rate) + end_frames
    replay, is_self_speech = config.replay_ratio, config.general == "self"
    is_budget = config.forgetting_budget is not None
    weights = LossWeights(
        replay, config.distillation_alpha, config.temperature, config.first_codebook_weight, config.ewc_lambda,
        config.distill_on, is_self_speech,
    )  # fmt: skip
    shares = {"emotion": 1 - replay, "rehearsal": replay}
    drawn, kept = config.depth_frames_share, config.teacher_share
    depth = 0.0
    for stream, share in shares.items():
        # If the cross-entropy has no weight, only the teacher's frames go through the depth decoder.
        learned = drawn if weights.learned[stream] else 0.0
        depth += share * (learned + kept * (1 - learned) if weights.taught[stream] else drawn)
    micro = math.ceil(data.clips / (config.batch_size * (1 - replay)))
    steps = math.ceil(micro / config.grad_accumulation_steps)
    rehearsed = config.rehearsal_buffer_size if weights.taught["rehearsal"] else 0
    asked = data.clips if weights.taught["emotion"] else 0
    has_fisher = config.ewc_lambda > 0
    return Workload(
        rows=config.batch_size,
        frames=frames,
        text_tokens=round(tokens_per_s * data.clip_s) + template_tokens,
        depth_frames=max(1, round(depth * frames * config.batch_size)),
        taught_share=sum(share for stream, share in shares.items() if weights.taught[stream]),
        streams=tuple((share, weights.taught[stream]) for stream, share in shares.items() if share > 0),
        num_steps=steps * config.num_epochs,
        micro_batches=micro * config.num_epochs,
        fisher_clips=config.fisher_clips if has_fisher else 0,
        teacher_clips=rehearsed + asked,
        held_clips=config.validation_clips,
        validations=config.num_epochs + len(INTENSITIES) + (3 * (1 + config.num_epochs) if is_budget else 0),
    )
