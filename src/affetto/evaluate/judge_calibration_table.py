"""Shows a calibration of judges as a table, and its conclusions as sentences."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.table import Table

from affetto.errors import counted

_SHOWN = 5
"""How many of the failed recordings are listed."""


def calibration_table(document: Mapping[str, Any]) -> Table:
    """Every judge's numbers on real recordings, one row per class or corpus."""
    table = Table(title=f"judges on {counted(document['num_clips'], 'real recording')}", title_justify="left")
    for name in ("judge", "hears", "value", "95 % interval", "n", "can it?"):
        table.add_column(name, justify="left" if name in ("judge", "hears", "can it?") else "right")
    emotion = document["emotion"]
    for label, found in emotion["classes"].items() if emotion else ():
        alarms = "" if found["false_alarms"] is None else f", others {found['false_alarms']:.0%}"
        answer = found["heard"] or "–"
        why = f": {found['reason']}" if found["reason"] else ""
        _add(table, "emotion", label, found["recall"], f"{answer}{why if answer != 'yes' else ''}", alarms)
    for label, count in emotion["lacking"].items() if emotion else ():
        table.add_row("emotion", label, "–", "", str(count), "no: the judge has no such class")
    for corpus, found in (document["voice"] or {}).items():
        _add_voices(table, corpus, found)
    for kind in ("words", "quality"):
        for corpus, metrics in (document[kind] or {}).items():
            for name, metric in metrics.items():
                _add(table, kind, f"{corpus} {name}", metric, metric["reason"] or "")
    for label, metrics in (document["dimensions"] or {}).items():
        for name, metric in metrics.items():
            holds = metric.get("holds") or "–"
            moved = {**metric, "value": metric["difference"], "unit": ""}
            _add(table, "dimensions", f"{label} − neutral: {name}", moved, f"expected {metric['expected']}: {holds}")
    return table


def said(document: Mapping[str, Any]) -> list[str]:
    """The conclusions from the numbers, in sentences."""
    lines = []
    corpora = {file["corpus"].lower() for file in document["files"]}
    for kind, judge in document["judges"].items():
        for member in (judge.get("members") or [judge]) if judge is not None else ():
            lines += _who(kind, member, corpora)
    emotion = document["emotion"]
    if emotion:
        missed = [label for label, found in emotion["classes"].items() if found["heard"] == "no"]
        if missed:
            lines.append(
                f"This emotion judge can't hear {', '.join(missed)} in these recordings: don't let it score similar "
                "speech. Name another with --judge emotion=ID_OR_FOLDER."
            )
    for corpus, found in (document["voice"] or {}).items():
        if found["told"] == "no":
            lines.append(
                f"This voice judge can't tell the speakers of {corpus} apart: don't let it score similar voices. "
                "Name another with --judge voice=ID_OR_FOLDER."
            )
    for corpus, metrics in (document["words"] or {}).items():
        if metrics["wer"]["value"] is not None and metrics["wer"]["value"] > 0.5:
            lines.append(
                f"This word judge gets most words of {corpus} wrong: don't let it score similar speech. Name another "
                "with --judge words=ID_OR_FOLDER."
            )
    return lines


def failures(document: Mapping[str, Any]) -> list[str]:
    """How many recordings failed or were left out before judging, and the first of each with the reason."""
    failed = [f"{file['file']}: {file['error']}" for file in document["files"] if file["error"] is not None]
    left_out = document["left_out"]
    return [
        *_first(f"{len(failed)} of {counted(document['num_clips'], 'recording')} could not be judged", failed),
        *_first(f"{counted(len(left_out), 'problem')} left recordings out before anything was judged", left_out),
    ]


def _first(heading: str, failed: Sequence[str]) -> list[str]:
    if not failed:
        return []
    rest = [f"  and {len(failed) - _SHOWN} more in judge_calibration.json"] if len(failed) > _SHOWN else []
    return [f"failed: {heading}:", *(f"  {line}" for line in failed[:_SHOWN]), *rest]


def _who(kind: str, judge: Mapping[str, Any], corpora: Collection[str]) -> list[str]:
    lines = [f"{kind}: {judge['id']} ({judge['tier']}; licence {judge['licence'] or 'unknown'})"]
    lines += [f"  note: {judge['note']}"] if judge.get("note") else []
    if judge.get("heard") is None:
        return [
            *lines,
            "  its training data is unknown. If these recordings were part of it, the numbers flatter it",
        ]
    if flattered := [name for name in judge["heard"] if name.lower() in corpora]:
        lines.append(f"  it was trained on {', '.join(flattered)}: these numbers flatter it")
    return lines


def _add_voices(table: Table, corpus: str, found: Mapping[str, Any]) -> None:
    answer = ": ".join([found["told"] or "–", *([found["reason"]] if found["reason"] else [])])
    _add(table, "voice", f"{corpus} named", found["named"], answer)
    if found["named"]["value"] is not None:
        _add(table, "voice", f"{corpus} cosine to the speaker's others", found["own"], "")
        _add(table, "voice", f"{corpus} cosine to other speakers", found["others"], "")
        _add(table, "voice", f"{corpus} equal error rate", found["equal_error_rate"], "")


def _add(table: Table, judge: str, what: str, metric: Mapping[str, Any], answer: str, alarms: str = "") -> None:
    is_share = metric.get("unit") == "share"

    def write(number: float | None) -> str:
        return "–" if number is None else f"{number:.0%}" if is_share else f"{number:.2f}"

    interval = "" if metric["low"] is None else f"{write(metric['low'])} to {write(metric['high'])}"
    table.add_row(judge, what, write(metric["value"]) + alarms, interval, str(metric["n"]), answer)
