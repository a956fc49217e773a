"""Prosody against neutral speech: how far it moved, the direction expected of the emotion, and whether that holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affetto.errors import counted
from affetto.metrics.statistics import MIN_PAIRS
from affetto.report.measures import ABSENT, measure_of
from affetto.report.tables import Value, show_difference
from affetto.report.text import TextTable

UNKNOWN = "unknown"
_NO_DIRECTION = "there is no agreed direction for this emotion"
_REASONS = {
    "yes": "the whole interval is on the expected side of 0",
    "no": "the whole interval is on the other side of 0",
    "undecided": "the interval contains 0",
}


@dataclass(frozen=True)
class Moved:
    """One feature of a system minus that of neutral speech."""

    system: str
    against: str
    metric: str
    label: str
    value: Value
    expected: str
    """`higher`, `lower`, or a dash if no direction is known."""
    holds: str
    """`yes`, `no`, `undecided`, `unknown`, or a dash if nothing is expected."""
    reason: str
    """Why `holds` is what it is."""

    @property
    def doubt(self) -> str | None:
        """Why it isn't known whether the direction holds; None if it is."""
        return self.reason if self.holds == UNKNOWN else None


@dataclass(frozen=True)
class NeutralTable(TextTable):
    """One row per feature, by system and what it was compared with."""

    rows: tuple[Moved, ...]

    @property
    def notes(self) -> dict[str, int]:
        """Caveats of differences, and why a direction is unknown: each once, numbered from 1."""
        reasons = dict.fromkeys(reason for row in self.rows for reason in (row.value.reason, row.doubt) if reason)
        return {reason: number for number, reason in enumerate(reasons, 1)}

    @property
    def groups(self) -> list[tuple[str, str, list[Moved]]]:
        """(system, against, features), as the page shows them."""
        pairs = dict.fromkeys((row.system, row.against) for row in self.rows)
        return [(*pair, [row for row in self.rows if (row.system, row.against) == pair]) for pair in pairs]

    def as_text(self) -> tuple[list[str], list[list[str]], list[str]]:
        """See `TextTable`."""
        notes = self.notes
        rows = [
            [
                f"{row.system} − {row.against}", row.label,
                _noted(notes, row.value.reason, row.value.text, row.value.interval), str(row.value.n or 0),
                row.expected, _noted(notes, row.doubt, row.holds),
            ]
            for row in self.rows
        ]  # fmt: skip
        return ["System", "Feature", "Difference", "n", "Expected", "Holds"], rows, list(notes)


def neutral_table(result: Mapping[str, Any], names: Mapping[str, str] | None = None) -> NeutralTable:
    """The table of one evaluation (docs/results.md); empty if nothing was compared with neutral speech.

    Comparisons with a base, which reads plainly, contribute the metrics that the emotion should move; comparisons with
    neutral speech of the same speakers contribute all. `names` are the page's names of the evaluation's systems.
    """
    names, rows = names or {}, []
    roles = {str(system["name"]): system.get("role") for system in result.get("systems") or []}
    for comparison in result.get("comparisons") or []:
        system, against = str(comparison["system"]), str(comparison["against"])
        if comparison.get("prompt") != "plain" and roles.get(system) != "reseeded":
            metrics = comparison["metrics"]
            chosen = {name: row for name, row in metrics.items() if row.get("expected") or against not in roles}
            rows += list(_moved(names.get(system, system), names.get(against, against), chosen))
    return NeutralTable(tuple(rows))


def join_tables(tables: Sequence[NeutralTable]) -> NeutralTable:
    """All rows in one table."""
    return NeutralTable(tuple(row for table in tables for row in table.rows))


def _moved(system: str, against: str, metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[Moved]:
    for name, row in metrics.items():
        measure, expected = measure_of(name), row.get("expected")
        if measure.is_on_request and row.get("difference") is None:
            continue
        holds = str(row.get("holds") or UNKNOWN) if expected else ABSENT
        value = show_difference({**row, "margin": None, "verdict": None}, measure)
        reason = "; ".join(part for part in (_REASONS.get(holds), value.reason) if part)
        if holds not in _REASONS:
            reason = _why_unknown(row) if expected else _NO_DIRECTION
        yield Moved(system, against, name, measure.label, value, str(expected or ABSENT), holds, reason)


def _why_unknown(row: Mapping[str, Any]) -> str:
    n = row.get("n") or 0
    if row.get("low") is not None and row.get("high") is not None and n < MIN_PAIRS:
        return f"{counted(n, 'pair is', 'pairs are')} too few to say (at least {MIN_PAIRS})"
    return str(row.get("reason") or "there is no interval")


def _noted(notes: Mapping[str, int], reason: str | None, *parts: str) -> str:
    note = f"[{notes[reason]}]" if reason else ""
    return " ".join(part for part in (*parts, note) if part)
