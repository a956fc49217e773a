"""Tables as text for pasting: cells and whole tables in Markdown and LaTeX."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "Δ": r"$\Delta$", "—": "---",
}  # fmt: skip


def markdown_cell(text: str) -> str:
    """`text` as a cell of a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def latex_cell(text: str) -> str:
    """`text` as a cell of a LaTeX table."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def latex_row(cells: Sequence[str]) -> str:
    """A line of a LaTeX table."""
    return " & ".join(map(latex_cell, cells)) + r" \\"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A Markdown table with `notes`, numbered from 1, below it."""
    lines = ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in (head, *rows)]
    lines.insert(1, "| " + " | ".join(["---", *("---:" for _ in head[1:])]) + " |")
    below = [f"[{number}] {markdown_cell(note)}  " for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, "", *below]).rstrip() + "\n"


def _latex(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A LaTeX tabular (booktabs) with `notes`, numbered from 1, as comments below it."""
    lines = [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule", latex_row(head), r"\midrule"]
    below = [rf"% [{number}] {' '.join(note.split())}" for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, *map(latex_row, rows), r"\bottomrule", r"\end{tabular}", *below]) + "\n"


class TextTable(ABC):
    """A table that can be copied with a page's buttons."""

    @abstractmethod
    def as_text(self) -> tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str]]:
        """Its head, its rows, and the notes below it, numbered from 1."""

    def markdown(self) -> str:
        """The table in Markdown."""
        return _markdown(*self.as_text())

    def latex(self) -> str:
        """The table in LaTeX."""
        return _latex(*self.as_text())
