"""Listing folders: sorted, without hidden files (macOS leaves `._name.wav` beside `name.wav`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from affetto.audio.sound import SOUND_SUFFIXES
from affetto.errors import DataError

UTF_8 = ("utf-8-sig",)
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class TextError(DataError):
    """A text isn't in UTF-8; `kind` is its `Problem`'s kind."""

    kind = "wrong-text"


def sound_files(folder: Path) -> list[Path]:
    """Sound files directly in `folder`, by name. Folders named like sound files count: checks report them."""
    return [path for path in _listed(folder) if path.suffix.lower() in SOUND_SUFFIXES]


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in `folder`, by name."""
    return [path for path in _listed(folder) if path.is_dir() and path.suffix.lower() not in SOUND_SUFFIXES]


def tree(folder: Path) -> list[Path]:
    """`folder` and all folders under it, parents first. Links to folders above them are not followed."""
    found, seen, waiting = [], set(), [folder]
    while waiting:
        place = waiting.pop(0)
        if place.resolve() not in seen:
            seen.add(place.resolve())
            found.append(place)
            waiting += subfolders(place)
    return found


def files(folder: Path) -> list[Path]:
    """Files directly in `folder`, by name."""
    return [path for path in _listed(folder) if path.is_file()]


def text_beside(path: Path) -> str | None:
    """The text in `name.txt` (or LibriTTS's `name.normalized.txt`) beside `name.wav`; None if there is neither.

    Raises TextError if it isn't UTF-8: decoded otherwise it would be another text.
    """
    for suffix in (".txt", ".normalized.txt"):
        sidecar = path.with_suffix(suffix)
        if sidecar.is_file():
            try:
                return " ".join(sidecar.read_text(encoding="utf-8-sig").split()) or None
            except UnicodeDecodeError as error:
                raise TextError(f"{sidecar}: not UTF-8 ({error}); save it as UTF-8") from error
    return None


def read_lines(path: Path, *, encodings: Sequence[str] = UTF_8) -> list[str]:
    """Lines of a text file: UTF-16 if it begins with that byte-order mark, else the first of `encodings` that decodes.

    Empty if the file is missing. Raises TextError if none decodes. Encodings other than UTF-8 are only for corpora
    published in them: they decode other corpora's bytes too, to wrong letters.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    for encoding in ("utf-16",) if content[:2] in UTF_16_MARKS else encodings:
        try:
            return content.decode(encoding).splitlines()
        except UnicodeDecodeError:
            continue
    raise TextError(f"{path}: not UTF-8; save it as UTF-8")


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: can't list the folder ({error.strerror}); mend its path or permissions") from error
