"""Expresso (Nguyen et al. 2023, Interspeech; CC BY-NC 4.0), its read part: `audio_48khz/read/ex04/happy/base/…`.

`read_transcriptions.txt` is `id TAB text`. The conversations (`audio_48khz/conversational`) are stereo, a speaker and a
style on each channel, minutes long, and are passed over, as is singing: so there is no anger, fear or disgust, which
only the conversations have. Recordings called `longform` are listed; most are too long to be a clip, and checks say so.
Styles keep their names where they are no emotion (`whisper`, `laughing`, …).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from affetto.audio.corpora.files import read_lines, sound_files, tree
from affetto.audio.corpora.named import Said, add_clip
from affetto.types import Clip, Problem

LAYOUT = "Expresso: audio_48khz/read/ex04/happy/base/ex04_happy_00085.wav and read_transcriptions.txt"
_NAME = re.compile(r"(?P<speaker>ex\d\d)_(?P<code>[a-z]+)(?:_[a-z]+)?_\d+(?:-\d+)?")
_PASSED_OVER = ("singing",)


def recognises(folder: Path) -> bool:
    """Whether `folder` has the transcriptions and `audio_48khz/read`."""
    return (folder / "read_transcriptions.txt").is_file() and (folder / "audio_48khz" / "read").is_dir()


def read(folder: Path, _emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
    """The read clips; files of other names are reported."""
    rows = (line.split("\t", 1) for line in read_lines(folder / "read_transcriptions.txt"))
    texts = {cells[0].strip(): cells[1].strip() for cells in rows if len(cells) == 2}
    clips: dict[str, Clip] = {}
    problems: list[Problem] = []
    for path in (path for place in tree(folder / "audio_48khz" / "read") for path in sound_files(place)):
        where = path.relative_to(folder.parent).as_posix()
        match = _NAME.fullmatch(path.stem)
        if match is None:
            problems.append(Problem(where, "bad-row", f"the name isn't {LAYOUT}; rename or move it"))
        elif match["code"] not in _PASSED_OVER:
            problem = add_clip(
                clips, "expresso", path, Said(match["speaker"], match["code"], texts.get(path.stem)), where
            )
            problems += [problem] if problem else []
    return list(clips.values()), problems
