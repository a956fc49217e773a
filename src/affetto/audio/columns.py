"""Which column of a table holds what: sound, text, emotion, speaker, …

`COLUMNS` lists the names that NeMo's manifests, Common Voice, LJSpeech's and AudioFolder's `metadata.csv`, DeepSpeech
and data sets on the Hugging Face hub use. Case doesn't matter; the first name in a list wins.
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
"""Column names by field. `duration_s` counts only together with a start: alone it repeats what the file says."""
_ALIKE = 0.75
"""difflib's ratio from which an unread column counts as a misspelt name."""


@dataclass(frozen=True)
class Columns:
    """The column of each field; fields without a column are absent."""

    names: Mapping[str, str]

    def __contains__(self, field: object) -> bool:
        return field in self.names

    def value(self, row: Mapping[str, object], field: str) -> object:
        """The value of `field` in `row`; None if it has none."""
        return row.get(self.names[field]) if field in self.names else None

    def text(self, row: Mapping[str, object], field: str) -> str | None:
        """The same as stripped text; None if it is empty."""
        value = self.value(row, field)
        return None if value is None else (str(value).strip() or None)


def choose_columns(present: Iterable[str], wanted: Mapping[str, str] | None = None, where: str = "") -> Columns:
    """The columns of a table: those in `wanted` (field → column; "" leaves the field out), the others by their names.

    Raises `DataError` if a wanted column is missing, or no column names the sound.
    """
    by_casefold = {name.casefold(): name for name in reversed(list(present))}
    chosen: dict[str, str] = {}
    unwanted = {field for field, name in (wanted or {}).items() if not name}
    for field, name in (wanted or {}).items():
        if field in unwanted:
            continue
        if name.casefold() not in by_casefold:
            listed = ", ".join(sorted(by_casefold.values())) or "none"
            hint = did_you_mean(name, by_casefold)
            raise DataError(f"{where}: there is no column {name!r}{hint}; columns are {listed}")
        chosen[field] = by_casefold[name.casefold()]
    for field, names in COLUMNS.items():
        columns = (by_casefold[name] for name in names if name in by_casefold)
        column = next((column for column in columns if column not in chosen.values()), None)
        if field not in chosen and field not in unwanted and column is not None:
            chosen[field] = column
    if "audio" not in chosen:
        listed = ", ".join(sorted(by_casefold.values())) or "none"
        raise DataError(
            f"{where}: no column names the sound; columns are {listed}. One of them must be called "
            f"{', '.join(COLUMNS['audio'])}"
        )
    return Columns(chosen)


def names_sound(present: Iterable[str]) -> bool:
    """Whether one of the names is a known name of the sound's column."""
    return not {name.casefold() for name in present}.isdisjoint(COLUMNS["audio"])


def misspelt(present: Iterable[str], columns: Columns) -> list[str]:
    """A message for each unread column that looks like a misspelt name of a field without a column."""
    open_names = [name for field, names in COLUMNS.items() if field not in columns for name in names]
    messages = []
    for name in present:
        near = difflib.get_close_matches(name.casefold(), open_names, n=1, cutoff=_ALIKE)
        if name not in columns.names.values() and near:
            messages.append(f"column {name!r} isn't read (did you mean {near[0]!r}?)")
    return messages


def label_of(value: object, names: Mapping[str, str], classes: Collection[str] = ()) -> str | None:
    """An emotion as affetto writes it: a class number becomes the class's name, a word in `names` affetto's name.

    None if there is no label (empty, or -1 among numbered classes). Raises `DataError` for a number without a class.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    word = str(value).strip()
    if isinstance(value, bool) or word.lstrip("-").isdecimal():
        number, listed = int(value) if isinstance(value, bool) else int(word), list(classes)
        if number == -1 and listed:
            return None
        if not 0 <= number < len(listed):
            hint = f"classes are {', '.join(listed)}" if listed else "numbers need names: labels=neutral,happy,…"
            raise DataError(f"emotion {word} is a number without a name; {hint}")
        word = listed[number]
    return names.get(word.casefold(), word)
