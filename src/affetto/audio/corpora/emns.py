"""EMNS (Noriy et al. 2023; the tool is Apache-2.0, the data's licence is not confirmed): one narrator, eight styles.

`metadata.csv` is separated by `|` and has a header with `utterance`, `emotion` and `audio_recording`. The recordings
are published as WebM, which libsndfile can't read: convert them first (`ffmpeg -i 1.webm 1.wav`). Files are found by
their stem.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from affetto.audio.corpora.files import read_lines, sound_files, tree
from affetto.audio.corpora.named import Said, add_clip
from affetto.errors import counted
from affetto.types import Clip, Problem

LAYOUT = "EMNS: metadata.csv (id|…|emotion|…|utterance|…|audio_recording) and its recordings as .wav"
_COLUMNS = ("emotion", "utterance", "audio_recording")


def recognises(folder: Path) -> bool:
    """Whether `folder` has a `metadata.csv` whose `|`-separated header has those columns."""
    metadata = folder / "metadata.csv"
    if not metadata.is_file():
        return False
    with metadata.open(encoding="utf-8-sig", errors="replace") as file:
        return set(_COLUMNS) <= {cell.strip().casefold() for cell in file.readline().split("|")}


def read(folder: Path, _emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
    """The recordings that the table lists; rows without a sound file or with a wrong number of cells are reported."""
    sounds = {path.stem: path for place in tree(folder) for path in sound_files(place)}
    header, *lines = read_lines(folder / "metadata.csv")
    keys = [cell.strip().casefold() for cell in header.split("|")]
    clips: dict[str, Clip] = {}
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=2):
        where = f"{folder.name}/metadata.csv:{number}"
        cells = [cell.strip() for cell in line.split("|")]
        if cells == [""]:
            continue
        if len(cells) != len(keys):
            problems.append(Problem(where, "bad-row", f"{counted(len(cells), 'cell')} instead of {len(keys)}"))
            continue
        row = dict(zip(keys, cells, strict=True))
        stem = Path(row["audio_recording"]).stem
        if stem not in sounds:
            message = f"no sound file {stem}; convert it: ffmpeg -i {Path(row['audio_recording']).name} {stem}.wav"
            problems.append(Problem(where, "missing-file", message))
            continue
        said = Said("narrator", row["emotion"], row["utterance"] or None)
        problem = add_clip(clips, "emns", sounds[stem], said, where)
        problems += [problem] if problem else []
    return list(clips.values()), problems
