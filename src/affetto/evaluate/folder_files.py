"""The sound files of a folder as items to be scored, with what is said and who says it."""

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
"""Recordings that can't be decoded are listed as well, so that they are counted as failed and not passed over."""
_TOLD = 5
"""Problems of a table that one message holds."""


@dataclass(frozen=True)
class Facts:
    """What a metadata row says about a file."""

    text: str | None = None
    speaker: str | None = None


def folder_items(path: Path, metadata: Path | None = None) -> list[Item]:
    """Every sound file directly in folder `path`, or the one file `path`.

    Texts come from `metadata` (see `read_metadata`; by default the folder's own metadata.csv or metadata.jsonl), else
    from a `.txt` of the same name beside the sound. Rows without a file and files without a row are told. Raises
    DataError where there is nothing to score.
    """
    sounds = find_sounds(path)
    metadata = metadata or _metadata_beside(path)
    known = read_metadata(metadata) if metadata else {}
    facts = _match(sounds, known)
    if metadata and not facts:
        num_files = counted(len(sounds), "file")
        raise DataError(f"{metadata} names none of the {num_files} in {path}; it starts with {list(known)[:3]}")
    if metadata and path.is_dir():
        _tell_unmatched(path, metadata, sounds, known, facts)
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
    """Files, and links to nothing, which then count as failed; not what macOS keeps of a file beside it (`._a.wav`)."""
    is_named = entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")
    return is_named and (entry.is_file() or (entry.is_symlink() and not entry.exists()))


def read_metadata(path: Path) -> dict[str, Facts]:
    """Texts and speakers by file name, from a table with column names that `affetto.audio.columns` knows.

    CSV or TSV with a header line (`,`, `;`, `|` or tab between cells), or JSON lines. DataError where any of it can't
    be read: half a table would leave files without their texts in silence.
    """
    table = read_table(path, str(path))
    if table.problems:
        told = "; ".join(f"{problem.where}: {problem.message}" for problem in table.problems[:_TOLD])
        raise DataError(f"can't read all of the metadata: {told}")
    if not table.columns and not table.rows:
        raise DataError(f"{path} holds no rows")
    known: dict[str, Facts] = {}
    columns = choose_columns(table.columns, where=str(path))
    if "text" not in columns and (doubts := misspelt(table.columns, columns)):
        raise DataError(f"{path} has no text, and {'; '.join(doubts)}")
    for number, row in table.rows:
        columns = choose_columns(row, where=f"{path}:{number}")  # JSON lines may have each its own names
        name = columns.text(row, "audio")
        if name is None:
            raise DataError(f"{path}:{number}: names no sound file")
        facts = Facts(columns.text(row, "text"), columns.text(row, "speaker"))
        if known.setdefault(name, facts) != facts:
            raise DataError(f"{path}:{number}: {name} was given before, with another text or speaker")
    if not known:
        raise DataError(f"{path} holds no rows")
    return known


def _match(sounds: list[Path], known: Mapping[str, Facts]) -> dict[Path, Facts]:
    """Metadata of each file that has some; its name there may have a folder before it, or no suffix."""
    by_name: dict[str, set[Facts]] = {}
    for name, facts in known.items():
        by_name.setdefault(PureWindowsPath(name).name, set()).add(facts)  # which knows both kinds of slashes
    matched = {}
    for sound in sounds:
        found = next((by_name[name] for name in _names_of(sound) if name in by_name), set())
        if len(found) > 1:
            raise DataError(f"the metadata has {len(found)} different rows for {sound.name}, in different folders")
        if found:
            matched[sound] = next(iter(found))
    return matched


def _names_of(sound: Path) -> tuple[str, str]:
    """What a row may call a file."""
    return as_text(sound.name), as_text(sound.stem)


def _tell_unmatched(
    folder: Path, metadata: Path, sounds: list[Path], known: Mapping[str, Facts], facts: Mapping[Path, Facts]
) -> None:
    there = {name for sound in sounds for name in _names_of(sound)}
    if absent := [name for name in known if PureWindowsPath(name).name not in there]:
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
