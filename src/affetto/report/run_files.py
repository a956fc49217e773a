"""What the report reads of a run's folder, checked: a file that is damaged is named, with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affetto.errors import DataError, listed
from affetto.evaluate.results import Results
from affetto.files import read_json, why_unreadable
from affetto.training.facts import unmet_budget

_TOLD = (
    "prompt_template", "recommended_intensity", "ewc_natural_weight", "command", "versions", "frontier", "base.id",
    "base.hash", "data.emotional_clips", "data.rehearsed_clips", "data.fisher_clips", "configuration.num_epochs",
    "configuration.adapter_r", "configuration.learning_rate", "configuration.ewc_lambda",
    "configuration.distillation_alpha", "configuration.replay_ratio",
)  # fmt: skip
"""Facts that a report and an adapter's card can't do without."""
_CALIBRATED = {"base", "points", "fits", "most_kl"}
_AGAIN = "copy the adapter again, or train it again"


def read_facts(path: Path) -> dict[str, Any]:
    """An adapter's `affetto.json`. DataError where it is damaged, or isn't training's."""
    try:
        facts = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {path} ({why_unreadable(error)}); {_AGAIN}") from error
    if not isinstance(facts, dict) or "emotion" not in facts:
        raise DataError(f"{path} doesn't say what was trained; {_AGAIN}")
    return facts


def read_whole_facts(path: Path) -> dict[str, Any]:
    """The same with all that a report tells. DataError where some of it is missing."""
    facts = read_facts(path)
    if missing := [name for name in _TOLD if not _has(facts, name)]:
        raise DataError(f"{path} doesn't say {listed(missing)}; {_AGAIN}")
    return facts


def _has(facts: Any, name: str) -> bool:
    for key in name.split("."):
        if not isinstance(facts, dict) or key not in facts:
            return False
        facts = facts[key]
    return True


def read_calibration(path: Path, base_hash: str) -> Mapping[str, Any] | None:
    """What `affetto calibrate` wrote at `path`, where it is of that base; None where nothing is. DataError where it is
    damaged."""
    if not path.is_file():
        return None
    mend = "affetto calibrate makes it again; or move it away"
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {path} ({why_unreadable(error)}); {mend}") from error
    if not isinstance(found, dict) or not found.keys() >= _CALIBRATED or not isinstance(found["base"], dict):
        raise DataError(f"{path} isn't what affetto calibrate writes; {mend}")
    return found if found["base"].get("hash") == base_hash else None


def report_facts(facts: Mapping[str, Any], results: Results) -> dict[str, Any]:
    """What the report tells of the run, with what there is to be warned of."""
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
