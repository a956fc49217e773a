"""The sound files of a folder as items to be scored, with their texts and speakers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from affetto.audio.columns import choose_columns, misspelt
from affetto.audio.corpora.tables import read_table
from affetto.audio.sound import FOREIGN_SUFFIXES, SOUND_SUFFIXES
from affetto.errors import DataError, counted, listed
from affetto.evaluate.scoring import Item
from affetto.files import as_text
from affetto.progress import say

SUFFIXES = SOUND_SUFFIXES | FOREIGN_SUFFIXES
"""Including formats that can't be decoded, so that they are counted as failed and not skipped."""
_SHOWN = 5
"""How many of a table's problems one message lists."""


@dataclass(frozen=True)
class Facts:
    """What a metadata row says about a file."""

    text: str | None = None
    speaker: str | None = None


def folder_items(path: Path, metadata: Path | None = None) -> list[Item]:
    """Every sound file directly in folder `path`, or the one file `path`.

    Texts come from `metadata` (see `read_metadata`; by default the folder's own metadata.csv or metadata.jsonl), else
    from a `.txt` of the same name beside the sound. Rows without a file and files without a row are printed. Raises
    DataError if there is nothing to score.
    """
    sounds = find_sounds(path)
    metadata = metadata or _metadata_beside(path)
    table = read_metadata(metadata) if metadata else {}
    facts = _match(sounds, table)
    if metadata and not facts:
        num_files = counted(len(sounds), "file")
        raise DataError(f"{metadata} names none of the {num_files} in {path}; it starts with {list(table)[:3]}")
    if metadata and path.is_dir():
        _report_unmatched(path, metadata, sounds, table, facts)
    return [_item(sound, facts.get(sound, Facts())) for sound in sounds]


def _metadata_beside(path: Path) -> Path | None:
    candidates = [path / f"metadata{suffix}" for suffix in (".csv", ".jsonl")] if path.is_dir() else []
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def find_sounds(path: Path) -> list[Path]:
    """Sound files directly in a folder, by name, or the one file itself."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"there is no folder or file {path}")
    sounds = sorted(entry for entry in path.iterdir() if _is_sound(entry))
    if not sounds:
        below = sorted({str(entry.parent) for entry in path.rglob("*") if entry.suffix.lower() in SUFFIXES})
        hint = f"; there are some in {', '.join(below[:3])}" if below else ""
        raise DataError(f"{path} holds no sound files ({', '.join(sorted(SUFFIXES))}){hint}")
    return sounds


def _is_sound(entry: Path) -> bool:
    """Files, and broken links, which then count as failed; but not macOS's metadata files (`._a.wav`)."""
    is_named = entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")
    return is_named and (entry.is_file() or (entry.is_symlink() and not entry.exists()))


def read_metadata(path: Path) -> dict[str, Facts]:
    """Texts and speakers by file name, from a table with column names that `affetto.audio.columns` knows.

    CSV or TSV with a header line (`,`, `;`, `|` or tab between cells), or JSON lines. DataError if any of it can't be
    read, since half a table would silently leave files without texts.
    """
    table = read_table(path, str(path))
    if table.problems:
        problems = "; ".join(f"{problem.where}: {problem.message}" for problem in table.problems[:_SHOWN])
        raise DataError(f"can't read all of the metadata: {problems}")
    if not table.columns and not table.rows:
        raise DataError(f"{path} holds no rows")
    by_name: dict[str, Facts] = {}
    columns = choose_columns(table.columns, where=str(path))
    if "text" not in columns and (doubts := misspelt(table.columns, columns)):
        raise DataError(f"{path} has no text, and {'; '.join(doubts)}")
    for number, row in table.rows:
        columns = choose_columns(row, where=f"{path}:{number}")  # each JSON line may have its own keys
        name = columns.text(row, "audio")
        if name is None:
            raise DataError(f"{path}:{number}: names no sound file")
        facts = Facts(columns.text(row, "text"), columns.text(row, "speaker"))
        if by_name.setdefault(name, facts) != facts:
            raise DataError(f"{path}:{number}: {name} was given before, with another text or speaker")
    if not by_name:
        raise DataError(f"{path} holds no rows")
    return by_name


def _match(sounds: list[Path], table: Mapping[str, Facts]) -> dict[Path, Facts]:
    """The metadata of each file that has some; a name in `table` may include a folder, or lack the suffix."""
    by_name: dict[str, set[Facts]] = {}
    for name, facts in table.items():
        by_name.setdefault(PureWindowsPath(name).name, set()).add(facts)  # splits at both kinds of slashes
    matched = {}
    for sound in sounds:
        candidates = next((by_name[name] for name in _names_of(sound) if name in by_name), set())
        if len(candidates) > 1:
            raise DataError(f"the metadata has {len(candidates)} different rows for {sound.name}, in different folders")
        if candidates:
            matched[sound] = next(iter(candidates))
    return matched


def _names_of(sound: Path) -> tuple[str, str]:
    """The names by which a row may refer to a file."""
    return as_text(sound.name), as_text(sound.stem)


def _report_unmatched(
    folder: Path, metadata: Path, sounds: list[Path], table: Mapping[str, Facts], facts: Mapping[Path, Facts]
) -> None:
    names = {name for sound in sounds for name in _names_of(sound)}
    if absent := [name for name in table if PureWindowsPath(name).name not in names]:
        say(f"{metadata} names {counted(len(absent), 'file')} that {folder} lacks: {listed(absent)}", style="yellow")
    if bare := [as_text(sound.name) for sound in sounds if sound not in facts]:
        say(f"{metadata} has no row for {counted(len(bare), 'file')} of {folder}: {listed(bare)}", style="yellow")


def _item(sound: Path, facts: Facts) -> Item:
    name = as_text(sound.name)
    try:
        text = facts.text if facts.text is not None else _text_beside(sound)
    except DataError as error:
        return Item(name, sound, speaker=facts.speaker, error=as_text(str(error)))
    return Item(name, sound, text=text, speaker=facts.speaker)


def _text_beside(sound: Path) -> str | None:
    path = sound.with_suffix(".txt")
    if not path.is_file():
        return None
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split()) or None
    except UnicodeDecodeError as error:
        raise DataError(f"unreadable text: {path.name} is not UTF-8: {error}") from error
