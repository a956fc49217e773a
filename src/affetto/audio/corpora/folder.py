"""A user's own folder of sound files, with texts beside them.

Text comes from a `metadata.csv` (`.tsv`, `.jsonl`) in the file's folder or above `wavs/`, else from `name.txt` (or
LibriTTS's `name.normalized.txt`) beside `name.wav`, else it is None. Two kinds of `metadata.csv` are read:
  - with a header that has `file` (or `file_name`, `path`, …) and any of `text`, `emotion`, `speaker`, under any of the
    names in `affetto.audio.columns`, separated by comma, semicolon, bar or tab
  - LJSpeech's: `file|text`, or `file|text|normalised text`, without a header
The emotion comes from that column, else from the nearest folder named like one (`happy/`, `Anger/`). Clips without one
are general speech; a folder of them among folders of emotions is reported unless it is called `general`. The speaker is
"0" unless a column gives it. Ids are the folder's name and the path inside it, joined by `-`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from affetto.audio.columns import choose_columns, label_of, misspelt
from affetto.audio.corpora.files import TextError, files, sound_files, subfolders, text_beside, tree
from affetto.audio.corpora.rows import with_slashes
from affetto.audio.corpora.tables import delimiter_of, read_table, read_text
from affetto.audio.labels import LABELS
from affetto.audio.manifest import DEFAULT_SPEAKER
from affetto.audio.sound import FOREIGN_SUFFIXES, SOUND_SUFFIXES
from affetto.errors import DataError, counted, did_you_mean
from affetto.types import Clip, Problem

LAYOUT = "plain folder: sound files with name.txt beside name.wav or a metadata.csv (file,text,emotion,speaker)"
GENERAL = "general"
"""Name of a folder of general speech."""
_TABLES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")


@dataclass(frozen=True)
class _Row:
    """One line of a `metadata.csv`."""

    where: str
    text: str | None
    emotion: str | None
    speaker: str | None


def recognises(folder: Path) -> bool:
    """Whether there is any recording in `folder` or under it."""
    suffixes = SOUND_SUFFIXES | FOREIGN_SUFFIXES
    return any(path.suffix.lower() in suffixes for place in tree(folder) for path in files(place))


def read(folder: Path, emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
    """All sound files under `folder`; problems of `metadata.csv`, duplicates, and recordings that can't be decoded.

    Folders without a known emotion's name beside folders of emotions are `mislabelled`, and their clips general speech.
    If clips lack a text, tables with other names than `metadata.csv` are `mislabelled` too.

    `emotions` are names, in upper or lower case, that count as emotions besides those of `affetto.audio.labels`.
    """
    names = {**LABELS["folder"], **{name.casefold(): name for name in emotions}}
    rows, problems = _metadata(folder, names)
    clips: dict[str, Clip] = {}
    for place in tree(folder):
        stems: dict[str, Path] = {}
        for path in sound_files(place):
            where = path.relative_to(folder.parent).as_posix()
            if path.stem in stems:
                message = f"same name as {stems[path.stem].name}; rename it if it's another recording, else remove it"
                problems.append(Problem(where, "duplicate-id", message))
                continue
            stems[path.stem] = path
            name = _unused("-".join((folder.name, *path.relative_to(folder).with_suffix("").parts)), clips)
            try:
                clips[name] = _clip(name, path, folder, rows.get(path), names)
            except TextError as error:
                problems.append(Problem(where, error.kind, str(error)))
        for path in files(place):
            if path.suffix.lower() in FOREIGN_SUFFIXES:
                where = path.relative_to(folder.parent).as_posix()
                message = f"{path.suffix} can't be decoded; convert it with `ffmpeg -i {path.name} -vn OUT.wav`"
                problems.append(Problem(where, "unreadable", message))
    doubts = [*_unknown_folders(folder, clips.values(), names), *_unread_tables(folder, clips.values())]
    return list(clips.values()), [*problems, *doubts]


def _unread_tables(folder: Path, clips: Collection[Clip]) -> Iterator[Problem]:
    """Tables of sounds with other names than `metadata.csv`, if clips lack a text."""
    count = sum(clip.text is None for clip in clips)
    for path in (path for place in tree(folder) for path in files(place) if count):
        if path.suffix.lower() in (".csv", ".tsv") and path.name not in _TABLES and _lists_sounds(path):
            message = (
                f"this table is not read, and {counted(count, 'clip has', 'clips have')} no text: give the table "
                f"itself instead of the folder, or rename it {_TABLES[0]}"
            )
            yield Problem(path.relative_to(folder.parent).as_posix(), "mislabelled", message)


def _lists_sounds(table: Path) -> bool:
    try:
        return delimiter_of(read_text(table)) is not None
    except DataError:
        return False


def _unknown_folders(folder: Path, clips: Collection[Clip], names: Mapping[str, str]) -> Iterator[Problem]:
    """Folders of clips without an emotion that are beside folders named after one, or beside general speech."""
    counts = Counter(parent for clip in clips if clip.emotion is None for parent in clip.audio.parents)
    known = {*names, GENERAL}
    for place in tree(folder):
        inside = subfolders(place)
        unknown = [child for child in inside if child.name.casefold() not in known]
        if len(unknown) == len(inside):
            continue
        for child in unknown:
            if count := counts[child.absolute()]:
                many = f"{count} clip{'s' if count > 1 else ''}"
                message = (
                    f"{child.name!r} isn't a known emotion{did_you_mean(child.name, names)}: {many} without an emotion "
                    f"count as general speech. If they are, rename the folder {GENERAL}; if not, rename it, or add "
                    f"{child.name!r} to `emotions` in the configuration"
                )
                yield Problem(child.relative_to(folder.parent).as_posix(), "mislabelled", message)


def _clip(name: str, path: Path, folder: Path, row: _Row | None, names: Mapping[str, str]) -> Clip:
    parents = reversed(path.relative_to(folder.parent).parts[:-1])
    emotion = next((names[part.casefold()] for part in parents if part.casefold() in names), None)
    if row is not None and row.emotion:
        emotion = row.emotion
    text = row.text if row is not None and row.text else text_beside(path)
    speaker = row.speaker if row is not None and row.speaker else DEFAULT_SPEAKER
    return Clip(name, path.absolute(), text, emotion, speaker, folder.name or "folder")


def _unused(name: str, taken: Collection[str]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _metadata(folder: Path, names: Mapping[str, str]) -> tuple[dict[Path, _Row], list[Problem]]:
    rows: dict[Path, _Row] = {}
    problems: list[Problem] = []
    for table in (place / name for place in tree(folder) for name in _TABLES):
        if not table.is_file():
            continue
        where = table.relative_to(folder.parent).as_posix()
        known = _known_files(table.parent)
        try:
            listed = list(_rows(table, where, names, problems))
        except DataError as error:
            problems.append(Problem(where, "bad-row", str(error)))
            continue
        for name, row in listed:
            path = known.get(Path(name).as_posix()) or known.get(Path(with_slashes(name)).as_posix())
            if path is None:
                message = f"no sound file {name!r} beside {table.name} or in wavs/{did_you_mean(name, known)}"
                problems.append(Problem(row.where, "missing-file", message))
            elif path in rows:
                problems.append(Problem(row.where, "bad-row", f"{name!r} has a row already ({rows[path].where})"))
            else:
                rows[path] = row
    return rows, problems


def _known_files(place: Path) -> dict[str, Path]:
    """The sound files that a `metadata.csv` in `place` may name, by every way of writing their paths."""
    by_name: dict[str, Path] = {}
    for inside in reversed(tree(place)):
        for path in sound_files(inside):
            relative = path.relative_to(place)
            shorts = [relative, relative.relative_to("wavs")] if relative.parts[0] == "wavs" else [relative]
            for short in shorts:
                by_name[short.as_posix()] = by_name[short.with_suffix("").as_posix()] = path
    return by_name


def _rows(table: Path, where: str, names: Mapping[str, str], problems: list[Problem]) -> Iterator[tuple[str, _Row]]:
    """(file as written, row) of each good line; bad ones go to `problems`."""
    if table.suffix == ".csv":
        text = read_text(table)
        if delimiter_of(text) is None:
            yield from _piped_rows(text, where, problems)
            return
    content = read_table(table, where)
    columns = choose_columns(content.columns, where=where)
    problems += content.problems
    problems += [Problem(f"{where}:1", "bad-row", message) for message in misspelt(content.columns, columns)]
    for line, row in content.rows:
        place, name = f"{where}:{line}", columns.text(row, "audio")
        if name is None:
            problems.append(Problem(place, "bad-row", "the row names no file"))
            continue
        try:
            emotion = label_of(columns.value(row, "emotion"), names)
        except DataError as error:
            problems.append(Problem(place, "bad-row", str(error)))
            continue
        yield name, _Row(place, columns.text(row, "text"), emotion, columns.text(row, "speaker"))


def _piped_rows(content: str, where: str, problems: list[Problem]) -> Iterator[tuple[str, _Row]]:
    for number, line in enumerate(content.split("\n"), start=1):
        cells = line.rstrip("\r").split("|")
        if len(cells) in (2, 3) and cells[0]:
            text = next((cell for cell in reversed(cells[1:]) if cell.strip()), None)
            yield cells[0], _Row(f"{where}:{number}", text, None, None)
        elif cells != [""]:
            message = "expected `file|text`, or a header line with file,text,emotion,speaker"
            problems.append(Problem(f"{where}:{number}", "bad-row", message))
