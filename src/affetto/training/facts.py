"""What an adapter's `affetto.json` says of where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.files import hash_text
from affetto.model.base import Base
from affetto.preserve.teacher import row_hash
from affetto.provenance import versions
from affetto.training.checkpoint import Progress
from affetto.training.runtime import peak_memory_mib
from affetto.training.step import LossWeights
from affetto.training.streams import Streams
from affetto.training.validation import recommend


def run_facts(
    config: Config,
    emotion: str,
    base: Base,
    prepared: Prepared,
    streams: Streams,
    weights: LossWeights,
    command: str,
) -> dict[str, Any]:
    """What is known before the first step."""
    return {
        "format": "affetto.adapter/1",
        "emotion": emotion,
        "base": {"id": base.id, "hash": base.hash, "num_codebooks": base.num_codebooks},
        "prompt_template": config.prompt_template,
        "recommended_intensity": 1.0,
        "frontier": None,
        "speakers": streams.speakers,
        "trained_speakers": streams.trained_speakers,
        "data": {
            "emotional_clips": len(streams.emotional),
            "rehearsed_clips": len(streams.rehearsal),
            "fisher_clips": len(streams.fisher),
            "validation_clips": len(streams.validation_emotional),
            "prepared_clips": len(prepared.clips),
            "bad_clips": prepared.num_bad if prepared.is_checked else None,
            "hash": hash_text(*(row_hash(row) for row in (*streams.emotional, *streams.rehearsal))),
        },
        "ewc_natural_weight": weights.ewc,
        "configuration": config.model_dump(mode="json", exclude={"output_dir"}),
        "command": command,
        "versions": versions(),
    }


def final_facts(
    facts: Mapping[str, Any], state: Progress, points: Sequence[Mapping[str, Any]], timings: Mapping[str, float]
) -> dict[str, Any]:
    """`facts` with what the run found."""
    return {
        **facts,
        "frontier": list(points),
        "recommended_intensity": recommend(points),
        "validation": {"value": state.best_value, "step": state.best_step},
        "timings_s": dict(timings),
        "peak_memory_mib": peak_memory_mib(),
    }
