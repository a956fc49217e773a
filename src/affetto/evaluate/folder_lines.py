"""The lines that the terminal shows of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from affetto.errors import counted
from affetto.evaluate.results import ComparedMetric, JudgeFacts, Metric, Results, System
from affetto.files import as_text

MINIATURE_NOTE = (
    "the miniature's own judges are made for its synthetic voices, and their numbers say little about people's "
    "recordings (docs/evaluation.md, Judges)"
)


def folder_lines(results: Results, output: Path) -> Iterator[str]:
    """The folder's own numbers, its differences from what it was compared with, the judges, and the results' path."""
    system = evaluated(results)
    for name, metric in system["metrics"].items():
        yield _line(name, metric)
    for comparison in results["comparisons"]:
        if comparison["system"] == system["name"]:
            yield f"less {comparison['against']}:"
            metrics = {name: each for name, each in comparison["metrics"].items() if each["difference"] is not None}
            yield from (_difference(name, each) for name, each in metrics.items())
            if not metrics:
                yield "  nothing could be compared: no texts, names or speakers are the same"
    yield from judge_lines(results["judges"])
    yield f"{counted(system['num_files'], 'file')}, {system['num_failed']} failed; written to {as_text(output)}"


def judge_lines(judges: Mapping[str, JudgeFacts | None]) -> Iterator[str]:
    """The judge of each kind and its tier, and a note if one is the miniature's."""
    for kind, judge in judges.items():
        yield f"{kind} judge: {judge['id']} ({judge['tier']})" if judge else f"{kind} judge: none"
    if note := miniature_note(judges):
        yield note


def evaluated(results: Results) -> System:
    """The folder that was scored. The folders it was compared with come after it in the results, and the systems of a
    run that it was added to before it."""
    folders = [system for system in results["systems"] if system["role"] == "files"]
    return folders[-1 if any(system["role"] == "adapter" for system in results["systems"]) else 0]


def failures(results: Results, *, name_systems: bool = False) -> Iterator[str]:
    """A line for each file that could not be scored, with the reason and, with `name_systems`, its system."""
    for system in results["systems"]:
        for row in system["files"]:
            if row["error"] is not None:
                prefix = f"{system['name']}: " if name_systems else ""
                yield f"failed: {prefix}{row['file']}: {row['error']}"


def miniature_note(judges: Mapping[str, JudgeFacts | None]) -> str | None:
    """A caution about numbers by the miniature's judges; None if there are none."""
    kinds = [kind for kind, judge in judges.items() if judge is not None and judge["tier"] == "miniature"]
    return f"note: {' and '.join(kinds)}: {MINIATURE_NOTE}" if kinds else None


def _line(name: str, metric: Metric) -> str:
    if metric["value"] is None:
        return f"{name:18} -          {metric['reason']}"
    interval = f"{metric['low']:.3f} to {metric['high']:.3f}" if metric["low"] is not None else metric["reason"]
    return f"{name:18} {metric['value']:<10.3f} {interval} ({metric['unit']}, n = {metric['n']})"


def _difference(name: str, metric: ComparedMetric) -> str:
    interval = f"{metric['low']:+.3f} to {metric['high']:+.3f}" if metric["low"] is not None else metric["reason"]
    marks: list[str | None] = [metric["verdict"]]
    if expected := metric.get("expected"):
        marks.append(f"{expected} was expected: {metric.get('holds') or 'too few to say'}")
    note = "; ".join(mark for mark in marks if mark)
    return f"  {name:18} {metric['difference']:<+10.3f} {interval} (n = {metric['n']}){f'; {note}' if note else ''}"
