"""The command line as a program: its arguments, and an output that takes every character and whose reader may stop."""

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
    """Make standard output accept every character. Characters that its encoding lacks are escaped (`\\u0394`), and
    undecodable bytes of a file name are written as they are."""
    codecs.register_error("affetto", _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="affetto")


def tell(lines: Iterable[str]) -> None:
    """Print a finished verb's results; if the reader has closed the pipe, the rest is dropped."""
    try:
        typer.echo("\n".join(lines))
    except BrokenPipeError:
        # Python flushes standard output at exit, so it must be open.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def with_home(argument: str) -> str:
    """The argument with the home folder for `~/`, which shells leave alone in `--out=~/a.wav` and in quotes."""
    option, sign, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{sign}{Path(value).expanduser() if value.startswith('~/') else value}"


def until_unread(app: Callable[..., Any]) -> Any:
    """Run the command line and return its status; after a closed pipe that is SIGPIPE's, as in other tools."""
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
