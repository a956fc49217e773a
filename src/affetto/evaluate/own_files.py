"""Which files affetto wrote, and so may write again."""

from __future__ import annotations

import re
from pathlib import Path

from affetto.errors import DataError

OWN_JSON = re.compile(rb'\s*\{\s*"schema":\s*"affetto\.results/')
OWN_CSV = re.compile(rb"system,role,intensity,file,")
OWN_LINES = re.compile(rb'\{"key": ')
"""How files that affetto wrote begin: results, their CSV twin, and lines by file (the journal, VERSA's)."""
_BEGINNING = 200


def check_own(path: Path, beginning: re.Pattern[bytes]) -> None:
    """Refuse to write over a file of somebody's (DataError): one with contents that don't begin as ours do."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(_BEGINNING)
    if start and not beginning.match(start):
        raise DataError(
            f"{path} would be written over, and affetto didn't write what it holds: move it away, or name another place"
        )
