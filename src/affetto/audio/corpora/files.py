"""Listing folders: sorted, without hidden files (macOS leaves `._name.wav` beside `name.wav`)."""

from __future__ import annotations

from pathlib import Path

from affetto.audio.sound import SOUND_SUFFIXES
from affetto.errors import DataError


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
    """What `name.txt` (or LibriTTS's `name.normalized.txt`) beside `name.wav` says; None where there is neither."""
    for suffix in (".txt", ".normalized.txt"):
        sidecar = path.with_suffix(suffix)
        if sidecar.is_file():
            words = sidecar.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace").split()
            return " ".join(words) or None
    return None


def read_lines(path: Path) -> list[str]:
    """Lines of a text file in UTF-8, UTF-16 (with its mark) or GB 18030; empty if it isn't there."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    for encoding in ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "gb18030"):
        try:
            return content.decode(encoding).splitlines()
        except UnicodeDecodeError:
            continue
    raise DataError(f"{path}: not text in UTF-8, UTF-16 or GB 18030; save it as UTF-8")


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: can't list the folder ({error.strerror}); mend its path or permissions") from error
