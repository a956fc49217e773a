"""The facts about the judges that results contain."""

from __future__ import annotations

from typing import Any

from affetto.evaluate.results import JudgeFacts, Metric
from affetto.judges.kinds import KINDS, LABELLED, Judges, Kind


def judge_facts(judges: Judges, ceiling: Metric | None = None) -> dict[str, JudgeFacts | None]:
    """The results' `judges`; null for a kind without a judge. `ceiling`: the emotion judge's recall on real clips."""
    facts: dict[str, JudgeFacts | None] = dict.fromkeys(KINDS)
    for kind in KINDS:
        judge = getattr(judges, kind, None)
        if judge is not None:
            own = _facts(kind, judge, ceiling if kind == "emotion" else None)
            if members := getattr(judge, "members", ()):
                own["members"] = [_facts(kind, member) for member in members]
            facts[kind] = own
    return facts


def _facts(kind: Kind, judge: Any, ceiling: Metric | None = None) -> JudgeFacts:
    facts = JudgeFacts(
        id=judge.id, tier=judge.tier, labels=list(judge.labels) if kind in LABELLED else None,
        licence=judge.licence, sample_rate=judge.sample_rate, ceiling=ceiling,
    )  # fmt: skip
    _add_known(facts, judge)
    return facts


def _add_known(facts: JudgeFacts, judge: Any) -> None:
    """Add a judge's languages, corpora, scale and note, as far as they are known."""
    known = getattr(judge, "known", None)
    if known is not None:
        if known.languages is not None:
            facts["languages"] = list(known.languages)
        if known.heard is not None:
            facts["heard"] = list(known.heard)
        if known.note is not None:
            facts["note"] = known.note
    scale = getattr(judge, "scale", None) or getattr(known, "scale", None)
    if scale is not None:
        facts["scale"] = scale
