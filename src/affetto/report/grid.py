"""The comparison page's tables: one row per system, one column per measure, that is, per metric and judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affetto.report.measures import (
    ABSENT,
    ASPECTS,
    MEASURES,
    PLAIN,
    Measure,
    measure_of,
    scale_of,
    write_interval,
    write_number,
)
from affetto.report.systems import Entry, Marks, kind_of
from affetto.report.tables import NOT_MEASURED
from affetto.report.text import TextTable

_RETENTION = ("delta_nll", "kl")
"""Metrics between an adapter and its base, which are listed as the adapter's."""
AT_A_GLANCE = "At a glance"
_OF_SOME = ("Forgetting", PLAIN)
"""Aspects that aren't measured for every system."""


@dataclass(frozen=True)
class Column:
    """One measure."""

    metric: str
    measure: Measure
    aspect: str
    mark: str
    """The judge's mark, if there are several judges."""

    @property
    def title(self) -> str:
        """Label, judge's mark and unit, for text tables."""
        unit = scale_of(self.measure.unit).unit
        return " ".join(part for part in (self.measure.label, self.mark, f"({unit})" if unit else "") if part)


@dataclass(frozen=True)
class Cell:
    """One system's number; its unit is in the column's head."""

    text: str
    interval: str = ""
    n: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Grid(TextTable):
    """A table."""

    title: str
    columns: tuple[Column, ...]
    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def counts(self) -> tuple[int | None, ...]:
        """The most common number of files in each row; a cell with another number shows its own."""
        counters = (Counter(cell.n for cell in row if cell.n) for row in self.rows)
        return tuple(counter.most_common(1)[0][0] if counter else None for counter in counters)

    @property
    def notes(self) -> dict[str, int]:
        """Every reason once, numbered from 1 in the table's order."""
        reasons = dict.fromkeys(cell.reason for row in self.rows for cell in row if cell.reason)
        return {reason: number for number, reason in enumerate(reasons, 1)}

    def as_text(self) -> tuple[list[str], list[list[str]], list[str]]:
        """See `TextTable`."""
        notes = self.notes
        rows = [
            [name if n is None else f"{name} (n={n})", *(_one_line(cell, n, notes) for cell in row)]
            for name, n, row in zip(self.names, self.counts, self.rows, strict=True)
        ]
        return ["System", *(column.title for column in self.columns)], rows, list(notes)


def make_grids(entries: Sequence[Entry], marks: Marks) -> list[Grid]:
    """The main measures at a glance, then one table per aspect.

    The first leaves out columns without any number; those of plain prompts and forgetting list only the systems for
    which they were measured.
    """
    columns = list(columns_of(entries, marks))
    main = [column for column in columns if column.measure.is_main and column.aspect != PLAIN]
    main = [column for column in main if any(cell_of(entry, column, marks).text != ABSENT for entry in entries)]
    grids = [_grid(AT_A_GLANCE, entries, main, marks)]
    for aspect in ASPECTS:
        own = [column for column in columns if column.aspect == aspect and _is_shown(column, entries, marks)]
        members = [
            entry
            for entry in entries
            if aspect not in _OF_SOME or any(cell_of(entry, column, marks).text != ABSENT for column in own)
        ]
        own = [column for column in own if not column.mark or _is_judge_among(column, members, marks)]
        grids.append(_grid(aspect, members, own, marks))
    return [grid for grid in grids if grid.columns and grid.rows]


def _is_shown(column: Column, entries: Sequence[Entry], marks: Marks) -> bool:
    return not column.measure.is_on_request or any(cell_of(entry, column, marks).text != ABSENT for entry in entries)


def _is_judge_among(column: Column, entries: Sequence[Entry], marks: Marks) -> bool:
    kind = kind_of(column.metric, marks) or ""
    return any(marks[kind].get(entry.fingerprint.get(kind, "none")) == column.mark for entry in entries)


def columns_of(entries: Sequence[Entry], marks: Marks) -> Iterator[Column]:
    """Every measure of some system, in the report's order."""
    for is_plain in (False, True):
        present = dict.fromkeys(name for entry in entries for name in _metrics(entry, is_plain))
        known = [name for name in MEASURES if name in present]
        for name in [*known, *(name for name in present if name not in MEASURES)]:
            sample = next(metrics[name] for entry in entries if name in (metrics := _metrics(entry, is_plain)))
            measure = measure_of(name, sample)
            own = marks.get(kind_of(name, marks) or "") or {}
            for mark in own.values() or ("",):
                yield Column(name, measure, PLAIN if is_plain else measure.aspect, mark)


def metric_of(entry: Entry, column: Column, marks: Marks) -> Mapping[str, Any]:
    """The METRIC of a system in a column; null with a reason if it has none or another judge's."""
    metric = _metrics(entry, column.aspect == PLAIN).get(column.metric)
    if metric is None:
        return {"value": None, "reason": _absence(column.metric)}
    if column.mark and metric.get("value") is not None:
        kind = kind_of(column.metric, marks) or ""
        own = marks[kind].get(entry.fingerprint.get(kind, "none"), "")
        if own != column.mark:
            return {"value": None, "reason": f"judged by {kind} judge {own}: another measure"}
    known: Mapping[str, Any] = metric
    return known


def cell_of(entry: Entry, column: Column, marks: Marks) -> Cell:
    """A system's cell in a column."""
    metric = metric_of(entry, column, marks)
    if metric["value"] is None:
        return Cell(ABSENT, reason=metric["reason"] or "no reason was given")
    scale = scale_of(column.measure.unit)
    text = write_number(metric["value"], scale, with_unit=False)
    return Cell(text, write_interval(metric["low"], metric["high"], scale), metric["n"], metric["reason"])


def _grid(title: str, entries: Sequence[Entry], columns: Sequence[Column], marks: Marks) -> Grid:
    rows = tuple(tuple(cell_of(entry, column, marks) for column in columns) for entry in entries)
    return Grid(title, tuple(columns), tuple(entry.name for entry in entries), rows)


def _metrics(entry: Entry, is_plain: bool) -> Mapping[str, Any]:
    if is_plain:
        return entry.system["plain_metrics"] or {}
    retention = entry.results["retention"] if entry.system["role"] == "adapter" else None
    kept = {"delta_nll": retention["delta_nll"], "kl": retention["kl"]} if retention else {}
    return {**entry.system["metrics"], **kept}


def _absence(metric: str) -> str:
    return "measured between an adapter and its base" if metric in _RETENTION else NOT_MEASURED


def _one_line(cell: Cell, common: int | None, notes: Mapping[str, int]) -> str:
    own = f"n={cell.n}" if cell.n and cell.n != common else ""
    note = f"[{notes[cell.reason]}]" if cell.reason else ""
    return " ".join(part for part in (cell.text, cell.interval, own, note) if part)
