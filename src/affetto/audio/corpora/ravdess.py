"""RAVDESS (Livingstone & Russo 2018, PLOS ONE 13(5): e0196391; CC BY-NC-SA 4.0), audio-only speech.

`Actor_NN/MM-VV-EE-II-SS-RR-AA.wav`: modality (03 audio only), vocal channel (01 speech, 02 song), emotion, intensity
(01 normal, 02 strong; neutral is never strong), statement, repetition, actor. Other modalities and song are skipped.

Speakers are `ravdess-NN`. Ids are `ravdess-ACTOR-EMOTION-INTENSITY-STATEMENT-REPETITION`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from affetto.audio.corpora.files import sound_files, subfolders
from affetto.audio.labels import INTENSITIES, LABELS
from affetto.audio.sound import SoundError, read_sound, sound_info
from affetto.types import Clip, Problem

LAYOUT = "RAVDESS: Actor_NN/03-01-EE-II-SS-RR-NN.wav"
STATEMENTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
_INTENSITY_NAMES = {"01": "normal", "02": "strong"}
_STATEMENT_NAMES = {"01": "kids", "02": "dogs"}
_NAME = re.compile(r"\d\d(-\d\d){6}")
_ACTOR = re.compile(r"Actor_(\d\d)")


@dataclass(frozen=True)
class _Codes:
    modality: str
    channel: str
    emotion: str
    intensity: str
    statement: str
    repetition: str
    actor: str


def recognises(folder: Path) -> bool:
    """Whether `folder`, or an `Actor_NN` folder inside it, holds a file with a RAVDESS name."""
    return any(_NAME.fullmatch(path.stem) for place in _places(folder) for path in sound_files(place))


def read(folder: Path, _emotions: Collection[str] = ()) -> tuple[list[Clip], list[Problem]]:
    """The speech clips of a RAVDESS folder, or of one actor's folder, and problems with other files.

    A file whose name gives another actor than its folder is reported. If it is a copy of another file in that folder,
    it gets that file's labels, because its own name gives an actor and words that aren't heard on it.
    """
    clips: dict[str, Clip] = {}
    problems: list[Problem] = []
    for place in _places(folder):
        for path in sound_files(place):
            where = path.relative_to(folder.parent).as_posix()
            codes = _codes(path)
            if codes is None:
                problems.append(Problem(where, "bad-row", "the name isn't RAVDESS's seven known numbers; rename it"))
                continue
            if (codes.modality, codes.channel) != ("03", "01"):
                continue
            clip = _clip(path, codes)
            if (match := _ACTOR.fullmatch(place.name)) and match[1] != codes.actor:
                clip, problem = _misplaced(path, clip, codes, where)
                problems.append(problem)
            if clip.id in clips:
                message = f"{clips[clip.id].audio.name} is already clip {clip.id!r}; remove one of the files"
                problems.append(Problem(where, "duplicate-id", message))
                continue
            clips[clip.id] = clip
    return list(clips.values()), problems


def _places(folder: Path) -> list[Path]:
    actors = [child for child in subfolders(folder) if _ACTOR.fullmatch(child.name)]
    return actors or [folder]


def _codes(path: Path) -> _Codes | None:
    if not _NAME.fullmatch(path.stem):
        return None
    codes = _Codes(*path.stem.split("-"))
    tables = (LABELS["ravdess"], _INTENSITY_NAMES, STATEMENTS)
    read = (codes.emotion, codes.intensity, codes.statement)
    return codes if all(code in table for code, table in zip(read, tables, strict=True)) else None


def _clip(path: Path, codes: _Codes) -> Clip:
    emotion, name = LABELS["ravdess"][codes.emotion], _INTENSITY_NAMES[codes.intensity]
    return Clip(
        id=f"ravdess-{codes.actor}-{emotion}-{name}-{_STATEMENT_NAMES[codes.statement]}-{int(codes.repetition)}",
        audio=path.absolute(),
        text=STATEMENTS[codes.statement],
        emotion=emotion,
        speaker=f"ravdess-{codes.actor}",
        corpus="ravdess",
        # Neutral has a single intensity, which is its full one.
        intensity=None if emotion == "neutral" else INTENSITIES["ravdess"][codes.intensity],
    )


def _misplaced(path: Path, clip: Clip, codes: _Codes, where: str) -> tuple[Clip, Problem]:
    for other in sound_files(path.parent):
        true_codes = _codes(other)
        if true_codes is not None and true_codes.actor != codes.actor and _same_sound(path, other):
            relabelled = _clip(path, true_codes)
            message = f"named for actor {codes.actor}, but a copy of {other.name}, whose labels it gets; remove it"
            return _renamed(relabelled, path), Problem(where, "mislabelled", message)
    message = f"named for actor {codes.actor} inside {path.parent.name}; kept as the name says, move it if that's right"
    return _renamed(clip, path), Problem(where, "mislabelled", message)


def _renamed(clip: Clip, path: Path) -> Clip:
    return replace(clip, id=f"{clip.id}-from-{path.parent.name}-{path.stem}")


def _same_sound(first: Path, second: Path) -> bool:
    try:
        info = sound_info(first)
        if info != sound_info(second):
            return False
        return np.array_equal(read_sound(first, info.sample_rate), read_sound(second, info.sample_rate))
    except SoundError:
        return False
