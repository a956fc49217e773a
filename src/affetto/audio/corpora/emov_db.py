"""EmoV-DB (Adigwe et al. 2018; non-commercial): four speakers, `bea_Angry/anger_1-28_0011.wav`.

The sorted copy has `bea/Angry/anger_1-28_0011.wav`. Some copies number the speakers 1 to 4; which number is whom isn't
confirmed, so they stay numbers. The last four digits are the sentence's number in CMU ARCTIC's list (`cmuarctic.data`
in the corpus's folder, as `( arctic_a0011 "…" )`); without that list the texts are unknown. The corpus's pages say that
numbers up to 593 are sentences of set A; this wasn't checked on the recordings. Laughter and yawns around the words are
part of the clips. josh has no anger and no disgust. `Amused` and `Sleepy` keep their own names: they are not happiness
and sadness.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from affetto.audio.corpora.files import read_lines, sound_files, subfolders
from affetto.audio.corpora.named import Said, add_clip
from affetto.types import Clip, Problem

LAYOUT = "EmoV-DB: bea_Angry/anger_1-28_0011.wav, or bea/Angry/…"
_FOLDER = re.compile(r"(?P<speaker>bea|jenie|josh|sam|[1-4])_(?P<code>[A-Z][a-z]+)")
_SPEAKER, _EMOTION = re.compile(r"bea|jenie|josh|sam|[1-4]"), re.compile(r"[A-Z][a-z]+")
_NAME = re.compile(r"[A-Za-z]+_\d+-\d+_(?P<number>\d{4})")
_ARCTIC = re.compile(r'\(\s*arctic_a(?P<number>\d{4})\s+"(?P<text>.*)"\s*\)')


def recognises(folder: Path) -> bool:
    """Whether `folder` has a folder of a speaker and an emotion with a file named like EmoV-DB's."""
    return any(_NAME.fullmatch(path.stem) for place, _, _ in _places(folder) for path in sound_files(place))


def read(folder: Path, _emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
    """All clips; files with other names are reported."""
    clips: dict[str, Clip] = {}
    problems: list[Problem] = []
    found = (_ARCTIC.search(line) for line in read_lines(folder / "cmuarctic.data"))
    texts = {match["number"]: match["text"] for match in found if match}
    for place, speaker, code in _places(folder):
        for path in sound_files(place):
            where = path.relative_to(folder.parent).as_posix()
            match = _NAME.fullmatch(path.stem)
            if match is None:
                problems.append(Problem(where, "bad-row", f"the name isn't {LAYOUT}; rename or move it"))
                continue
            problem = add_clip(clips, "emov-db", path, Said(speaker, code, texts.get(match["number"])), where, speaker)
            problems += [problem] if problem else []
    return list(clips.values()), problems


def _places(folder: Path) -> list[tuple[Path, str, str]]:
    """(folder of clips, speaker, emotion's code) in either layout."""
    found = []
    for child in subfolders(folder):
        if match := _FOLDER.fullmatch(child.name):
            found.append((child, match["speaker"], match["code"]))
        elif _SPEAKER.fullmatch(child.name):
            found += [(place, child.name, place.name) for place in subfolders(child) if _EMOTION.fullmatch(place.name)]
    return found
