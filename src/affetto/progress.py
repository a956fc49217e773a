"""Showing progress and results, and relaying both from a process without a terminal to its parent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)
"""For progress and messages; results go to standard output (`show`)."""

Event = tuple[str, *tuple[Any, ...]]
"""("say", message, style), ("begin", title, total), ("advance", count), ("note", text) or ("end",)."""

_send: Callable[[Event], object] | None = None


class Task:
    """A progress bar that can be advanced and annotated."""

    def __init__(self, advance: Callable[[int], object], note: Callable[[str], object]) -> None:
        self.advance = advance
        self.note = note


@contextmanager
def progress(title: str, total: int) -> Iterator[Task]:
    """A progress bar over `total` items while the block runs."""
    if _send is not None:
        send = _send
        send(("begin", title, total))
        try:
            yield Task(lambda count: send(("advance", count)), lambda text: send(("note", text)))
        finally:
            send(("end",))
        return
    with _bars() as bars:
        task = bars.add_task(title, total=total, note="")
        yield Task(lambda count: bars.advance(task, count), lambda text: bars.update(task, note=text))


def say(message: str, style: str | None = None) -> None:
    """Print one line to the user as it is: brackets aren't markup, and long lines aren't broken."""
    if _send is not None:
        _send(("say", message, style))
        return
    console.print(message, style=style, highlight=False, markup=False, soft_wrap=True)


def show(result: RenderableType) -> None:
    """Print a verb's result, such as a table, on standard output."""
    Console().print(result)


def relay(send: Callable[[Event], object] | None) -> None:
    """From now on `send` gets what this process would show; None makes it show that itself again."""
    global _send
    _send = send


@contextmanager
def board() -> Iterator[Callable[[str, Event], None]]:
    """Progress bars of several processes, one for each name; the function takes (name, event) while the block runs."""
    with _bars() as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, event: Event) -> None:
            kind, *values = event
            if kind == "say":
                say(f"{name}: {values[0].removeprefix(f'{name}: ')}", values[1])
            elif kind == "begin":
                tasks[name] = bars.add_task(f"{name}: {values[0]}", total=values[1], note="")
            elif kind == "advance":
                bars.advance(tasks[name], values[0])
            elif kind == "note":
                bars.update(tasks[name], note=values[0])
            elif kind == "end":
                bars.remove_task(tasks.pop(name))

        yield show


def _bars() -> Progress:
    columns = (
        TextColumn("{task.description:<34}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    return Progress(*columns, console=console)
