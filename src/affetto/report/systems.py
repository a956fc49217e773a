"""Reads any number of results files as one list of systems: their names, judges and sounds.

Numbers by different judges can't be compared. Judges of a kind that differ (another id, commit, weights' hash or label
set) get different marks, A, B, …, and nothing on the page puts numbers of different marks into one column, picture or
difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from affetto.errors import DataError
from affetto.evaluate.journal import judges_fingerprint
from affetto.evaluate.results import FileRow, Results, System, read_results
from affetto.evaluate.summary import METRICS
from affetto.files import expanded

Marks = Mapping[str, Mapping[str, str]]
"""By kind of judge, the mark of each judge's fingerprint; empty if all systems have the same judge."""
MARKS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TAIL = "_results"


@dataclass(frozen=True)
class Entry:
    """One system of the page."""

    name: str
    number: int
    """Position on the page."""
    system: System
    results: Results
    source: Path
    folder: Path
    """The folder of its `files`."""

    @property
    def emotion(self) -> str:
        """The target emotion."""
        return self.results["emotion"]

    @property
    def rows(self) -> list[FileRow]:
        """Its files, without those of plain prompts."""
        return [row for row in self.system["files"] if row["prompt"] != "plain"]

    @property
    def fingerprint(self) -> dict[str, str]:
        """The fingerprints of its judges, by kind; see `journal.judges_fingerprint`."""
        return judges_fingerprint(self.results["judges"])

    def path(self, row: FileRow) -> Path:
        """Where the sound of one of its rows should be."""
        return self.folder / row["file"]


def read_entries(arguments: Sequence[str], folders: Mapping[str, Path] | None = None) -> list[Entry]:
    """Systems of results files, each given as FILE or NAME=FILE; `folders` says by name where sounds are now.

    A file's only system is called NAME, or without one by the file's name (without `_results`). Several systems keep
    their names if these are unique on the page; otherwise, or with NAME, they are `NAME: system`. The re-seeded base of
    a run is left out. DataError if a file can't be read, or two systems would have the same name.
    """
    entries: list[Entry] = []
    shorts = []
    for argument in arguments:
        name, path = _name_and_path(argument)
        results = read_results(path)
        label = name or path.stem.removesuffix(_TAIL) or path.stem
        systems = [system for system in results["systems"] if system["role"] != "reseeded"]
        is_alone = len(systems) == 1
        for system in systems:
            shorts.append(label if is_alone else None if name else system["name"])
            full = label if is_alone else f"{label}: {system['name']}"
            entries.append(Entry(full, len(entries), system, results, path, _folder(path, system)))
    taken = Counter(short for short in shorts if short)
    entries = [
        replace(entry, name=short) if short and taken[short] == 1 else entry
        for entry, short in zip(entries, shorts, strict=True)
    ]
    if repeated := sorted(name for name, times in Counter(entry.name for entry in entries).items() if times > 1):
        sources = [str(entry.source) for entry in entries if entry.name == repeated[0]]
        raise DataError(f"two systems are called {repeated[0]!r}: name their files, NAME={sources[0]} {sources[-1]}")
    return _moved(entries, folders or {})


def find_entry(entries: Sequence[Entry], name: str) -> Entry:
    """The entry of that name; DataError if there is none."""
    for entry in entries:
        if entry.name == name:
            return entry
    raise DataError(f"there is no system {name!r}; there are {', '.join(entry.name for entry in entries)}")


def judge_marks(entries: Sequence[Entry]) -> dict[str, dict[str, str]]:
    """By kind, the mark of each judge that differs from the others; a kind with one judge has none."""
    kinds = dict.fromkeys(kind for entry in entries for kind in entry.fingerprint)
    marks: dict[str, dict[str, str]] = {}
    for kind in kinds:
        fingerprints = dict.fromkeys(entry.fingerprint.get(kind, "none") for entry in entries)
        different = [fingerprint for fingerprint in fingerprints if fingerprint != "none"]
        if len(different) > len(MARKS):
            raise DataError(f"there are {len(different)} different {kind} judges: compare fewer results at once")
        marks[kind] = dict(zip(different, MARKS, strict=False)) if len(different) > 1 else {}
    return marks


def kind_of(metric: str, kinds: Collection[str]) -> str | None:
    """The kind of judge that gives a metric; None if it needs no judge.

    Unknown metrics whose names begin with `mos_` are a quality judge's.
    """
    source: str | None = "quality" if metric.startswith("mos_") else None
    if metric in METRICS:
        source = METRICS[metric].source
    return source if source is not None and source in kinds else None


def _name_and_path(argument: str) -> tuple[str | None, Path]:
    path = expanded(argument)
    if path.is_file():
        return None, path
    name, sign, file = argument.partition("=")
    if sign and name.strip() and file:
        return name.strip(), expanded(file)
    return None, path


def _folder(path: Path, system: System) -> Path:
    """The folder of a system's files: the one in its results, else (in a run's) the parent of the results' folder."""
    if (folder := system.get("folder")) is not None:
        return path.parent / folder
    return path.parent.parent


def _moved(entries: Sequence[Entry], folders: Mapping[str, Path]) -> list[Entry]:
    for name, folder in folders.items():
        find_entry(entries, name)
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder} with the sounds of {name}")
    return [replace(entry, folder=folders.get(entry.name, entry.folder)) for entry in entries]
