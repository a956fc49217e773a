"""LJSpeech 1.1 (Keith Ito, public domain): `metadata.csv` beside `wavs/`, one reader, no emotion.

`metadata.csv` is `id|text|normalised text`, without a header and without quoting; the normalised text, with numbers and
abbreviations as words, is used. Ids are the corpus's own; the speaker is `LJ`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from affetto.audio.corpora.files import sound_files
from affetto.types import Clip, Problem

LAYOUT = "LJSpeech: metadata.csv and wavs/LJ001-0001.wav"
SPEAKER = "LJ"
_ID = re.compile(r"LJ\d{3}-\d{4}")


def recognises(folder: Path) -> bool:
    """Whether `folder` has `wavs/` and a `metadata.csv` whose first row has an LJSpeech id."""
    metadata = folder / "metadata.csv"
    if not (metadata.is_file() and (folder / "wavs").is_dir()):
        return False
    with metadata.open(encoding="utf-8-sig", errors="replace") as file:
        return _ID.fullmatch(file.readline().split("|")[0]) is not None


def read(folder: Path, _emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
    """The clips that `metadata.csv` lists and `wavs/` holds; rows without a file and files without a row."""
    files = {path.stem: path for path in sound_files(folder / "wavs")}
    problems: list[Problem] = []
    clips: dict[str, Clip] = {}
    content = (folder / "metadata.csv").read_bytes().removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"{folder.name}/metadata.csv:{number}"
        cells = line.decode("utf-8", errors="replace").rstrip("\r").split("|")
        if cells == [""]:
            continue
        name, text = cells[0], next((cell for cell in reversed(cells[1:]) if cell.strip()), None)
        if len(cells) not in (2, 3) or not _ID.fullmatch(name) or "\ufffd" in line.decode("utf-8", errors="replace"):
            problems.append(Problem(where, "bad-row", "expected `id|text|normalised text` in UTF-8"))
        elif name in clips:
            problems.append(Problem(where, "duplicate-id", f"{name} already has a row; keep one"))
        elif name not in files:
            problems.append(
                Problem(where, "missing-file", f"no sound file wavs/{name}.wav; copy it, or delete the row")
            )
        else:
            clips[name] = Clip(name, files[name].absolute(), text, None, SPEAKER, "ljspeech")
    for name in sorted(files.keys() - clips.keys()):
        where = f"{folder.name}/wavs/{files[name].name}"
        problems.append(Problem(where, "missing-text", "no usable row in metadata.csv; left out"))
    return list(clips.values()), problems
