"""What `training_speed.py` trains on: clips for whoever codes them, and the same clips as our rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from opponents.csm_documentation import Example

from affetto.audio.sound import read_sound
from affetto.codes.codec import load_codec
from affetto.config import Config
from affetto.model.base import Base
from affetto.model.batch import Row, Turn
from affetto.pipeline import prepare_clips
from affetto.training.streams import Streams, build_streams
from affetto.types import BatchCodec

_WORDS = (
    "a",
    "river",
    "of",
    "stones",
    "went",
    "by",
    "the",
    "old",
    "house",
    "and",
    "nobody",
    "knew",
    "why",
    "it",
    "came",
)


@dataclass(frozen=True)
class World:
    """Emotional clips of both kinds, in one order, and general rows."""

    examples: list[Example]
    streams: Streams

    def facts(self) -> dict[str, Any]:
        """How much there is of it."""
        frames = [row.num_frames for row in self.streams.emotional]
        return {
            "emotional_clips": len(frames),
            "emotional_frames": sum(frames),
            "longest_frames": max(frames),
            "text_tokens": sum(row.num_positions - row.num_frames for row in self.streams.emotional),
        }


def miniature_world(config: Config, base: Base, count: int) -> World:
    """The miniature's own clips."""
    prepared = prepare_clips(config, ["happy"])
    streams = build_streams(config, "happy", prepared, base)
    clips = {clip.id: clip for clip in prepared.clips}
    streams = replace(streams, emotional=streams.emotional[:count])
    examples, rate = [], load_codec(base.folder).sample_rate
    for row in streams.emotional:
        clip = clips[row.clip_id]
        assert clip.text is not None
        text = config.prompt_template.replace("{text}", clip.text)
        samples = read_sound(clip.audio, rate, start_s=clip.start_s, end_s=clip.end_s).astype(np.float32)
        examples.append(Example(text, streams.speakers[clip.speaker], samples, prepared.codes(clip)))
    return World(examples, streams)


def made_up_world(base: Base, count: int, clip_s: float | None = None) -> World:
    """Noise of speech's lengths (a median of 3.5 s, or all `clip_s`), coded by the base's Mimi; four tokens of text a
    second.

    The stand-in tokenizer knows bytes, so the text is as many bytes as the real one would make tokens.
    """
    rng = np.random.default_rng(0)
    codec = load_codec(base.folder, use_gpu=base.device.type == "cuda")
    texts, sounds = [], []
    for _ in range(2 * count):
        duration_s = clip_s or float(np.clip(rng.lognormal(np.log(3.5), 0.35), 1.5, 9.0))
        sounds.append((0.1 * rng.standard_normal(round(24_000 * duration_s))).astype(np.float32))
        texts.append(" ".join(rng.permutation(_WORDS))[: round(4 * duration_s)])
    coded = codec.encode_batch(sounds) if isinstance(codec, BatchCodec) else [codec.encode(one) for one in sounds]
    examples, rows = [], []
    for number, (text, samples, codes_TK) in enumerate(zip(texts, sounds, coded, strict=True)):
        rows.append(Row(f"clip-{number}", (Turn(base.prompt_ids(text, 0), codes_TK),), (1.0,)))
        examples.append(Example(text, 0, samples, codes_TK))
    general = rows[count:]
    return World(examples[:count], Streams(rows[:count], general, general, [], [], {"0": 0}, ["0"]))
