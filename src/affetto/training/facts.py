"""The facts in an adapter's `affetto.json`: where it comes from and what its run found out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.files import hash_text
from affetto.model.base import Base
from affetto.preserve.budget import BudgetState, ForgettingBudget
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
    expressive: str | None = None,
) -> dict[str, Any]:
    """The facts known before the first step; `expressive` is the hash of the expressive base that it builds on."""
    return {
        "format": "affetto.adapter/1",
        "emotion": emotion,
        "base": {
            "id": base.id,
            "hash": base.hash,
            "revision": base.revision,
            "num_codebooks": base.num_codebooks,
        },
        "expressive_base": expressive,
        "prompt_template": config.prompt_template,
        "recommended_intensity": 1.0,
        "frontier": None,
        "forgetting_budget": None,
        "matching": None,
        "speakers": streams.speakers,
        "trained_speakers": streams.trained_speakers,
        "data": {
            "general": config.general,
            "emotional_clips": len(streams.emotional),
            "rehearsed_clips": len(streams.rehearsal),
            "fisher_clips": len(streams.fisher),
            "validation_clips": len(streams.validation_emotional),
            "prepared_clips": len(prepared.clips),
            "bad_clips": prepared.num_bad if prepared.is_checked else None,
            "machine_texts": machine_texts(prepared, streams),
            "intensities": intensities(prepared, streams),
            "hash": hash_text(*(row_hash(row) for row in (*streams.emotional, *streams.rehearsal))),
        },
        "ewc_natural_weight": weights.ewc,
        "configuration": config.model_dump(mode="json", exclude={"output_dir"}),
        "command": command,
        "versions": versions(),
    }


def machine_texts(prepared: Prepared, streams: Streams) -> dict[str, Any]:
    """How many training clips have a text that a model wrote, by stream and by model."""
    writers = {clip.id: clip.transcribed_by for clip in prepared.clips}
    counts = {
        name: Counter(writer for row in rows if (writer := writers[row.clip_id]) is not None)
        for name, rows in (("emotional_clips", streams.emotional), ("rehearsed_clips", streams.rehearsal))
    }
    by_model = sum(counts.values(), Counter[str]())
    return {name: found.total() for name, found in counts.items()} | {"by_model": dict(sorted(by_model.items()))}


def intensities(prepared: Prepared, streams: Streams) -> dict[str, int]:
    """How many emotional clips are acted at each intensity, the strongest last."""
    acted = {clip.id: clip.gate for clip in prepared.clips}
    counts = Counter(acted[row.clip_id] for row in streams.emotional)
    return {f"{intensity:g}": count for intensity, count in sorted(counts.items())}


def final_facts(
    facts: Mapping[str, Any],
    state: Progress,
    points: Sequence[Mapping[str, Any]],
    timings: Mapping[str, float],
    budget: ForgettingBudget | None = None,
) -> dict[str, Any]:
    """`facts` with what the run found out; `points` are its frontier."""
    recommended = recommend(points, budget.budget if budget else None)
    return {
        **facts,
        "frontier": list(points),
        "recommended_intensity": recommended,
        "forgetting_budget": _budget_facts(budget, state, points, recommended) if budget else None,
        "validation": {"value": state.best_value, "step": state.best_step},
        "timings_s": dict(timings),
        "peak_memory_mib": peak_memory_mib(),
    }


def _budget_facts(
    budget: ForgettingBudget, state: Progress, points: Sequence[Mapping[str, Any]], recommended: float
) -> dict[str, Any]:
    """Whether the budget is met at the recommended intensity, which is never below the frontier's smallest."""
    kl = next(float(point["kl"]) for point in points if point["intensity"] == recommended)
    return {
        "budget": budget.budget,
        "kl": kl,
        "met": kl <= budget.budget,
        "multiplier": budget.multiplier(state.control or BudgetState()),
    }


def unmet_budget(facts: Mapping[str, Any]) -> str | None:
    """The warning about an adapter that didn't meet its forgetting budget; None if it did, or had none."""
    told = facts.get("forgetting_budget")
    if not told or told["met"]:
        return None
    return (
        f"{facts['emotion']}: the forgetting budget of {told['budget']:g} nats per code was not met: even at intensity "
        f"{facts['recommended_intensity']:g}, the least that is recommended, the KL on held-out general clips is "
        f"{told['kl']:.3g}. Give it more epochs, a lower learning_rate or a larger forgetting_budget"
    )
