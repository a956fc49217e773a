"""A user's own folder of sound files, with texts beside them.

Text comes from a `metadata.csv` in the file's folder or above `wavs/`, else from `name.txt` (or LibriTTS's
`name.normalized.txt`) beside `name.wav`, else it is None. Two kinds of `metadata.csv` are read:
  - with a header that has `file` (or `file_name`) and any of `text`, `emotion`, `speaker`; comma, semicolon or tab
  - LJSpeech's: `file|text`, or `file|text|normalised text`, no header
The emotion comes from that column, else from the nearest folder whose name is one (`happy/`, `Anger/`). The speaker is
"0" where no column says. Ids are the path inside the folder, joined by `-`, after the folder's name.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from affetto.audio.corpora.files import files, sound_files, text_beside, tree
from affetto.audio.hints import did_you_mean
from affetto.audio.labels import LABELS
from affetto.audio.manifest import DEFAULT_SPEAKER
from affetto.audio.sound import FOREIGN_SUFFIXES, SOUND_SUFFIXES
from affetto.types import Clip, Problem

LAYOUT = "plain folder: sound files with name.txt beside name.wav or a metadata.csv (file,text,emotion,speaker)"
_FILE_KEYS = ("file", "file_name")
_KEYS = (*_FILE_KEYS, "text", "emotion", "speaker")


@dataclass(frozen=True)
class _Row:
    """One line of a `metadata.csv`."""

    where: str
    text: str | None
    emotion: str | None
    speaker: str | None


def recognises(folder: Path) -> bool:
    """Whether there is any recording in `folder` or under it."""
    known = SOUND_SUFFIXES | FOREIGN_SUFFIXES
    return any(path.suffix.lower() in known for place in tree(folder) for path in files(place))


def read(folder: Path, emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
    """All sound files under `folder`; problems of `metadata.csv`, doubles, and recordings that can't be decoded.

    `emotions` are names that count as emotions beside those of `affetto.audio.labels`, in any case.
    """
    names = {**LABELS["folder"], **{name.casefold(): name for name in emotions}}
    rows, problems = _metadata(folder)
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
            clips[name] = _clip(name, path, folder, rows.get(path), names)
        for path in files(place):
            if path.suffix.lower() in FOREIGN_SUFFIXES:
                where = path.relative_to(folder.parent).as_posix()
                message = f"{path.suffix} can't be decoded; convert it with `ffmpeg -i {path.name} -vn OUT.wav`"
                problems.append(Problem(where, "unreadable", message))
    return list(clips.values()), problems


def _clip(name: str, path: Path, folder: Path, row: _Row | None, names: Mapping[str, str]) -> Clip:
    parents = reversed(path.relative_to(folder.parent).parts[:-1])
    emotion = next((names[part.casefold()] for part in parents if part.casefold() in names), None)
    if row is not None and row.emotion:
        emotion = names.get(row.emotion.casefold(), row.emotion)
    text = row.text if row is not None and row.text else text_beside(path)
    speaker = row.speaker if row is not None and row.speaker else DEFAULT_SPEAKER
    return Clip(name, path.absolute(), text, emotion, speaker, folder.name or "folder")


def _unused(name: str, taken: Collection[str]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _metadata(folder: Path) -> tuple[dict[Path, _Row], list[Problem]]:
    rows: dict[Path, _Row] = {}
    problems: list[Problem] = []
    for place in tree(folder):
        table = place / "metadata.csv"
        if not table.is_file():
            continue
        where = table.relative_to(folder.parent).as_posix()
        try:
            content = table.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        except UnicodeDecodeError as error:
            problems.append(Problem(where, "bad-row", f"not UTF-8 ({error}); save it as UTF-8"))
            continue
        known = _known_files(place)
        for name, row in _rows(content, where, problems):
            path = known.get(Path(name).as_posix())
            if path is None:
                message = f"no sound file {name!r} beside metadata.csv or in wavs/{did_you_mean(name, known)}"
                problems.append(Problem(row.where, "missing-file", message))
            elif path in rows:
                problems.append(Problem(row.where, "bad-row", f"{name!r} has a row already ({rows[path].where})"))
            else:
                rows[path] = row
    return rows, problems


def _known_files(place: Path) -> dict[str, Path]:
    """Sound files that a `metadata.csv` in `place` can mean, by every way of writing them."""
    known: dict[str, Path] = {}
    for inside in reversed(tree(place)):
        for path in sound_files(inside):
            relative = path.relative_to(place)
            shorts = [relative, relative.relative_to("wavs")] if relative.parts[0] == "wavs" else [relative]
            for short in shorts:
                known[short.as_posix()] = known[short.with_suffix("").as_posix()] = path
    return known


def _rows(content: str, where: str, problems: list[Problem]) -> Iterator[tuple[str, _Row]]:
    """(file as written, row) of each good line; bad ones go to `problems`."""
    first = content.split("\n", 1)[0].strip().casefold()
    for delimiter in ",;\t|":
        header = [cell.strip().strip('"') for cell in first.split(delimiter)]
        if any(key in header for key in _FILE_KEYS):
            return _headed_rows(content, delimiter, header, where, problems)
    return _piped_rows(content, where, problems)


def _piped_rows(content: str, where: str, problems: list[Problem]) -> Iterator[tuple[str, _Row]]:
    for number, line in enumerate(content.split("\n"), start=1):
        cells = line.rstrip("\r").split("|")
        if len(cells) in (2, 3) and cells[0]:
            text = next((cell for cell in reversed(cells[1:]) if cell.strip()), None)
            yield cells[0], _Row(f"{where}:{number}", text, None, None)
        elif cells != [""]:
            message = "expected `file|text`, or a header line with file,text,emotion,speaker"
            problems.append(Problem(f"{where}:{number}", "bad-row", message))


def _headed_rows(
    content: str, delimiter: str, header: list[str], where: str, problems: list[Problem]
) -> Iterator[tuple[str, _Row]]:
    for key in header:
        if key not in _KEYS:
            message = f"column {key!r} isn't read{did_you_mean(key, _KEYS)}; columns are {', '.join(_KEYS)}"
            problems.append(Problem(f"{where}:1", "bad-row", message))
    table = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        next(table)
        for cells in table:
            place = f"{where}:{table.line_num}"
            row = {key: cell.strip() or None for key, cell in zip(header, cells, strict=False)}
            name = next((row[key] for key in _FILE_KEYS if row.get(key)), None)
            if name is not None and len(cells) == len(header):
                yield name, _Row(place, row.get("text"), row.get("emotion"), row.get("speaker"))
            elif cells:
                message = f"need {len(header)} cells and a file name, got {len(cells)} cells; quote texts with commas"
                problems.append(Problem(place, "bad-row", message))
    except csv.Error as error:
        message = f"not CSV ({error}); rows from here on are not read"
        problems.append(Problem(f"{where}:{table.line_num}", "bad-row", message))
