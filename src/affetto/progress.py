"""The one place where progress is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)
"""For progress and messages; results go to standard output."""


class Task:
    """A bar that can be moved on and annotated."""

    def __init__(self, advance: Callable[[int], object], note: Callable[[str], object]) -> None:
        self.advance = advance
        self.note = note


@contextmanager
def progress(title: str, total: int) -> Iterator[Task]:
    """A bar over `total` items while the block runs."""
    columns = (
        TextColumn("{task.description:<34}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, note="")
        yield Task(lambda count: bar.advance(task, count), lambda text: bar.update(task, note=text))


def say(message: str, style: str | None = None) -> None:
    """One line to the user, as it is: brackets in paths are not markup, and long lines are not broken."""
    console.print(message, style=style, highlight=False, markup=False, soft_wrap=True)
