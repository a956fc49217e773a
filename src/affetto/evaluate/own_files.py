"""Recognising the files that affetto wrote, and so may overwrite."""

from __future__ import annotations

import re
from pathlib import Path

from affetto.errors import DataError

OWN_JSON = re.compile(rb'\s*\{\s*"schema":\s*"affetto\.results/')
OWN_CSV = re.compile(rb"system,role,intensity,file,")
OWN_LINES = re.compile(rb'\{"key": ')
"""How affetto's files begin: results, their CSV twin, and lines per file (the journal, VERSA's)."""
_BEGINNING = 200


def check_own(path: Path, beginning: re.Pattern[bytes]) -> None:
    """Refuse to overwrite a file that affetto didn't write (DataError): one that doesn't begin like ours."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(_BEGINNING)
    if start and not beginning.match(start):
        raise DataError(
            f"{path} would be overwritten, and affetto didn't write its content: move it away, or name another place"
        )
