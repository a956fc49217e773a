"""Data trouble: too few clips, one voice, clips that were left out, a judge that doesn't hear the emotion."""

from __future__ import annotations

import math
from collections import Counter
from statistics import fmean
from typing import Any

from affetto.doctor.evidence import Evidence
from affetto.doctor.findings import Change, Check, Number, Symptom
from affetto.doctor.thresholds import (
    FAILED_SHARE,
    FEW_CLIPS,
    GAP_SHARE,
    HEARD_SHARE,
    MIN_CLIPS_FOR_A_VERDICT,
)
from affetto.errors import counted


def data_trouble(evidence: Evidence) -> Symptom:
    """The symptom that no setting can fix."""
    return Symptom(
        "data trouble",
        (
            _few_clips(evidence),
            _few_held_out(evidence),
            _one_voice(evidence),
            _left_out(evidence),
            _deaf_judge(evidence),
            _failed_files(evidence),
            _gap(evidence),
        ),
    )


def _few_clips(evidence: Evidence) -> Check:
    name = "few emotional clips"
    clips = evidence.fact("data", "emotional_clips")
    if clips is None:
        return _unknown(name, evidence)
    why = f"{counted(clips, f'{evidence.emotion} clip')}, fewer than {FEW_CLIPS}: add more, with other texts"
    return _counted(name, "emotional training clips", clips, FEW_CLIPS, why)


def _few_held_out(evidence: Evidence) -> Check:
    """Validation clips, by which the best adapter is chosen."""
    name = "few emotional clips to validate on"
    clips = evidence.fact("data", "validation_clips")
    if clips is None:
        return _unknown(name, evidence, is_sign=False)
    most = evidence.setting("validation_clips")
    why = f"the best adapter was chosen on {counted(clips, 'clip')}: hold more texts out"
    if most is not None and clips >= most:
        check = _counted(name, "emotional validation clips", clips, MIN_CLIPS_FOR_A_VERDICT, why)
        change = Change(why, "validation_clips", most, MIN_CLIPS_FOR_A_VERDICT) if check.change else None
        return Check(name, check.answer, check.numbers, None, change)
    return _counted(name, "emotional validation clips", clips, MIN_CLIPS_FOR_A_VERDICT, why)


def _counted(name: str, title: str, count: int, fewest: int, why: str) -> Check:
    is_few = count < fewest
    return Check(name, "shown" if is_few else "absent", (Number(title, count),), change=Change(why) if is_few else None)


def _one_voice(evidence: Evidence) -> Check:
    name = "one voice acts the emotion"
    voices = evidence.fact("trained_speakers")
    if not isinstance(voices, list):
        return _unknown(name, evidence)
    numbers = (Number("speakers of the emotion", len(voices)),)
    if len(voices) > 1:
        return Check(name, "absent", numbers)
    why = (
        f"only {', '.join(map(str, voices))} acts {evidence.emotion}, so voice and emotion can't be told apart: add one"
    )
    return Check(name, "shown", numbers, change=Change(why))


def _left_out(evidence: Evidence) -> Check:
    """The share of clips and rows with a problem."""
    name = "clips that had to be left out"
    bad, kept = evidence.fact("data", "bad_clips"), evidence.fact("data", "prepared_clips")
    if bad is None or kept is None:
        why = "the run didn't check its clips (--skip-datasets), or an older affetto trained it"
        return Check(name, "unknown", (), why) if evidence.facts else _unknown(name, evidence)
    share = bad / max(1, bad + kept)
    numbers = (Number("left out", bad, n=bad + kept), Number("share", share, "share"))
    if share <= FAILED_SHARE:
        return Check(name, "absent", numbers)
    clips = counted(bad, "clip was", "clips were")
    return Check(name, "shown", numbers, change=Change(f"{clips} left out: affetto prepare lists and explains them"))


def _deaf_judge(evidence: Evidence) -> Check:
    """Recall on real recordings: if it is low, the judge can't hear the emotion of any adapter either."""
    name = "the judge doesn't hear the emotion on real recordings"
    real = evidence.metric("real", "recall")
    if real is None:
        reason = (evidence.system("real").get("metrics") or {}).get("recall", {}).get("reason")
        return Check(name, "unknown", (), reason or evidence.why_no_evaluation())
    numbers = (Number.of("recall on real recordings", real),)
    if real["n"] < MIN_CLIPS_FOR_A_VERDICT:
        recordings = counted(real["n"], "recording is", "recordings are")
        few = f"{recordings} too few for a verdict (at least {MIN_CLIPS_FOR_A_VERDICT})"
        return Check(name, "unknown", numbers, few)
    if real["value"] >= HEARD_SHARE:
        return Check(name, "absent", numbers)
    judge = (evidence.results or {"judges": {}})["judges"].get("emotion")
    judge_id = judge["id"] if judge else "the judge"
    instead = _most_confused(evidence.system("real").get("confusion") or {}, evidence.emotion)
    rate = f"{real['value']:.0%} of real recordings"
    why = f"{judge_id} hears {evidence.emotion} in {rate}{instead}: use another judge, or clearer clips"
    return Check(name, "shown", numbers, change=Change(why, "judges", judge_id, None))


def _most_confused(confusion: dict[str, int], emotion: str) -> str:
    others = {label: count for label, count in confusion.items() if label != emotion and count}
    return f" (mostly {max(others, key=lambda label: others[label])})" if others else ""


def _failed_files(evidence: Evidence) -> Check:
    name = "files that couldn't be judged"
    systems: list[Any] = list(evidence.results["systems"]) if evidence.results else []
    total = sum(system["num_files"] for system in systems)
    if not total:
        return Check(name, "unknown", (), evidence.why_no_evaluation())
    failed = sum(system["num_failed"] for system in systems)
    numbers = (Number("files with an error", failed, n=total), Number("share", failed / total, "share"))
    if failed / total <= FAILED_SHARE:
        return Check(name, "absent", numbers)
    errors = Counter(row["error"] for system in systems for row in system["files"] if row["error"])
    error, times = errors.most_common(1)[0]
    files = counted(total, "file")
    return Check(name, "shown", numbers, change=Change(f"{failed} of {files} failed, {times} of them with: {error}"))


def _gap(evidence: Evidence) -> Check:
    """Validation loss over training loss on emotional clips, both over all codebooks."""
    name = "validation clips unlike the training clips"
    held, codebooks = evidence.validated("emotion_nll"), _num_codebooks(evidence)
    rows = [row for row in evidence.rows("train") if None not in map(row["terms"].get, _PARTS)]
    if not held or not rows:
        return Check(name, "unknown", (), "the training log has no validation yet")
    if codebooks is None:
        return Check(name, "unknown", (), "the base's number of codebooks isn't known: " + evidence.why_no_evaluation())
    last = [row["terms"] for row in rows if row["epoch"] > rows[-1]["epoch"] - 1]
    train = fmean((terms[_PARTS[0]] + (codebooks - 1) * terms[_PARTS[1]]) / codebooks for terms in last)
    gap = held[-1] / train - 1 if train > 0 else math.inf
    numbers = (
        Number("validation loss", held[-1], "nats/code"), Number("training loss, last epoch", train, "nats/code"),
        Number("gap", gap, "share"),
    )  # fmt: skip
    if gap <= GAP_SHARE:
        return Check(name, "absent", numbers)
    why = f"held-out clips are {gap:.0%} harder than training clips: add clips and texts, spoken alike in all splits"
    return Check(name, "shown", numbers, change=Change(why))


_PARTS = ("emotion_ce_c0", "emotion_ce_depth")


def _num_codebooks(evidence: Evidence) -> int | None:
    if isinstance(num_codebooks := evidence.fact("base", "num_codebooks"), int):
        return num_codebooks
    retention = evidence.results["retention"] if evidence.results else None
    return len(retention["per_codebook"]["kl"]) if retention else None


def _unknown(name: str, evidence: Evidence, *, is_sign: bool = True) -> Check:
    why = "the adapter's facts don't say" if evidence.facts else "no adapter was saved yet"
    return Check(name, "unknown", (), why, is_sign=is_sign)
