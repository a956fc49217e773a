"""How much a run does: clips, steps and batches, from a configuration and what the data is like."""

from __future__ import annotations

import math
from dataclasses import dataclass

from affetto.config import Config
from affetto.training.step import LossWeights
from affetto.training.validation import INTENSITIES


@dataclass(frozen=True)
class Data:
    """What is assumed of the data."""

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
    """Predicted frames of a row, the end frame included."""
    text_tokens: int
    depth_frames: int
    """Frames of a batch that the depth decoder is trained on: those drawn and the teacher's."""
    taught_share: float
    """Share of a batch's frames that have a teacher's answer."""
    streams: tuple[tuple[float, bool], ...]
    """Emotional and rehearsed rows: their share of a batch, and whether the teacher answers them."""
    num_steps: int
    micro_batches: int
    """Batches of the whole run."""
    fisher_clips: int
    teacher_clips: int
    """Whose answers are cached with `teacher_share` of the frames."""
    held_clips: int
    """General clips that are held out, whose answers are cached with all frames; as many emotional ones."""
    validations: int
    """Looks at the held-out clips of both kinds, the frontier's included."""


def workload(
    config: Config, data: Data, frame_rate: float, *, tokens_per_s: float = 4.0, template_tokens: int = 12,
    end_frames: int = 1,
) -> Workload:  # fmt: skip
    """Lay out a run of one emotion as `plan_run` would, with every clip of mean length.

    What is known of the base's speech is as in its `Outline`.
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
        # Where the cross-entropy counts nothing, only the teacher's frames go through the depth decoder.
        beside = drawn if weights.learned[stream] else 0.0
        depth += share * (beside + kept * (1 - beside) if weights.taught[stream] else drawn)
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
