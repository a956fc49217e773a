"""Which column of somebody's table says what: sound, text, emotion, speaker, …

`COLUMNS` lists the names that NeMo's manifests, Common Voice, LJSpeech's and AudioFolder's `metadata.csv`, DeepSpeech
and data sets on the Hugging Face hub use. Names are compared without case; the first in a list wins.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from affetto.errors import DataError, did_you_mean

COLUMNS: dict[str, tuple[str, ...]] = {
    "audio": (
        "audio", "file", "file_name", "filename", "audio_filepath", "audio_file", "audio_path", "file_path", "filepath",
        "path", "wav", "wav_path", "wav_file", "wav_filename", "sound",
    ),
    "text": (
        "text", "sentence", "transcription", "transcript", "utterance", "normalized_text", "text_normalized",
        "normalised_text", "raw_text",
    ),
    "emotion": ("emotion", "label", "emotion_label", "emotion_name", "style"),
    "speaker": ("speaker", "speaker_id", "speaker_name", "spk", "spk_id", "client_id", "actor"),
    "id": ("id", "utt_id", "utterance_id", "clip_id", "key"),
    "split": ("split",),
    "intensity": ("intensity",),
    "start_s": ("start_s", "offset", "start_time"),
    "end_s": ("end_s", "end_time"),
    "duration_s": ("duration_s", "duration"),
}  # fmt: skip
"""By field. `duration_s` counts only beside a start: alone it repeats what the file says."""
_ALIKE = 0.75
"""Likeness (difflib's ratio) from which an unread column is taken for a misspelt one."""


@dataclass(frozen=True)
class Columns:
    """The column of each field; fields that no column says are absent."""

    names: Mapping[str, str]

    def __contains__(self, field: object) -> bool:
        return field in self.names

    def value(self, row: Mapping[str, object], field: str) -> object:
        """What `row` says of `field`; None where it says nothing."""
        return row.get(self.names[field]) if field in self.names else None

    def text(self, row: Mapping[str, object], field: str) -> str | None:
        """The same as words; None where there are none."""
        value = self.value(row, field)
        return None if value is None else (str(value).strip() or None)


def choose_columns(present: Iterable[str], wanted: Mapping[str, str] | None = None, where: str = "") -> Columns:
    """The columns of a table, by `wanted` (field → column; "" leaves the field out) and else by their names.

    Raises `DataError` where a wanted column isn't there, or nothing names the sound.
    """
    known = {name.casefold(): name for name in reversed(list(present))}
    chosen: dict[str, str] = {}
    unwanted = {field for field, name in (wanted or {}).items() if not name}
    for field, name in (wanted or {}).items():
        if field in unwanted:
            continue
        if name.casefold() not in known:
            told = ", ".join(sorted(known.values())) or "none"
            raise DataError(f"{where}: there is no column {name!r}{did_you_mean(name, known)}; columns are {told}")
        chosen[field] = known[name.casefold()]
    for field, names in COLUMNS.items():
        found = next((known[name] for name in names if name in known and known[name] not in chosen.values()), None)
        if field not in chosen and field not in unwanted and found is not None:
            chosen[field] = found
    if "audio" not in chosen:
        told = ", ".join(sorted(known.values())) or "none"
        raise DataError(
            f"{where}: no column names the sound; columns are {told}. One of them must be called "
            f"{', '.join(COLUMNS['audio'])}"
        )
    return Columns(chosen)


def names_sound(present: Iterable[str]) -> bool:
    """Whether one of the names is known to be of sounds."""
    return not {name.casefold() for name in present}.isdisjoint(COLUMNS["audio"])


def misspelt(present: Iterable[str], columns: Columns) -> list[str]:
    """What to say of columns that aren't read and look like a known name of a field that no column says."""
    open_names = [name for field, names in COLUMNS.items() if field not in columns for name in names]
    told = []
    for name in present:
        near = difflib.get_close_matches(name.casefold(), open_names, n=1, cutoff=_ALIKE)
        if name not in columns.names.values() and near:
            told.append(f"column {name!r} isn't read (did you mean {near[0]!r}?)")
    return told


def label_of(value: object, names: Mapping[str, str], classes: Collection[str] = ()) -> str | None:
    """An emotion as affetto writes it: a class's number becomes its name, and known words (`names`) affetto's.

    None where there is no label (empty, or -1, which stands for none in numbered classes). Raises `DataError` for a
    number that no class has.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    word = str(value).strip()
    if isinstance(value, bool) or word.lstrip("-").isdecimal():
        number, listed = int(value) if isinstance(value, bool) else int(word), list(classes)
        if number == -1 and listed:
            return None
        if not 0 <= number < len(listed):
            told = f"classes are {', '.join(listed)}" if listed else "numbers need names: labels=neutral,happy,…"
            raise DataError(f"emotion {word} is a number without a name; {told}")
        word = listed[number]
    return names.get(word.casefold(), word)
