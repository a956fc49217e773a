"""Instability: spikes of gradients or losses, numbers that aren't finite, a validation loss that rises again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from affetto.doctor.changes import scaled, set_to
from affetto.doctor.evidence import Evidence
from affetto.doctor.findings import Check, Number, Symptom
from affetto.doctor.thresholds import GRADIENT_SPIKE, LOSS_SPIKE, MIN_LOGGED_STEPS, RISEN_SHARE
from affetto.errors import counted

_BEFORE = 5
"""Number of preceding logged losses that each is compared with."""


def instability(evidence: Evidence) -> Symptom:
    """The symptom, from the training log alone."""
    return Symptom("instability", (_not_finite(evidence), _gradients(evidence), _losses(evidence), _turned(evidence)))


def _not_finite(evidence: Evidence) -> Check:
    """Nulls in the log, which stand for NaN or infinity. In fp16 loss scaling produces infinite gradients by design."""
    name = "numbers that aren't finite"
    if not evidence.log:
        return _no_log(name)
    ignored = {"gradient_norm"} if evidence.setting("precision") == "fp16" else set()
    steps = {}
    for row in evidence.log:
        unknown_forgetting = {"general_nll", "general_kl"} if row["split"] == "validation" else set()
        bad = [key for key, value in row["terms"].items() if value is None]
        if remaining := sorted({*bad} - ignored - unknown_forgetting):
            steps[row["step"]] = remaining
    if not steps:
        return Check(name, "absent", (Number("logged rows", len(evidence.log)),))
    numbers = (Number("rows with such numbers", len(steps), n=len(evidence.log)), Number("first step", min(steps)))
    why = f"{', '.join(steps[min(steps)])} not finite at step {min(steps)}"
    if evidence.setting("precision") == "fp16":
        return Check(name, "shown", numbers, change=set_to(evidence, "precision", "bf16", why))
    return Check(name, "shown", numbers, change=scaled(evidence, "learning_rate", 0.5, why))


def _gradients(evidence: Evidence) -> Check:
    """Gradient norms before clipping, after warm-up."""
    name = "gradients that spike"
    rows = [row for row in _after_warmup(evidence) if row["terms"].get("gradient_norm") is not None]
    if len(rows) < MIN_LOGGED_STEPS:
        return _too_few(name, rows)
    usual = median(row["terms"]["gradient_norm"] for row in rows)
    worst = max(rows, key=lambda row: row["terms"]["gradient_norm"])
    return _spiked(evidence, name, worst, "gradient_norm", usual, GRADIENT_SPIKE)


def _losses(evidence: Evidence) -> Check:
    """The training loss compared with the few logged before it."""
    name = "losses that spike"
    rows = [row for row in _after_warmup(evidence) if row["terms"].get("total") is not None]
    if len(rows) < MIN_LOGGED_STEPS:
        return _too_few(name, rows)
    totals = [row["terms"]["total"] for row in rows]
    usual = [median(totals[max(0, index - _BEFORE) : index]) for index in range(1, len(totals))]
    ratios = [total / before if before > 0 else 1.0 for total, before in zip(totals[1:], usual, strict=True)]
    index = max(range(len(ratios)), key=lambda place: ratios[place])
    return _spiked(evidence, name, rows[index + 1], "total", usual[index], LOSS_SPIKE)


def _spiked(evidence: Evidence, name: str, worst: Mapping[str, Any], term: str, usual: float, limit: float) -> Check:
    highest = worst["terms"][term]
    title = {"gradient_norm": "highest gradient norm", "total": "highest loss relative to those before it"}[term]
    ratio = highest / usual if usual > 0 else 1.0
    numbers = (Number(title, highest), Number("usual there", usual), Number("at step", worst["step"]))
    if ratio <= limit:
        return Check(name, "absent", numbers)
    why = f"{title} is {ratio:.1f} times the usual at step {worst['step']} (the limit is {limit:g})"
    return Check(name, "shown", numbers, change=scaled(evidence, "learning_rate", 0.5, why))


def _turned(evidence: Evidence) -> Check:
    """Whether the validation value rose after its best: from there on the adapter overfitted, or forgot."""
    name = "validation that rises after its best"
    # With a budget the best adapter is chosen at the intensity that it would speak with (training/steering.py).
    key = "emotion_nll_in_budget" if evidence.setting("forgetting_budget") else "value"
    rows = [row for row in evidence.rows("validation") if row["terms"].get(key) is not None]
    if len(rows) < 2:
        return Check(name, "unknown", (), f"{len(rows)} validations: there is nothing to compare")
    best, last = min(rows, key=lambda row: row["terms"][key]), rows[-1]
    rise = last["terms"][key] / best["terms"][key] - 1
    numbers = (
        Number("best validation value", best["terms"][key], "nats/code"), Number("at step", best["step"]),
        Number("last step", last["step"]), Number("risen by", rise, "share"),
    )  # fmt: skip
    if rise < RISEN_SHARE:
        return Check(name, "absent", numbers)
    epochs = max(1, round(best["epoch"]))
    why = f"the best adapter is of epoch {epochs}; by epoch {last['epoch']:g} the validation had risen by {rise:.1%}"
    return Check(name, "shown", numbers, change=set_to(evidence, "num_epochs", epochs, why))


def _after_warmup(evidence: Evidence) -> Sequence[Mapping[str, Any]]:
    """Logged steps from the highest learning rate on; gradients of earlier steps are large by nature."""
    rows = evidence.rows("train")
    if not rows:
        return []
    peak = max(range(len(rows)), key=lambda index: rows[index]["lr"])
    return rows[peak:]


def _no_log(name: str) -> Check:
    return Check(name, "unknown", (), "there is no training log to read")


def _too_few(name: str, rows: Sequence[object]) -> Check:
    steps = counted(len(rows), "logged step after warm-up is", "logged steps after warm-up are")
    return Check(name, "unknown", (), f"{steps} too few (at least {MIN_LOGGED_STEPS})")
