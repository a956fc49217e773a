"""Manifests: JSON lines, one clip a line, paths relative to the manifest's folder.

    {"id": "a-1", "audio": "wavs/a-1.wav", "text": "Hello.", "emotion": "happy", "speaker": "0", "corpus": "mine",
     "split": "train", "start_s": 0.5, "end_s": 2.25, "context": ["a-0"],
     "transcribed_by": "openai/whisper-base.en@911407f"}

Only `id` and `audio` are required. Without `text` a clip can be scored but not trained on; `transcribed_by` marks a
text that a model wrote (`affetto data transcribe`); `channel`, counted from 1, picks the speaker's channel of a file
with one per speaker; `intensity`, above 0 and up to 1, says how strongly the emotion is acted; without `emotion` the
clip is general speech. Defaults: `intensity` 1, `speaker` "0" (CSM's first speaker number), `corpus` the manifest's
folder name; `split` is left to `affetto.audio.splits`. null means absent.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from affetto.errors import DataError, counted, did_you_mean
from affetto.files import write_text
from affetto.types import SPLITS, Clip, Problem

KEYS = (
    "id", "audio", "text", "emotion", "speaker", "corpus", "split", "start_s", "end_s", "context", "transcribed_by",
    "channel", "intensity",
)  # fmt: skip
DEFAULT_SPEAKER = "0"
_REQUIRED = ("id", "audio")
_STRINGS = ("id", "audio", "text", "emotion", "speaker", "corpus", "split", "transcribed_by")
_TIMES = ("start_s", "end_s")
_OPTIONAL = (*_TIMES, "transcribed_by", "channel", "intensity")
"""Keys that are written only if they have a value."""


def read_manifest(path: Path) -> tuple[list[Clip], list[Problem]]:
    """The good clips in file order, and every problem of every bad row (`where` is `manifest.jsonl:LINE`).

    A row is left out if anything about it is wrong, or if one of its context turns is left out.
    Raises `DataError` if the manifest itself can't be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't read the manifest ({error.strerror}); mend the path") from error
    clips: dict[str, Clip] = {}
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        row, row_problems = _parse(line, where)
        if row is None:
            problems += row_problems
            continue
        row_problems += _row_problems(row, where)
        name = row.get("id")
        if isinstance(name, str) and name in lines:
            message = f"id {name!r} is already used in line {lines[name]}; give each clip its own id"
            row_problems.append(Problem(where, "duplicate-id", message))
        elif isinstance(name, str):
            lines[name] = number
        if row_problems:
            problems += row_problems
        else:
            clips[row["id"]] = _clip(row, path)
    for name, message in broken_context(clips).items():
        problems.append(Problem(f"{path.name}:{lines[name]}", "bad-context", message))
        del clips[name]
    return list(clips.values()), sorted(problems, key=lambda problem: int(problem.where.rpartition(":")[2]))


def write_manifest(path: Path, clips: Sequence[Clip]) -> None:
    """Write clips atomically, so that `read_manifest` returns the same clips.

    Paths become relative to the manifest's folder. Raises `DataError` for clips that couldn't be read back.
    """
    by_id: dict[str, Clip] = {}
    problems = []
    for clip in clips:
        if clip.id in by_id:
            problems.append(Problem(clip.id, "duplicate-id", "two clips share this id"))
        by_id[clip.id] = clip
        problems += _row_problems(_row(clip, path), clip.id)
    problems += [Problem(name, "bad-context", message) for name, message in broken_context(by_id).items()]
    if problems:
        listed = "; ".join(f"{problem.where}: {problem.message}" for problem in problems[:10])
        raise DataError(f"{path}: not written, {counted(len(problems), 'problem')}: {listed}")
    write_text(path, "".join(_line(_row(clip, path)) + "\n" for clip in clips))


def broken_context(clips: Mapping[str, Clip], bad: Collection[str] = ()) -> dict[str, str]:
    """The ids in `clips` that can't be used because of their context, each with the reason.

    A context turn must be another clip of the same corpus, not itself broken or among the `bad` ids.
    """
    broken: dict[str, str] = {}
    while True:
        unusable = {*bad, *broken}
        new = {
            name: message
            for name, clip in clips.items()
            if name not in unusable and (message := _context_message(clip, clips, unusable))
        }
        if not new:
            return broken
        broken |= new


def _context_message(clip: Clip, clips: Mapping[str, Clip], unusable: Collection[str]) -> str | None:
    for turn in clip.context:
        if turn == clip.id:
            return f"clip {clip.id!r} names itself as context; name earlier turns"
        if turn not in clips:
            return f"context turn {turn!r} doesn't exist or is itself bad{did_you_mean(turn, clips)}"
        if turn in unusable:
            return f"context turn {turn!r} has problems of its own; mend it first"
        if clips[turn].corpus != clip.corpus:
            theirs, own = clips[turn].corpus, clip.corpus
            return f"context turn {turn!r} is from corpus {theirs!r}, the clip from {own!r}; name turns of its corpus"
        if clip.id in clips[turn].context:
            return f"{clip.id!r} and {turn!r} name each other as context; only earlier turns are context"
    if len(set(clip.context)) < len(clip.context):
        return f"context {list(clip.context)} names a turn twice"
    return None


def _parse(line: bytes, where: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return dict(pairs)

    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=collect)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return None, [Problem(where, "bad-row", f"not JSON in UTF-8 ({error}); write one object a line")]
    if not isinstance(row, dict):
        return None, [Problem(where, "bad-row", f"expected an object, got {type(row).__name__}")]
    return row, [Problem(where, "bad-row", f"key {key!r} occurs twice; keep one") for key in repeated]


def _row_problems(row: Mapping[str, Any], where: str) -> list[Problem]:
    messages = [f"unknown key {key!r}{did_you_mean(key, KEYS)}" for key in row if key not in KEYS]
    messages += [f"{key!r} is missing; every clip needs it" for key in _REQUIRED if row.get(key) in (None, "")]
    for key in _STRINGS:
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            messages.append(f"{key!r} must be a string, got {value!r}")
        elif value is not None and "\0" in value:
            messages.append(f"{key!r} contains a NUL character")
        elif value == "" and key in ("speaker", "corpus", "emotion", "transcribed_by"):
            messages.append(f"{key!r} is an empty string; leave the key out or give a name")
    if row.get("transcribed_by") and not row.get("text"):
        messages.append("'transcribed_by' names who wrote the text, but there is none; give both, or neither")
    split, context, channel = row.get("split"), row.get("context"), row.get("channel")
    if channel is not None and (type(channel) is not int or channel < 1):
        messages.append(f"'channel' must be a whole number from 1, got {channel!r}")
    messages += _intensity_problems(row)
    if isinstance(split, str) and split not in SPLITS:
        messages.append(f"unknown split {split!r}{did_you_mean(split, SPLITS)}; splits are {', '.join(SPLITS)}")
    if context is not None and not (isinstance(context, list) and all(isinstance(turn, str) for turn in context)):
        messages.append(f"'context' must be a list of clip ids, got {context!r}")
    return [Problem(where, "bad-row", message) for message in messages] + _segment_problems(row, where)


def _intensity_problems(row: Mapping[str, Any]) -> list[str]:
    intensity = row.get("intensity")
    if intensity is None:
        return []
    if type(intensity) not in (int, float) or not 0.0 < intensity <= 1.0:
        return [f"'intensity' must be above 0 and up to 1 (as strong as it is acted), got {intensity!r}"]
    if row.get("emotion") is None:
        return ["'intensity' needs an emotion, and the row has none; add it, or leave the intensity out"]
    return []


def _segment_problems(row: Mapping[str, Any], where: str) -> list[Problem]:
    times = {key: row[key] for key in _TIMES if row.get(key) is not None}
    wrong = {key: value for key, value in times.items() if type(value) not in (int, float)}
    if wrong:
        return [Problem(where, "bad-row", f"{key!r} must be seconds, got {value!r}") for key, value in wrong.items()]
    start_s, end_s = times.get("start_s", 0.0), times.get("end_s")
    if start_s < 0 or not math.isfinite(start_s) or (end_s is not None and not start_s < end_s < math.inf):
        message = f"segment from {start_s} s to {end_s} s is empty or not finite; need 0 <= start_s < end_s"
        return [Problem(where, "bad-segment", message)]
    return []


def _clip(row: Mapping[str, Any], path: Path) -> Clip:
    folder = path.absolute().parent
    return Clip(
        id=row["id"],
        audio=Path(os.path.abspath(folder / row["audio"])),  # noqa: PTH100 -- symlinks stay as written
        text=row.get("text"),
        emotion=row.get("emotion"),
        speaker=row.get("speaker") or DEFAULT_SPEAKER,
        corpus=row.get("corpus") or folder.name or "corpus",
        split=row.get("split"),
        start_s=_number(row.get("start_s")),
        end_s=_number(row.get("end_s")),
        context=tuple(row.get("context") or ()),
        transcribed_by=row.get("transcribed_by"),
        channel=row.get("channel"),
        intensity=_number(row.get("intensity")),
    )


def _row(clip: Clip, path: Path) -> dict[str, Any]:
    audio = os.path.relpath(clip.audio, path.absolute().parent)
    row: dict[str, Any] = {"id": clip.id, "audio": Path(audio).as_posix()}
    row |= {key: getattr(clip, key) for key in ("text", "emotion", "speaker", "corpus", "split")}
    row |= {key: getattr(clip, key) for key in _OPTIONAL if getattr(clip, key) is not None}
    return row | ({"context": list(clip.context)} if clip.context else {})


def _line(row: Mapping[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # a file name that isn't UTF-8
        return json.dumps(row, allow_nan=False)
    return line


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
