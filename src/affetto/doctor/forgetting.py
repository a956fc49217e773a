"""Lost capabilities: general speech, words, voice quality, and plain prompts that stay plain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from affetto.doctor.changes import scaled, set_to, to_default
from affetto.doctor.evidence import Evidence
from affetto.doctor.findings import Answer, Change, Check, Number, Symptom
from affetto.doctor.thresholds import FORGETTING_NATS, MIN_CLIPS_FOR_A_VERDICT, MORE_EPOCHS, OVER_BUDGET
from affetto.errors import counted
from affetto.evaluate.summary import MARGINS, PLAIN_MARGINS
from affetto.metrics.statistics import Estimate, non_inferiority
from affetto.model.rows import PLAIN_TEMPLATE

_ANSWERS: Mapping[str, Answer] = {"worse": "shown", "preserved": "absent"}
_KEEPERS = ("replay_ratio", "rehearsal_buffer_size", "distillation_alpha", "ewc_lambda")
"""The settings that preserve the base, in the order in which to turn them on."""


def lost_capabilities(evidence: Evidence, *, is_weak: bool) -> Symptom:
    """`is_weak`: the expression is weak too, so the remedy must not weaken it.

    An adapter without a cue is always emotional, so it is judged only on words and quality (method, section 5).
    """
    is_cued = evidence.setting("prompt_template") != PLAIN_TEMPLATE
    keep = _keep_more(evidence, is_weak)
    softer = _softer(evidence)
    return Symptom(
        "lost capabilities",
        (
            _general_speech(evidence, keep, is_sign=is_cued),
            *_budget(evidence),
            _compared(evidence, "emotional", "wer", "words lost when asked for the emotion", softer),
            _compared(evidence, "plain", "wer", "words lost on plain prompts", keep),
            _compared(evidence, "plain", "posterior", "emotion on plain prompts", _cue(evidence), is_sign=is_cued),
            _compared(evidence, "emotional", "mos_overall", "quality lost when asked for the emotion", softer),
            _compared(evidence, "plain", "mos_overall", "quality lost on plain prompts", keep),
            _stops(evidence, softer),
            _unprotected(evidence),
        ),
    )


def general_kl(evidence: Evidence) -> Number | None:
    """KL(base || adapted) on general speech: the evaluation's, else the best validation's; None if unknown."""
    retention = evidence.results["retention"] if evidence.results else None
    if retention and retention["kl"]["value"] is not None:
        return Number.of("KL on general speech", retention["kl"])
    step = evidence.fact("validation", "step")
    rows = evidence.rows("validation")
    rows = [row for row in rows if row["step"] == step] or rows[-1:]
    kl = rows[0]["terms"].get("general_kl") if rows else None
    return None if kl is None else Number("KL on general speech (validation)", kl, "nats/code")


def allowed_nats(evidence: Evidence) -> float:
    """How much general speech may change, in nats per code: the margin, or a larger budget with its tolerance."""
    return max(FORGETTING_NATS, OVER_BUDGET * (evidence.setting("forgetting_budget") or 0.0))


def _budget(evidence: Evidence) -> list[Check]:
    """Whether the forgetting budget was met, if there is one."""
    budget = evidence.fact("forgetting_budget")
    if not budget:
        return []
    numbers = (
        Number("KL at the recommended intensity", budget["kl"], "nats/code"),
        Number("budget", budget["budget"], "nats/code"),
        Number("recommended intensity", evidence.fact("recommended_intensity")),
    )  # fmt: skip
    why = "the budget was not met before training ended: more steps let the multiplier settle"
    change = None if budget["met"] else scaled(evidence, "num_epochs", MORE_EPOCHS, why)
    return [Check("a budget that isn't met", "absent" if budget["met"] else "shown", numbers, change=change)]


def _general_speech(evidence: Evidence, change: Change, *, is_sign: bool) -> Check:
    """ΔNLL and KL compared with their margin; the worse of both decides."""
    name = "general speech forgotten"
    retention = evidence.results["retention"] if evidence.results else None
    if retention is None:
        return _by_validation(evidence, name, change, is_sign)
    metrics = {"ΔNLL on general speech": retention["delta_nll"], "KL on general speech": retention["kl"]}
    numbers, answers, reasons = [], [], []
    for title, metric in metrics.items():
        if metric["value"] is None:
            answers.append("unknown")
            reasons.append(metric["reason"] or f"{title} isn't known")
            continue
        numbers.append(Number.of(title, metric))
        verdict, reason = non_inferiority(_estimate(metric), allowed_nats(evidence), "higher")
        answers.append(_ANSWERS.get(verdict or "", "unknown"))
        reasons.append(reason or _spans(allowed_nats(evidence)))
    answer: Answer = "shown" if "shown" in answers else "unknown" if "unknown" in answers else "absent"
    numbers += [*_where(retention["per_codebook"]["kl"]), *_inside(evidence)]
    reason = reasons[answers.index("unknown")] if answer == "unknown" else None
    return Check(name, answer, tuple(numbers), reason, change if answer == "shown" else None, is_sign)


def _by_validation(evidence: Evidence, name: str, change: Change, is_sign: bool) -> Check:
    forgotten = general_kl(evidence)
    if forgotten is None:
        return Check(name, "unknown", (), "no general clip was held out or validated yet", is_sign=is_sign)
    numbers = (forgotten, *_inside(evidence))
    if forgotten.value > allowed_nats(evidence):
        return Check(name, "shown", numbers, "by validation; the evaluation gives an interval", change, is_sign)
    why = f"validation is inside the margin; the interval is missing: {evidence.why_no_evaluation()}"
    return Check(name, "unknown", numbers, why, is_sign=is_sign)


def _where(kl_K: list[float]) -> list[Number]:
    """KL of codebook zero, which the backbone predicts, and of the others, which the depth decoder predicts."""
    if len(kl_K) < 2:
        return []
    rest = math.fsum(kl_K[1:]) / (len(kl_K) - 1)
    return [Number("of codebook zero", kl_K[0], "nats/code"), Number("of the others", rest, "nats/code")]


def _inside(evidence: Evidence) -> list[Number]:
    """The strongest measured intensity whose KL is inside the margin."""
    points, most = evidence.fact("frontier") or [], allowed_nats(evidence)
    inside = [point["intensity"] for point in points if point["kl"] is not None and point["kl"] <= most]
    return [Number("highest intensity inside the margin", max(inside))] if inside else []


def _compared(evidence: Evidence, prompt: str, name: str, title: str, change: Change, *, is_sign: bool = True) -> Check:
    """The evaluation's verdict against the base; emotional speech may be as bad as real acted speech."""
    metric = evidence.compared(prompt, name)
    if metric is None:
        return Check(title, "unknown", (), evidence.why_no_evaluation(), is_sign=is_sign)
    is_plain = prompt == "plain"
    if metric["difference"] is None:
        own = (evidence.system("adapter").get("plain_metrics" if is_plain else "metrics") or {}).get(name) or {}
        return Check(title, "unknown", (), own.get("reason") or metric["reason"], is_sign=is_sign)
    sides = {"base": "the base's", "adapter": "the adapter's"} | ({} if is_plain else {"real": "real recordings'"})
    metrics = {role: evidence.metric(role, name, is_plain=is_plain and role != "real") for role in sides}
    values = [Number.of(sides[role], side) for role, side in metrics.items() if side is not None]
    unit = next((number.unit for number in values), "")
    difference = Number("difference", metric["difference"], unit, metric["low"], metric["high"], metric["n"])
    numbers = (difference, *values)
    margin = (PLAIN_MARGINS if is_plain else MARGINS)[name]
    answer = _ANSWERS.get(metric["verdict"] or "", "unknown")
    if answer == "shown" and not is_plain and _is_as_real(metrics, margin.worse):
        return Check(
            title, "absent", numbers, "worse than the base, but no worse than real recordings", is_sign=is_sign
        )
    reason = (metric["reason"] or _spans(margin.size)) if answer == "unknown" else None
    return Check(title, answer, numbers, reason, change if answer == "shown" else None, is_sign)


def _is_as_real(metrics: Mapping[str, Mapping[str, Any] | None], worse: str) -> bool:
    """Whether the adapter's interval reaches that of the real recordings."""
    ours, real = metrics["adapter"], metrics.get("real")
    if ours is None or real is None or None in (ours["low"], ours["high"], real["low"], real["high"]):
        return False
    return bool(ours["low"] <= real["high"] if worse == "higher" else ours["high"] >= real["low"])


def _stops(evidence: Evidence, change: Change) -> Check:
    """Speech that is empty or doesn't end by itself: shown if the interval is above the base's."""
    name = "speech that doesn't stop"
    ours, base = (evidence.metric(role, "stop_failures") for role in ("adapter", "base"))
    if ours is None or base is None or None in (ours["low"], base["high"]):
        return Check(name, "unknown", (), evidence.why_no_evaluation())
    numbers = (Number.of("the adapter's stop failures", ours), Number.of("the base's", base))
    if min(ours["n"], base["n"]) < MIN_CLIPS_FOR_A_VERDICT:
        files = counted(min(ours["n"], base["n"]), "file is", "files are")
        few = f"{files} too few for a verdict (at least {MIN_CLIPS_FOR_A_VERDICT})"
        return Check(name, "unknown", numbers, few)
    is_more = ours["low"] > base["high"]
    return Check(name, "shown" if is_more else "absent", numbers, change=change if is_more else None)


def _unprotected(evidence: Evidence) -> Check:
    name = "a protection that is off"
    values = {key: evidence.setting(key) for key in _KEEPERS}
    if None in values.values():
        return Check(name, "unknown", (), "the configuration isn't known", is_sign=False)
    off = [key for key, value in values.items() if value == 0]
    change = to_default(evidence, off[0], f"forgetting comes from {', '.join(off)} at 0") if off else None
    numbers = tuple(Number(key, value) for key, value in values.items())
    return Check(name, "shown" if off else "absent", numbers, change=change, is_sign=False)


def _keep_more(evidence: Evidence, is_weak: bool) -> Change:
    """A stronger penalty; if the expression is weak too, a change that doesn't weaken it."""
    alpha, ratio, buffer = (
        evidence.setting(key) for key in ("distillation_alpha", "replay_ratio", "rehearsal_buffer_size")
    )
    forgotten = general_kl(evidence)
    if evidence.setting("forgetting_budget"):
        return scaled(evidence, "forgetting_budget", 0.5, "the budget sets how much is forgotten")
    if not is_weak:
        over = forgotten.value / FORGETTING_NATS if forgotten else 2.0
        why = (
            f"general speech changed by {over:.1f} times its margin of {FORGETTING_NATS:g} nats"
            if forgotten
            else "stronger EWC"
        )
        return scaled(evidence, "ewc_lambda", 4 if over > 4 else 2, why)
    if alpha is not None and alpha < 1:
        return set_to(evidence, "distillation_alpha", 1.0, "the expression is weak too, and this costs none of it")
    if ratio is not None and ratio < 0.5:
        return set_to(
            evidence, "replay_ratio", 0.5, "the expression is weak too: more general speech, not a stronger EWC"
        )
    clips = evidence.fact("data", "rehearsed_clips")
    if None not in (clips, buffer) and clips < buffer:
        return Change(f"the data has only {counted(clips, 'general clip')} to rehearse: add more general speech")
    return scaled(
        evidence, "rehearsal_buffer_size", 2, "the expression is weak too: more general clips, not a stronger EWC"
    )


def _cue(evidence: Evidence) -> Change:
    """The change against emotion on plain prompts."""
    ratio = evidence.setting("replay_ratio")
    why = "general rows teach it to read plain prompts plainly"
    if ratio is None or ratio < 0.5:
        return set_to(evidence, "replay_ratio", 0.5, why)
    return set_to(evidence, "replay_ratio", round(min(0.9, ratio + 0.1), 2), why)


def _softer(evidence: Evidence) -> Change:
    """The change against losses in emotional speech: a lower intensity first, which needs no training."""
    strength = evidence.system("adapter").get("intensity")
    lower = f"{0.75 * strength:.3g}" if strength else "0.75"
    return Change(f"evaluate it weaker first: --intensity {lower} shows whether the strength causes it")


def _estimate(metric: Mapping[str, Any]) -> Estimate:
    return Estimate(metric["value"], metric["low"], metric["high"], metric["n"], metric["reason"])


def _spans(margin: float) -> str:
    return f"the interval spans the margin of {margin:g}: more sentences or clips would decide"
