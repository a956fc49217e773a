"""Changes to settings, computed from the run's own."""

from __future__ import annotations

import math

from affetto.config import Config
from affetto.doctor.evidence import Evidence
from affetto.doctor.findings import Change, Setting


def scaled(evidence: Evidence, key: str, factor: float, why: str) -> Change:
    """`key` times `factor`: whole numbers are rounded away from the old value, others to two digits. A value of 0 is
    set to the default instead."""
    old = peak_lr(evidence) if key == "learning_rate" else evidence.setting(key)
    if old is None:
        return Change(f"{why} (its value isn't known: multiply it by {factor:g})", key)
    if old == 0:
        return to_default(evidence, key, why)
    if isinstance(old, int):
        return Change(why, key, old, math.ceil(old * factor) if factor > 1 else max(1, math.floor(old * factor)))
    return Change(why, key, old, float(f"{old * factor:.2g}"))


def set_to(evidence: Evidence, key: str, new: Setting, why: str) -> Change:
    """Set `key` to `new`."""
    return Change(why, key, evidence.setting(key), new)


def to_default(evidence: Evidence, key: str, why: str) -> Change:
    """Set `key` to its default."""
    return set_to(evidence, key, Config.model_fields[key].default, why)


def peak_lr(evidence: Evidence) -> float | None:
    """The learning rate as configured, else the highest that was logged."""
    configured = evidence.setting("learning_rate")
    logged = [row["lr"] for row in evidence.rows("train")]
    return float(configured) if configured is not None else max(logged, default=None)
