"""Tables of recordings as sources: NeMo's JSON lines, Common Voice's TSV, a CSV with other column names.

    {"audio_filepath": "wavs/a.wav", "text": "Hello.", "duration": 1.5, "offset": 3.0, "speaker": "anna"}

Columns are recognised by name (`affetto.audio.columns`); others are ignored, except that misspelt names are reported.
Sounds are searched for from the table's folder. `offset` with `duration` is a segment of its file; `duration` alone
repeats what the file says. A column `split` counts as set by hand.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from affetto.audio.columns import COLUMNS, choose_columns, misspelt, names_sound
from affetto.audio.corpora.rows import RowReader, sound_finder
from affetto.audio.corpora.tables import SUFFIXES, read_table
from affetto.audio.labels import LABELS
from affetto.audio.manifest import KEYS
from affetto.types import Clip, Problem

_OWN = frozenset({"context", "corpus", "transcribed_by"})
LAYOUT = "a table (.csv, .tsv, .json, .jsonl) with a column for the sound: file, path, audio_filepath, …"


def is_table(path: Path) -> bool:
    """Whether `path` is a table that isn't affetto's own manifest.

    JSON lines are a manifest unless the first row names its sound and either has no `id` or uses other formats' names.
    With a key that only manifests have they are always a manifest: read as a table they would lose it.
    """
    if path.suffix.lower() != ".jsonl":
        return path.suffix.lower() in SUFFIXES
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        row = json.loads(first.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        return False
    if not isinstance(row, dict) or not names_sound(row) or not _OWN.isdisjoint(row):
        return False
    foreign = {name for names in COLUMNS.values() for name in names} - {*KEYS}
    return "id" not in row or not foreign.isdisjoint(row)


def read(path: Path, emotions: Collection[str], sounds: Path) -> tuple[list[Clip], list[Problem]]:
    """The table's clips, and problems with rows that couldn't be used. Raises `DataError` if no column is a sound.

    `emotions` are names, in upper or lower case, that count as emotions; sounds in the rows are written to `sounds`.
    """
    folder = path.absolute().parent
    where = f"{folder.name}/{path.name}"
    table = read_table(path, where)
    columns = choose_columns(table.columns, where=where)
    reader = RowReader(
        corpus=folder.name or "table",
        columns=columns,
        find=sound_finder(folder),
        names={**LABELS["folder"], **{name.casefold(): name for name in emotions}},
        sounds=sounds,
        problems=[
            *table.problems,
            *(Problem(f"{where}:1", "bad-row", message) for message in misspelt(table.columns, columns)),
        ],
    )
    for line, row in table.rows:
        reader.add(row, f"{where}:{line}")
    return list(reader.clips.values()), reader.problems
