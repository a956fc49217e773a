"""IEMOCAP (Busso et al. 2008; by request form): ten speakers in five sessions, `Session1/sentences/wav/DIALOG/UTT.wav`.

Labels are in `Session1/dialog/EmoEvaluation/DIALOG.txt`, in lines that begin with `[`: span, utterance, label, values.
Texts are in `Session1/dialog/transcriptions/DIALOG.txt` as `UTT [span]: words` (as public loaders read it, not checked
on a copy). Labels follow the four-class convention: excitement counts as happy; `xxx` means no agreement.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from affetto.audio.corpora.files import files, read_lines, sound_files, subfolders, tree
from affetto.audio.corpora.named import Said, add_clip
from affetto.types import Clip, Problem

LAYOUT = "IEMOCAP: Session1/sentences/wav/DIALOG/UTTERANCE.wav and Session1/dialog/EmoEvaluation/DIALOG.txt"
_SESSION = re.compile(r"Session\d")
_NAME = re.compile(r"Ses(?P<session>\d\d)[FM]_.+_(?P<gender>[FM])\d+")
_SAID = re.compile(r"(?P<name>Ses\d\d[FM]_\S+)\s+\[[^]]*\]:\s*(?P<text>.*)")


def recognises(folder: Path) -> bool:
    """Whether `folder` is, or has, a session's folder with evaluations."""
    return any((place / "dialog" / "EmoEvaluation").is_dir() for place in _sessions(folder))


def read(folder: Path, _emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
    """All utterances with a label; those without one, and files with other names, are reported."""
    clips: dict[str, Clip] = {}
    problems: list[Problem] = []
    for session in _sessions(folder):
        labels, texts = _labels(session / "dialog" / "EmoEvaluation"), _texts(session / "dialog" / "transcriptions")
        for path in (path for place in tree(session / "sentences" / "wav") for path in sound_files(place)):
            where = path.relative_to(folder.parent).as_posix()
            match = _NAME.fullmatch(path.stem)
            if match is None or path.stem not in labels:
                problems.append(Problem(where, "bad-row", "EmoEvaluation has no utterance of that name; left out"))
                continue
            said = Said(f"{match['session']}{match['gender']}", labels[path.stem], texts.get(path.stem))
            problem = add_clip(clips, "iemocap", path, said, where)
            problems += [problem] if problem else []
    return list(clips.values()), problems


def _sessions(folder: Path) -> list[Path]:
    if _SESSION.fullmatch(folder.name):
        return [folder]
    return [child for child in subfolders(folder) if _SESSION.fullmatch(child.name)]


def _labels(folder: Path) -> dict[str, str]:
    lines = (line.split("\t") for path in files(folder) for line in read_lines(path) if line.startswith("["))
    return {cells[1].strip(): cells[2].strip() for cells in lines if len(cells) >= 3}


def _texts(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    matches = (_SAID.fullmatch(line.strip()) for path in files(folder) for line in read_lines(path))
    return {match["name"]: match["text"] for match in matches if match}
