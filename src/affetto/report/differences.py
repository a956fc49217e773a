"""The comparison's paired differences: each system against a base, over what both spoke."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affetto.evaluate.results import VALUE_NAMES, Comparison, FileRow
from affetto.evaluate.summary import METRICS, compare
from affetto.report.measures import MEASURES, Measure
from affetto.report.systems import Entry, Marks, kind_of
from affetto.report.tables import Value, show_comparison

Key = tuple[str | None, str | None, int | None]


@dataclass(frozen=True)
class Difference:
    """One system minus another."""

    system: str
    against: str
    paired_by: str
    """What made a pair, or why there are none."""
    num_pairs: int
    values: tuple[Value, ...]
    """In the order of `DIFFERED`."""


DIFFERED: dict[str, Measure] = {
    name: measure
    for name, measure in MEASURES.items()
    if name in METRICS and (measure.is_main or measure.is_plotted) and name != "level_db"
}
"""Metrics that are compared, in the order of the page."""
_TARGETED = ("recall", "posterior")
_KEYS: dict[str, Callable[[FileRow], Key]] = {
    "text, speaker and seed": lambda row: (_words(row["text"]), row["speaker"], row["seed"]),
    "text and speaker": lambda row: (_words(row["text"]), row["speaker"], None),
    "text": lambda row: (_words(row["text"]), None, None),
    "file name": lambda row: (Path(row["file"]).stem, None, None),
}
"""Ways to find pairs, the strictest first; names count only where one side's texts aren't known."""


def make_differences(entries: Sequence[Entry], against: Entry | None, marks: Marks) -> list[Difference]:
    """Every system against `against`; without it, against the base of its own results, or the page's only base."""
    bases = [entry for entry in entries if entry.system["role"] == "base"]
    found = []
    for entry in entries:
        own = [base for base in bases if base.source == entry.source] or (bases if len(bases) == 1 else [])
        other = against or next(iter(own), None)
        if other is not None and other is not entry and (against or entry.system["role"] != "base"):
            found.append(_difference(entry, other, marks))
    return found


def _difference(entry: Entry, other: Entry, marks: Marks) -> Difference:
    paired_by, ours, theirs = _pair(entry.rows, other.rows)
    if not paired_by:
        nothing = Value("—", reason="no pairs")
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
        return Value("—", reason=f"different {kind} judges: not one measure")
    if name in _TARGETED and entry.emotion != other.emotion:
        return Value("—", reason=f"{entry.emotion} was asked of one and {other.emotion} of the other")
    document: dict[str, Any] = {"comparisons": [comparison]}
    return show_comparison(document, (entry.name, other.name), "emotional", name, measure)


def _pair(ours: Sequence[FileRow], theirs: Sequence[FileRow]) -> tuple[str, list[FileRow], list[FileRow]]:
    """The strictest key that has pairs and names no row twice, and both sides' rows under it."""
    has_texts = all(any(row["text"] for row in rows) for rows in (ours, theirs))
    for words, key in _KEYS.items():
        if words == "file name" and has_texts:
            break
        sides = [[(key(row), row) for row in rows if key(row)[0]] for rows in (ours, theirs)]
        keys = [[found for found, _ in side] for side in sides]
        if set(keys[0]) & set(keys[1]) and all(len(set(side)) == len(side) for side in keys):
            return words, *([_under(found, row) for found, row in side] for side in sides)  # type: ignore[return-value]
    return "", [], []


def _under(key: Key, row: FileRow) -> FileRow:
    text, speaker, seed = key
    values = {**dict.fromkeys(VALUE_NAMES), **row["values"]}  # an earlier affetto had fewer
    return FileRow(**{**row, "prompt": "emotional", "text": text, "speaker": speaker, "seed": seed, "values": values})


def _identity(row: FileRow) -> Key:
    return row["text"], row["speaker"], row["seed"]


def words_of(text: str) -> str:
    """What makes two texts one: their letters and digits, without case and punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(letter if letter.isalnum() else " " for letter in plain.replace("'", "")).split())


def _words(text: str | None) -> str | None:
    return None if text is None else words_of(text)
