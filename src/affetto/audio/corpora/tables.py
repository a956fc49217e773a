"""Tables in common formats: CSV, TSV, JSON lines (or one JSON list), all with column names, in UTF-8."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from affetto.audio.columns import names_sound
from affetto.errors import DataError, counted
from affetto.types import Problem

SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl"})
_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Table:
    """A table's rows and what couldn't be read of it."""

    columns: Sequence[str]
    rows: Sequence[tuple[int, Mapping[str, object]]]
    """(line in the file, value by column)."""
    problems: Sequence[Problem]


def read_table(path: Path, where: str) -> Table:
    """The table in `path`; problems are at `where:LINE`.

    Raises `DataError` if the whole file can't be read.
    """
    content = read_text(path)
    if path.suffix.lower() in (".json", ".jsonl"):
        return _json_rows(content, where)
    delimiter = delimiter_of(content) or ("\t" if path.suffix.lower() == ".tsv" else ",")
    return _cell_rows(content, delimiter, where)


def read_text(path: Path) -> str:
    """A file's text without its byte-order mark. Raises `DataError` if it isn't UTF-8."""
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except OSError as error:
        raise DataError(f"{path}: can't read the table ({error.strerror}); mend the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from error


def delimiter_of(content: str) -> str | None:
    """The delimiter of a header that names sounds; None if the first line isn't such a header."""
    first = content.split("\n", 1)[0].strip()
    for delimiter in _DELIMITERS:
        if names_sound(_unquoted(cell) for cell in first.split(delimiter)):
            return delimiter
    return None


def _cell_rows(content: str, delimiter: str, where: str) -> Table:
    """Parses spreadsheet quoting; in a tab-separated table whose quotes don't close, quotes are just letters."""
    lines, error = _parse(content, delimiter, csv.QUOTE_MINIMAL)
    if error is not None and delimiter == "\t":
        lines, error = _parse(content, delimiter, csv.QUOTE_NONE)
    errors = [error] if error is not None else []
    header = [_unquoted(cell) for cell in lines[0][1]] if lines else []
    rows: list[tuple[int, Mapping[str, object]]] = []
    messages = [(line, f"not CSV ({reason}); rows from here on are not read") for line, reason in errors]
    for line, cells in lines[1:]:
        if len(cells) == len(header):
            rows.append((line, {key: cell.strip() or None for key, cell in zip(header, cells, strict=True)}))
        elif cells:
            messages.append(
                (line, f"need {counted(len(header), 'cell')}, got {len(cells)}; quote texts that contain {delimiter!r}")
            )
    return Table(header, rows, [Problem(f"{where}:{line}", "bad-row", message) for line, message in sorted(messages)])


def _parse(content: str, delimiter: str, quoting: int) -> tuple[list[tuple[int, list[str]]], tuple[int, str] | None]:
    """((line, cells) of each row, (line, reason) if the parser gave up)."""
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter=delimiter, strict=True, quoting=quoting  # type: ignore[arg-type]
    )  # fmt: skip
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend((reader.line_num, cells) for cells in reader)
    except csv.Error as error:
        return rows, (reader.line_num, str(error))
    return rows, None


def _json_rows(content: str, where: str) -> Table:
    rows: list[tuple[int, Mapping[str, object]]] = []
    problems: list[Problem] = []
    if content.lstrip().startswith("["):
        try:
            listed = list(enumerate(json.loads(content), start=1))
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}); write a list of objects, or one object a line") from error
    else:
        listed = []
        for line, words in enumerate(content.split("\n"), start=1):
            try:
                listed += [(line, json.loads(words))] if words.strip() else []
            except (ValueError, RecursionError) as error:
                problems.append(Problem(f"{where}:{line}", "bad-row", f"not JSON ({error}); write one object a line"))
    for line, row in listed:
        if isinstance(row, dict):
            rows.append((line, row))
        else:
            message = f"expected an object, got {type(row).__name__}"
            problems.append(Problem(f"{where}:{line}", "bad-row", message))
    return Table(list(dict.fromkeys(key for _, row in rows for key in row)), rows, problems)


def _unquoted(cell: str) -> str:
    return cell.strip().strip('"').strip()
