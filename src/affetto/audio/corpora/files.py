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


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: can't list the folder ({error.strerror}); mend its path or permissions") from error
