"""Reads and checks a run's files for the report; errors name the damaged file and say what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affetto.errors import DataError, listed
from affetto.evaluate.results import Results
from affetto.files import read_json, why_unreadable
from affetto.training.facts import unmet_budget

_NEEDED = (
    "prompt_template", "recommended_intensity", "ewc_natural_weight", "command", "versions", "frontier", "base.id",
    "base.hash", "data.emotional_clips", "data.rehearsed_clips", "data.fisher_clips", "configuration.num_epochs",
    "configuration.adapter_r", "configuration.learning_rate", "configuration.ewc_lambda",
    "configuration.distillation_alpha", "configuration.replay_ratio",
)  # fmt: skip
"""Facts that a report and an adapter's card need."""
_CALIBRATED = {"base", "points", "fits", "most_kl"}
_AGAIN = "copy the adapter again, or train it again"


def read_facts(path: Path) -> dict[str, Any]:
    """An adapter's `affetto.json`. DataError if it is damaged, or not written by training."""
    try:
        facts = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {path} ({why_unreadable(error)}); {_AGAIN}") from error
    if not isinstance(facts, dict) or "emotion" not in facts:
        raise DataError(f"{path} doesn't say what was trained; {_AGAIN}")
    return facts


def read_whole_facts(path: Path) -> dict[str, Any]:
    """`read_facts` with all facts that a report needs. DataError if any is missing."""
    facts = read_facts(path)
    if missing := [name for name in _NEEDED if not _has(facts, name)]:
        raise DataError(f"{path} doesn't say {listed(missing)}; {_AGAIN}")
    return facts


def _has(facts: Any, name: str) -> bool:
    for key in name.split("."):
        if not isinstance(facts, dict) or key not in facts:
            return False
        facts = facts[key]
    return True


def read_calibration(path: Path, base_hash: str) -> Mapping[str, Any] | None:
    """The document of `affetto calibrate` at `path`; None if there is none or it is for another base. DataError if it
    is damaged."""
    if not path.is_file():
        return None
    remedy = "make it again with affetto calibrate, or move it away"
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {path} ({why_unreadable(error)}); {remedy}") from error
    if not isinstance(document, dict) or not document.keys() >= _CALIBRATED or not isinstance(document["base"], dict):
        raise DataError(f"{path} isn't what affetto calibrate writes; {remedy}")
    return document if document["base"].get("hash") == base_hash else None


def report_facts(facts: Mapping[str, Any], results: Results) -> dict[str, Any]:
    """The run's facts for the report, with warnings."""
    budget = unmet_budget(facts)
    return {
        "command": facts["command"],
        "versions": facts["versions"],
        "configuration": facts["configuration"],
        "timings_s": facts.get("timings_s", {}),
        "peak_memory_mib": facts.get("peak_memory_mib"),
        "base": facts["base"],
        "data": facts["data"],
        "recommended_intensity": facts["recommended_intensity"],
        "ewc_natural_weight": facts["ewc_natural_weight"],
        "forgetting_budget": facts.get("forgetting_budget"),
        "warnings": [*([budget] if budget else []), *results.get("notes", [])],
    }
