"""The comparison page's confusion tables: the answers of each emotion judge for each system."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from affetto.report.systems import Entry, Marks
from affetto.report.text import TextTable

_GROUPS = {"base": "base models", "adapter": "adapters", "real": "recordings", "files": "sound files"}


@dataclass(frozen=True)
class MatrixRow:
    """One system's answers: (share, count, whether it is the target) per label."""

    name: str
    target: str
    total: int
    cells: tuple[tuple[float, int, bool], ...]


@dataclass(frozen=True)
class Matrix(TextTable):
    """The confusion of all systems with the same judge."""

    title: str
    judge: str
    labels: tuple[str, ...]
    rows: tuple[MatrixRow, ...]

    def as_text(self) -> tuple[list[str], list[list[str]], list[str]]:
        """See `TextTable`."""
        rows = [[row.name, *(f"{100 * share:.0f}" for share, _, _ in row.cells), str(row.total)] for row in self.rows]
        return ["Heard as (%)", *self.labels, "n"], rows, []


def matrices(entries: Sequence[Entry], marks: Marks) -> Iterator[Matrix]:
    """One matrix per emotion judge, and per kind of system if there are several target emotions."""
    is_mixed = len({entry.emotion for entry in entries}) > 1
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.system["confusion"]:
            role = _GROUPS[entry.system["role"]] if is_mixed else ""
            groups.setdefault((entry.fingerprint["emotion"], role), []).append(entry)
    for (fingerprint, role), members in groups.items():
        judge = members[0].results["judges"]["emotion"]
        labels = tuple(dict.fromkeys(label for entry in members for label in entry.system["confusion"] or {}))
        mark = (marks.get("emotion") or {}).get(fingerprint, "")
        title = ", ".join(part for part in (role, f"judge {mark}" if mark else "") if part)
        yield Matrix(
            title[:1].upper() + title[1:],
            judge["id"] if judge else "",
            labels,
            tuple(_matrix_row(entry, labels) for entry in members),
        )


def _matrix_row(entry: Entry, labels: Sequence[str]) -> MatrixRow:
    counts = entry.system["confusion"] or {}
    total = sum(counts.values())
    cells = ((counts.get(label, 0) / max(1, total), counts.get(label, 0), label == entry.emotion) for label in labels)
    return MatrixRow(entry.name, entry.emotion, total, tuple(cells))
