"""Standard output that takes every sign, whatever the terminal's encoding is."""

from __future__ import annotations

import codecs
import io
import sys


def write_anything() -> None:
    """From now on standard output fails at no sign. What its encoding lacks is written as Python writes it (`\\u0394`),
    and bytes of a file's name that are no text are written as they are."""
    codecs.register_error("affetto", _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="affetto")


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
