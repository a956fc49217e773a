"""Weak expression: the emotion is hardly heard, or was hardly learned."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from affetto.doctor.changes import scaled
from affetto.doctor.evidence import Evidence
from affetto.doctor.findings import Answer, Change, Check, Number, Symptom
from affetto.doctor.forgetting import general_kl
from affetto.doctor.thresholds import (
    FEW_STEPS,
    FORGETTING_NATS,
    HEARD_SHARE,
    LEARNED_SHARE,
    MIN_CLIPS_FOR_A_VERDICT,
    MORE_EPOCHS,
    MOST_RANK,
    STILL_FALLING_SHARE,
    STRONGEST,
)
from affetto.errors import counted


def weak_expression(evidence: Evidence) -> Symptom:
    """What is heard decides; if that isn't known, what was learned."""
    heard = _heard(evidence)
    return Symptom(
        "weak expression",
        (
            heard,
            _learned(evidence, is_sign=heard.answer == "unknown"),
            _still_falling(evidence),
            _at_the_edge(evidence),
            _held_back(evidence),
        ),
    )


def _heard(evidence: Evidence) -> Check:
    """Recall of the adapter compared with real recordings: shown if it is lower and the intervals don't overlap."""
    name = "heard less often than real recordings"
    recalls = {role: evidence.metric(role, "recall") for role in ("adapter", "real", "base")}
    titles = {"adapter": "recall", "real": "recall on real recordings", "base": "recall on the base"}
    numbers = tuple(Number.of(titles[role], metric) for role, metric in recalls.items() if metric is not None)
    ours, real = recalls["adapter"], recalls["real"]
    if ours is None or real is None:
        return Check(name, "unknown", numbers, _why_not_heard(evidence, "real" if ours else "adapter"))
    if None in (ours["high"], real["low"]):
        return Check(name, "unknown", numbers, "the evaluation gives no interval for the recall")
    if min(ours["n"], real["n"]) < MIN_CLIPS_FOR_A_VERDICT:
        files = counted(min(ours["n"], real["n"]), "file is", "files are")
        few = f"{files} too few for a verdict (at least {MIN_CLIPS_FOR_A_VERDICT})"
        return Check(name, "unknown", numbers, few)
    if real["value"] < HEARD_SHARE:
        return Check(name, "unknown", numbers, "the judge hardly hears the emotion on real recordings either")
    is_less = ours["high"] < real["low"]
    return Check(name, "shown" if is_less else "absent", numbers, change=_more_power(evidence) if is_less else None)


def _why_not_heard(evidence: Evidence, role: str) -> str:
    if evidence.results is None:
        return evidence.why_no_evaluation()
    system: Mapping[str, Any] = evidence.system(role)
    if not system:
        return f"the evaluation has no system with the role {role!r}"
    return str(system["metrics"].get("recall", {}).get("reason") or "its recall wasn't measured")


def _more_power(evidence: Evidence) -> Change:
    if evidence.setting("use_adapters") is False:
        return Change("every weight is trained already: more clips, or clips that act the emotion more clearly")
    rank = evidence.setting("adapter_r")
    if rank is not None and rank >= MOST_RANK:
        return Change(f"rank {rank} is plenty: more clips, or clips that act the emotion more clearly")
    return scaled(evidence, "adapter_r", 2, "nothing else holds it back: more expressive power")


def _learned(evidence: Evidence, *, is_sign: bool) -> Check:
    """The loss on emotional clips: the first step's, which is the base's, compared with the last epoch's mean."""
    name = "emotional clips hardly better predicted than by the base"
    rows = [row for row in evidence.rows("train") if _loss(evidence, row) is not None]
    if not rows or rows[0]["step"] != 1 or not evidence.is_finished:
        why = "training isn't complete" if rows else "the training log has no loss on emotional clips"
        return Check(name, "unknown", (), why, is_sign=is_sign)
    last_epoch = [row for row in rows[1:] if row["epoch"] > rows[-1]["epoch"] - 1]
    if not last_epoch:
        return Check(name, "unknown", (), "only the first step was logged", is_sign=is_sign)
    before, after = _loss(evidence, rows[0]) or 0.0, fmean(_loss(evidence, row) or 0.0 for row in last_epoch)
    fall = 1 - after / before if before else 0.0
    numbers = (
        Number("training loss of the base", before, "nats/code"),
        Number("in the last epoch", after, "nats/code", n=len(last_epoch)),
        Number("fallen by", fall, "share"),
    )
    if fall >= LEARNED_SHARE:
        return Check(name, "absent", numbers, is_sign=is_sign)
    why = f"the loss on emotional clips fell by {fall:.1%}, less than {LEARNED_SHARE:.0%}"
    if (num_steps := rows[-1]["step"]) < FEW_STEPS:
        why, key, factor = f"{why}, in only {counted(num_steps, 'step')}", "num_epochs", FEW_STEPS / num_steps
    else:
        key, factor = "learning_rate", 10.0 if fall < LEARNED_SHARE / 5 else 3.0
    return Check(name, "shown", numbers, change=scaled(evidence, key, factor, why), is_sign=is_sign)


def _loss(evidence: Evidence, row: Mapping[str, Any]) -> float | None:
    """Cross-entropy of the emotional rows, weighted as in training."""
    c0, depth = (row["terms"].get(f"emotion_ce_{part}") for part in ("c0", "depth"))
    if c0 is None or depth is None:
        return None
    weight = evidence.setting("first_codebook_weight")
    weight = 0.5 if weight is None else float(weight)
    return weight * float(c0) + (1 - weight) * float(depth)


def _still_falling(evidence: Evidence) -> Check:
    name = "still learning when it ended"
    values = evidence.validated("emotion_nll")
    if not evidence.is_finished:
        return Check(name, "unknown", (), "training isn't complete", is_sign=False)
    if len(values) < 2:
        return Check(
            name, "unknown", (), f"{counted(len(values), 'validation')}: there is nothing to compare", is_sign=False
        )
    fall = 1 - values[-1] / values[-2]
    numbers = (
        Number("validation loss, last epoch", values[-1], "nats/code"),
        Number("fallen by", fall, "share"),
    )
    if fall < STILL_FALLING_SHARE:
        return Check(name, "absent", numbers, is_sign=False)
    why = f"the validation loss on emotional clips was still falling by {fall:.1%} in the last epoch"
    return Check(name, "shown", numbers, change=scaled(evidence, "num_epochs", MORE_EPOCHS, why), is_sign=False)


def _at_the_edge(evidence: Evidence) -> Check:
    """If the recommended intensity is the highest measured, even more might be better."""
    name = "best at the highest intensity measured"
    if not evidence.is_finished:
        return Check(name, "unknown", (), "the frontier wasn't measured yet", is_sign=False)
    highest = max(point["intensity"] for point in evidence.fact("frontier"))
    recommended = evidence.fact("recommended_intensity")
    if recommended is None:
        return Check(name, "unknown", (), "the adapter's facts recommend no intensity", is_sign=False)
    numbers = (Number("recommended intensity", recommended), Number("highest measured", highest))
    why = f"the recommended intensity is {recommended:g}, the highest measured: the adapter is weaker than it could be"
    matching = evidence.fact("matching") or {}
    if looks := {look["intensity"]: look["strength"] for look in matching.get("strengths", [])}:
        # Intensities above the strongest of these aren't tried when the adapter is matched to its clips by prosody.
        highest, strength = max(looks), looks.get(recommended, 1.0)
        numbers = (
            Number("recommended intensity", recommended), Number("strength, relative to the clips'", strength, "share")
        )  # fmt: skip
        why = f"even at intensity {recommended:g} the adapter speaks with {strength:.0%} of its clips' strength"
        if strength >= STRONGEST:
            return Check(name, "absent", numbers, is_sign=False)
    if recommended < STRONGEST * highest:
        return Check(name, "absent", numbers, is_sign=False)
    return Check(name, "shown", numbers, change=scaled(evidence, "learning_rate", 1.5, why), is_sign=False)


def _held_back(evidence: Evidence) -> Check:
    """Forgetting far inside its margin leaves room for more expression; a budget may be what limits it."""
    name = "held back by EWC"
    if budget := evidence.setting("forgetting_budget"):
        number = Number("forgetting budget", budget, "nats/code")
        is_held = budget < FORGETTING_NATS
        why = f"the budget is inside the margin of {FORGETTING_NATS:g} nats, so there is room"
        change = scaled(evidence, "forgetting_budget", min(2.0, FORGETTING_NATS / budget), why) if is_held else None
        held: Answer = "shown" if is_held else "absent"
        return Check("held back by the budget", held, (number,), change=change, is_sign=False)
    forgotten, weight = general_kl(evidence), evidence.setting("ewc_lambda")
    if forgotten is None or weight is None:
        why = "forgetting wasn't measured" if weight is not None else "the configuration isn't known"
        return Check(name, "unknown", (), why, is_sign=False)
    is_held = weight > 0 and (forgotten.value if forgotten.high is None else forgotten.high) < FORGETTING_NATS
    why = f"forgetting is inside its margin of {FORGETTING_NATS:g} nats, so there is room"
    change = scaled(evidence, "ewc_lambda", 0.5, why) if is_held else None
    return Check(name, "shown" if is_held else "absent", (forgotten,), change=change, is_sign=False)
