"""ESD (Zhou et al. 2021, ICASSP; research use only by its README): ten Mandarin and ten English speakers.

`0011/Happy/0011_000701.wav`, or `0011/Happy/{train,evaluation,test}/…`; `0011/0011.txt` is `id TAB text TAB emotion`.
For some speakers the emotions there are in Chinese, so the folder's name decides. The published split is not used:
texts are the same for all speakers and emotions, and affetto's own splits keep them apart.

Not confirmed on a copy: that the published split has 300, 20 and 30 sentences of each emotion for training, evaluation
and test. Nothing here relies on it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from affetto.audio.corpora.files import UTF_8, read_lines, sound_files, subfolders, tree
from affetto.audio.corpora.named import Said, add_clip
from affetto.audio.labels import LABELS
from affetto.types import Clip, Problem

LAYOUT = "ESD: 0011/Happy/0011_000701.wav and 0011/0011.txt"
_ENCODINGS = (*UTF_8, "gb18030")
"""Encodings of the lists of texts; those of Mandarin speakers come in either, or in UTF-16."""
_SPEAKER, _NAME = re.compile(r"00\d\d"), re.compile(r"(?P<speaker>00\d\d)_\d{6}")


def recognises(folder: Path) -> bool:
    """Whether `folder` is, or has, a speaker's folder with a list of texts and a folder of an emotion."""
    return any(
        (place / f"{place.name}.txt").is_file() and any(child.name in LABELS["esd"] for child in subfolders(place))
        for place in _speakers(folder)
    )


def read(folder: Path, _emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
    """All clips of all speakers; files with other names, and folders that aren't an emotion, are reported."""
    clips: dict[str, Clip] = {}
    problems: list[Problem] = []
    for speaker in _speakers(folder):
        texts = _texts(speaker / f"{speaker.name}.txt")
        for emotion in subfolders(speaker):
            for path in (path for place in tree(emotion) for path in sound_files(place)):
                where = path.relative_to(folder.parent).as_posix()
                if _NAME.fullmatch(path.stem) is None:
                    problems.append(Problem(where, "bad-row", f"the name isn't {LAYOUT}; rename or move it"))
                    continue
                said = Said(speaker.name, emotion.name, texts.get(path.stem))
                problem = add_clip(clips, "esd", path, said, where)
                problems += [problem] if problem else []
    return list(clips.values()), problems


def _speakers(folder: Path) -> list[Path]:
    if _SPEAKER.fullmatch(folder.name):
        return [folder]
    return [child for child in subfolders(folder) if _SPEAKER.fullmatch(child.name)]


def _texts(path: Path) -> dict[str, str]:
    rows = (line.split("\t") for line in read_lines(path, encodings=_ENCODINGS))
    return {
        cells[0].strip().lstrip("\ufeff"): cells[1].strip() for cells in rows if len(cells) >= 2 and cells[1].strip()
    }
