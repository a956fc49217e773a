"""Table rows to clips: the sound is a path, or is in the row itself and is written to a file as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from affetto.audio.columns import Columns, label_of
from affetto.audio.corpora.files import sound_files, tree
from affetto.audio.manifest import DEFAULT_SPEAKER
from affetto.audio.sound import write_sound
from affetto.errors import ConfigError, DataError, did_you_mean
from affetto.files import expanded, hash_bytes, write_atomically
from affetto.types import Clip, Problem

SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "development": "validation", "test": "test", "testing": "test",
}  # fmt: skip
"""`eval` and `evaluation` are left out: they mean validation to some and test to others."""
_MAGIC = (
    (b"RIFF", ".wav"), (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"), (b"FORM", ".aiff"), (b"caff", ".caf"),
)  # fmt: skip


@dataclass
class RowReader:
    """Turns rows into clips one by one, and collects their problems."""

    corpus: str
    columns: Columns
    find: Callable[[str], Path | None]
    """Finds the sound file for a path as written in the table."""
    names: Mapping[str, str]
    """affetto's emotions by the words for them, in lower case."""
    sounds: Path
    """The folder for sounds that are inside the rows."""
    classes: Sequence[str] = ()
    """Names of numbered emotions."""
    speaker_prefix: str = ""
    clips: dict[str, Clip] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, row: Mapping[str, object], where: str, name: str | None = None) -> None:
        """Read a row. Without an id column the clip's id is `name`; None makes it from the sound's path."""
        try:
            audio, written = self._sound(row)
            start_s, end_s = self._segment(row)
            emotion = label_of(self.columns.value(row, "emotion"), self.names, self.classes)
            clip = Clip(
                id=self.columns.text(row, "id") or name or self._name(written, start_s),
                audio=audio,
                text=self.columns.text(row, "text"),
                emotion=emotion,
                speaker=self._speaker(row),
                corpus=self.corpus,
                split=self._split(row),
                start_s=start_s,
                end_s=end_s,
                intensity=self._intensity(row) if emotion else None,
            )
        except FileNotFoundError as error:
            self.problems.append(Problem(where, "missing-file", str(error)))
        except DataError as error:
            self.problems.append(Problem(where, "bad-row", str(error)))
        else:
            if clip.id in self.clips:
                self.problems.append(Problem(where, "duplicate-id", f"{clip.id!r} already has a row; keep one"))
            else:
                self.clips[clip.id] = clip

    def _sound(self, row: Mapping[str, object]) -> tuple[Path, str]:
        """(sound file, path as written in the row)."""
        value: Any = self.columns.value(row, "audio")
        if isinstance(value, bytes):
            value = {"bytes": value}
        if isinstance(value, Mapping):
            if value.get("bytes"):
                return self._written(value["bytes"], str(value.get("path") or "")), str(value.get("path") or "")
            if value.get("array") is not None and value.get("sampling_rate"):
                return self._rendered(value["array"], int(value["sampling_rate"])), str(value.get("path") or "")
            value = value.get("path")
        if not value or not isinstance(value, str):
            raise DataError(f"{self.columns.names['audio']!r} holds no sound: no path and no bytes")
        path = self.find(value)
        if path is None and "\\" in value:
            value = with_slashes(value)
            path = self.find(value)
        if path is None:
            raise FileNotFoundError(f"no sound file {value!r} near the table; mend the path, or delete the row")
        return path, value

    def _written(self, content: bytes, path: str) -> Path:
        suffix = next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), None)
        if suffix is None:
            suffix = ".mp3" if content[:1] == b"\xff" and content[1:2] >= b"\xe0" else Path(path).suffix or ".wav"
        target = self.sounds / f"{hash_bytes(content)[:24]}{suffix}"
        if not target.is_file():
            write_atomically(target, lambda out: out.write_bytes(content))
        return target.absolute()

    def _rendered(self, array: object, sample_rate: int) -> Path:
        samples = np.asarray(array, dtype=np.float32)
        name = hash_bytes(samples.tobytes(), str(sample_rate).encode())[:24]
        target = self.sounds / f"{name}.wav"
        if not target.is_file():
            write_sound(target, samples, sample_rate)
        return target.absolute()

    def _segment(self, row: Mapping[str, object]) -> tuple[float | None, float | None]:
        start_s, end_s, duration_s = (self._number(row, name, "seconds") for name in ("start_s", "end_s", "duration_s"))
        if start_s is not None and end_s is None and duration_s is not None:
            end_s = start_s + duration_s
        if (start_s or 0.0) < 0 or (end_s is not None and end_s <= (start_s or 0.0)):
            raise DataError(f"segment from {start_s} s to {end_s} s is empty; mend its times")
        return start_s, end_s

    def _intensity(self, row: Mapping[str, object]) -> float | None:
        value = self._number(row, "intensity", "above 0 and up to 1")
        if value is not None and not 0.0 < value <= 1.0:
            raise DataError(
                f"{self.columns.names['intensity']!r} must be above 0 and up to 1 (as strong as it is acted), got "
                f"{value:g}; scale it, or rename the column so that it isn't read"
            )
        return value

    def _number(self, row: Mapping[str, object], name: str, what: str) -> float | None:
        text = self.columns.text(row, name)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{self.columns.names[name]!r} must be {what}, got {text!r}")
        return value

    def _speaker(self, row: Mapping[str, object]) -> str:
        text = self.columns.text(row, "speaker")
        return DEFAULT_SPEAKER if text is None else f"{self.speaker_prefix}{text}"

    def _split(self, row: Mapping[str, object]) -> str | None:
        text = self.columns.text(row, "split")
        if text is None:
            return None
        if text.casefold() not in SPLIT_NAMES:
            raise DataError(
                f"split {text!r} isn't known{did_you_mean(text, SPLIT_NAMES)}; write {', '.join(SPLIT_NAMES)}"
            )
        return SPLIT_NAMES[text.casefold()]

    def _name(self, written: str, start_s: float | None) -> str:
        parts = [part for part in Path(written).with_suffix("").parts if part not in ("/", "..", ".")]
        if not parts:
            raise DataError("the row has neither an id nor a path to make one from; add a column `id`")
        segment = "" if start_s is None else f"-{start_s:.2f}"
        return "-".join((self.corpus, *parts[-3:])) + segment


def with_slashes(written: str) -> str:
    """A Windows path, `wavs\\a.wav`, with the slashes of all other systems."""
    return written.replace("\\", "/")


def sound_finder(folder: Path) -> Callable[[str], Path | None]:
    """A function from a path as written in a table in `folder` to the sound file that it means.

    That is the path itself, from `folder`; else the one sound file under `folder` whose path ends with it, with or
    without suffix (Common Voice's files are in `clips/`, LJSpeech's in `wavs/`). None if there is none, or several.
    """
    by_name: dict[str, list[Path]] | None = None

    def find(written: str) -> Path | None:
        nonlocal by_name
        try:
            path = expanded(written)
        except ConfigError:  # a file's own name may begin with ~
            path = Path(written)
        direct = path if path.is_absolute() else folder / path
        if direct.is_file():
            return direct.absolute()
        if path.is_absolute():
            return None
        if by_name is None:
            by_name = {}
            for sound in (sound for place in tree(folder) for sound in sound_files(place)):
                for key in {sound.name, sound.stem}:
                    by_name.setdefault(key, []).append(sound)
        wanted = [part for part in path.parts if part not in (".", "..")]
        matches = [
            sound
            for sound in by_name.get(path.name, [])
            if [*sound.parts[-len(wanted) : -1]] == wanted[:-1] and wanted[-1] in (sound.name, sound.stem)
        ]
        return matches[0].absolute() if len(matches) == 1 else None

    return find
