"""The command line as a program: its arguments, and an output that takes any character and whose reader may stop."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer


def write_anything() -> None:
    """From now on standard output fails at no sign. What its encoding lacks is written as Python writes it (`\\u0394`),
    and bytes of a file's name that are no text are written as they are."""
    codecs.register_error("affetto", _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="affetto")


def tell(lines: Iterable[str]) -> None:
    """Print what a finished verb found. Where whoever reads along has read enough the rest goes nowhere."""
    try:
        typer.echo("\n".join(lines))
    except BrokenPipeError:
        # What Python flushes at its end has to go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def with_home(argument: str) -> str:
    """The argument with the home folder for `~/`, which shells leave alone in `--out=~/a.wav` and in quotes."""
    option, sign, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{sign}{Path(value).expanduser() if value.startswith('~/') else value}"


def until_unread(app: Callable[..., Any]) -> Any:
    """Run the command line and return its status; if its reader stops, the one that SIGPIPE gives other tools."""
    try:
        return app([with_home(argument) for argument in sys.argv[1:]], standalone_mode=False)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            return 128 + signal.SIGPIPE
        raise


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
