"""The comparison page's paired differences: each system against a base, over the texts that both spoke."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affetto.audio.splits import normalise_text
from affetto.errors import counted
from affetto.evaluate.results import VALUE_NAMES, Comparison, FileRow
from affetto.evaluate.summary import MARGINS, METRICS, compare
from affetto.report.measures import ABSENT, MEASURES, Measure, Scale, scale_of
from affetto.report.systems import Entry, Marks, kind_of
from affetto.report.tables import Value, show_comparison
from affetto.report.text import TextTable

Key = tuple[str | None, str | None, int | None]


@dataclass(frozen=True)
class Difference:
    """One system minus another."""

    system: str
    against: str
    paired_by: str
    """What pairs are matched by, or why there are none."""
    num_pairs: int
    values: tuple[Value, ...]
    """In the order of `DIFFERED`."""
    is_plain: bool = False
    """Over plain prompts."""

    @property
    def pairs(self) -> str:
        """The number of pairs, and what they are matched by."""
        return f"{counted(self.num_pairs, 'pair')} {self.paired_by}" if self.num_pairs else self.paired_by


@dataclass(frozen=True)
class DifferenceTable(TextTable):
    """All differences; a measure on request has a column only if some row has a number."""

    rows: tuple[Difference, ...]

    @property
    def columns(self) -> list[tuple[str, Scale]]:
        """(label, scale) of each column."""
        return [(measure.label, scale_of(measure.unit)) for measure in self._shown.values()]

    def values(self, row: Difference) -> list[Value]:
        """The row's values, one for each column."""
        return [value for name, value in zip(DIFFERED, row.values, strict=True) if name in self._shown]

    @property
    def _shown(self) -> dict[str, Measure]:
        with_numbers = {
            name
            for row in self.rows
            for name, value in zip(DIFFERED, row.values, strict=True)
            if value.text not in ("", ABSENT)
        }
        return {
            name: measure for name, measure in DIFFERED.items() if not measure.is_on_request or name in with_numbers
        }

    def as_text(self) -> tuple[list[str], list[list[str]], list[str]]:
        """See `TextTable`."""
        reasons = (value.reason for row in self.rows for value in self.values(row) if value.reason)
        notes = {reason: number for number, reason in enumerate(dict.fromkeys(reasons), 1)}
        rows = [[_title(row), row.pairs, *(_one_line(value, notes) for value in self.values(row))] for row in self.rows]
        return ["System", "Pairs", *(label for label, _ in self.columns)], rows, list(notes)


DIFFERED: dict[str, Measure] = {
    name: measure
    for name, measure in MEASURES.items()
    if name in METRICS and (measure.is_main or measure.is_plotted or name in MARGINS) and name != "level_db"
}
"""Metrics that are compared, in the order of the page."""
_TARGETED = ("recall", "posterior")
_KEYS: dict[str, Callable[[FileRow], Key]] = {
    "by text, speaker and seed": lambda row: (row["text"], row["speaker"], row["seed"]),
    "by text and speaker": lambda row: (row["text"], row["speaker"], None),
    "by text": lambda row: (row["text"], None, None),
    "by letters and digits of the text, speaker and seed": lambda row: (
        _words(row["text"]), row["speaker"], row["seed"]
    ),
    "by letters and digits of the text and speaker": lambda row: (_words(row["text"]), row["speaker"], None),
    "by letters and digits of the text": lambda row: (_words(row["text"]), None, None),
    "by file name": lambda row: (Path(row["file"]).stem, None, None),
}  # fmt: skip
"""Keys to match pairs by, the strictest first; file names are used only if one side's texts aren't known."""


def make_differences(entries: Sequence[Entry], against: Entry | None, marks: Marks) -> list[Difference]:
    """Every system against `against`; without it, against the base of its own results, or the page's only base.

    Comparisons in the results are shown as they are, those on plain prompts too; any other is computed here.
    """
    bases = [entry for entry in entries if entry.system["role"] == "base"]
    differences: list[Difference] = []
    for entry in entries:
        own = [base for base in bases if base.source == entry.source] or (bases if len(bases) == 1 else [])
        other = against or next(iter(own), None)
        if other is not None and other is not entry and (against or entry.system["role"] != "base"):
            stored = _stored(entry, other)
            if "emotional" not in stored:
                differences.append(_computed(entry, other, marks))
            differences += (_as_stored(entry, other, prompt, comparison) for prompt, comparison in stored.items())
    return differences


def _stored(entry: Entry, other: Entry) -> dict[str, Comparison]:
    """The comparisons of two systems in their results, by prompt; files without prompts count as emotional."""
    if entry.source != other.source:
        return {}
    pair = (entry.system["name"], other.system["name"])
    return {
        comparison["prompt"] or "emotional": comparison
        for comparison in entry.results["comparisons"]
        if (comparison["system"], comparison["against"]) == pair
    }


def _as_stored(entry: Entry, other: Entry, prompt: str, comparison: Comparison) -> Difference:
    pair = (comparison["system"], comparison["against"])
    document = {"comparisons": [comparison]}
    values = tuple(show_comparison(document, pair, prompt, name, measure) for name, measure in DIFFERED.items())
    num_pairs = max((metric["n"] for metric in comparison["metrics"].values()), default=0)
    return Difference(entry.name, other.name, "as in the results", num_pairs, values, prompt == "plain")


def _computed(entry: Entry, other: Entry, marks: Marks) -> Difference:
    paired_by, ours, theirs = _pair(entry.rows, other.rows)
    if not paired_by:
        nothing = Value(ABSENT, reason="no pairs")
        return Difference(entry.name, other.name, "no text and no file name is in both", 0, (nothing,) * len(DIFFERED))
    comparison = compare(ours, theirs, system=entry.name, against=other.name, prompt="emotional")
    values = tuple(_shown(comparison, entry, other, name, measure, marks) for name, measure in DIFFERED.items())
    num_pairs = len({_identity(row) for row in ours} & {_identity(row) for row in theirs})
    return Difference(entry.name, other.name, paired_by, num_pairs, values)


def _shown(
    comparison: Comparison, entry: Entry, other: Entry, name: str, measure: Measure,
    marks: Marks,
) -> Value:  # fmt: skip
    kind = kind_of(name, marks)
    if kind and marks.get(kind) and entry.fingerprint.get(kind) != other.fingerprint.get(kind):
        return Value(ABSENT, reason=f"different {kind} judges: not comparable")
    if name in _TARGETED and entry.emotion != other.emotion:
        return Value(ABSENT, reason=f"one should sound {entry.emotion} and the other {other.emotion}")
    if METRICS[name].source == "voice" and entry.source != other.source:
        return Value(ABSENT, reason="each is measured against the base of its own results: not comparable")
    document: dict[str, Any] = {"comparisons": [comparison]}
    return show_comparison(document, (entry.name, other.name), "emotional", name, measure)


def _pair(ours: Sequence[FileRow], theirs: Sequence[FileRow]) -> tuple[str, list[FileRow], list[FileRow]]:
    """The strictest key that has pairs and is unique on each side, and both sides' rows under it."""
    has_texts = all(any(row["text"] for row in rows) for rows in (ours, theirs))
    for words, key in _KEYS.items():
        if words == "by file name" and has_texts:
            break
        sides = [[(key(row), row) for row in rows if key(row)[0]] for rows in (ours, theirs)]
        keys = [[own for own, _ in side] for side in sides]
        if set(keys[0]) & set(keys[1]) and all(len(set(side)) == len(side) for side in keys):
            return words, *([_under(own, row) for own, row in side] for side in sides)  # type: ignore[return-value]
    return "", [], []


def _under(key: Key, row: FileRow) -> FileRow:
    text, speaker, seed = key
    values = {**dict.fromkeys(VALUE_NAMES), **row["values"]}  # an earlier affetto had fewer values
    return FileRow(**{**row, "prompt": "emotional", "text": text, "speaker": speaker, "seed": seed, "values": values})


def _identity(row: FileRow) -> Key:
    return row["text"], row["speaker"], row["seed"]


def _words(text: str | None) -> str | None:
    return None if text is None else normalise_text(text)


def _title(row: Difference) -> str:
    return f"{row.system}{', plain prompts' if row.is_plain else ''} − {row.against}"


def _one_line(value: Value, notes: Mapping[str, int]) -> str:
    margin = f"margin {value.margin}" if value.margin else ""
    note = f"[{notes[value.reason]}]" if value.reason else ""
    return " ".join(part for part in (value.text, value.interval, value.verdict, margin, value.p, note) if part)
