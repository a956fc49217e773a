"""Readers of published corpora, folders, tables and data sets; a source's contents decide which one reads it.

A source is a manifest (`*.jsonl`), a folder with a `manifest.jsonl`, one corpus's folder, a folder of corpus folders,
a plain folder of sound files, a table (`.csv`, `.tsv`, `.json`, `.jsonl`), or a Hugging Face data set
(`hf:ID_OR_PATH?audio=COLUMN&…`, see `hugging_face`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from affetto.audio.corpora import (
    emns,
    emov_db,
    esd,
    expresso,
    folder,
    hugging_face,
    iemocap,
    listed,
    ljspeech,
    meld,
    ravdess,
)
from affetto.audio.corpora.acted import CREMA_D, JL_CORPUS, SAVEE, TESS
from affetto.audio.corpora.files import sound_files, subfolders
from affetto.audio.corpora.general import LIBRITTS, VCTK
from affetto.audio.manifest import read_manifest
from affetto.errors import DataError
from affetto.files import cache_root
from affetto.types import EMOTIONS, Clip, Problem

MANIFEST = "manifest.jsonl"
_DEPTH = 3
"""How many levels down corpus folders are searched for."""


class CorpusReader(Protocol):
    """A reader of one folder layout; a module can be one."""

    @property
    def LAYOUT(self) -> str:
        """The layout in one line, for error messages."""
        ...

    def recognises(self, folder: Path, /) -> bool:
        """Whether the folder's contents have this layout."""
        ...

    def read(self, folder: Path, emotions: Collection[str], /) -> tuple[list[Clip], list[Problem]]:
        """The folder's clips, with unique ids and no splits, and problems with what couldn't be read.

        `emotions` are folder names that stand for emotions.
        """
        ...


CORPORA: dict[str, CorpusReader] = {
    "ravdess": ravdess, "crema-d": CREMA_D, "esd": esd, "emov-db": emov_db, "expresso": expresso, "iemocap": iemocap,
    "meld": meld, "tess": TESS, "savee": SAVEE, "emns": emns, "jl-corpus": JL_CORPUS, "ljspeech": ljspeech,
    "libritts": LIBRITTS, "vctk": VCTK, "folder": folder,
}  # fmt: skip
"""Tried in this order; `folder` takes what no other recognises."""
_NEEDED = (
    "Give a folder of sound files, each with its words in name.txt beside name.wav or all in a metadata.csv "
    "(file,text,emotion,speaker); a manifest or another table (.jsonl, .csv, .tsv, .json); hf:ID_OR_PATH; or a corpus "
    f"as it is published: {', '.join(name for name in CORPORA if name != 'folder')}. docs/data.md has each layout"
)
"""What can be read, for error messages."""


def load_clips(
    sources: Sequence[Path], *, emotions: Collection[str] = EMOTIONS, sounds: Path | None = None
) -> tuple[list[Clip], list[Problem]]:
    """The clips of all sources, with ids unique over all of them, and all problems.

    `emotions` are names that count as emotions when a plain folder has them. Sounds inside a data set's rows are
    written to the folder `sounds` (default: in the cache). If two sources use the same ids for different recordings,
    the later source's ids are prefixed with its folder's name. A recording that two sources list is taken from the
    first. Raises `DataError` for a source that doesn't exist or holds nothing known.
    """
    sounds = sounds or cache_root() / "sounds"
    sources = _without_names(sources)
    if not sources:
        raise DataError(f"no data given; give a folder or a manifest. {_NEEDED}")
    clips: dict[str, Clip] = {}
    problems: list[Problem] = []
    for source in sources:
        parts = list(_parts(source))
        if not parts:
            raise DataError(f"{source}: no clips found. {_NEEDED}")
        is_empty = True
        for reader, place in parts:
            new_clips, new_problems = _read(reader, place, emotions, sounds)
            is_empty = is_empty and not (new_clips or new_problems)
            name = place.absolute().parent.name if place.is_file() else place.absolute().name
            if reader == "dataset":
                name = hugging_face.parse_source(str(place)).name
            problems += new_problems + _merge(clips, new_clips, name)
        if is_empty:
            raise DataError(f"{source}: no clips found. {_NEEDED}")
    return list(clips.values()), problems


def _without_names(sources: Sequence[Path]) -> list[Path]:
    """The sources without the corpus names that may precede them (`RAVDESS FOLDER`); DataError if a name is wrong.

    A folder's contents decide how it is read; the name is only checked against them.
    """
    folders, promised = [], ""
    for source in sources:
        name = str(source).lower()
        if name in CORPORA and not source.exists():
            promised = name
            continue
        kinds = sorted({kind for kind, _ in _parts(source)}) if promised and source.exists() else []
        if kinds and promised not in kinds:
            raise DataError(
                f"{source} looks like {', '.join(kinds)} and not like {promised}: {CORPORA[promised].LAYOUT}"
            )
        folders.append(source)
        promised = ""
    return folders


def _parts(source: Path) -> list[tuple[str, Path]]:
    """What to read of a source: (reader's name, "manifest" or "loose", file or folder)."""
    if hugging_face.is_dataset(source):
        return [("dataset", source)]
    if not source.exists():
        raise DataError(f"{source}: no such file or folder. {_NEEDED}")
    if source.is_file():
        if listed.is_table(source):
            return [("table", source)]
        if source.suffix.lower() != ".jsonl":
            raise DataError(f"{source}: a file must be a manifest (.jsonl) or a table. {_NEEDED}")
        return [("manifest", source)]
    if _kind(source) == "manifest":
        return [("table" if listed.is_table(source / MANIFEST) else "manifest", source / MANIFEST)]
    if kind := _kind(source):
        return [(kind, source)]
    if _holds_corpora(source, _DEPTH):
        return [("loose", source), *(part for child in subfolders(source) for part in _parts(child))]
    return [("folder", source)] if CORPORA["folder"].recognises(source) else []


def _kind(place: Path) -> str | None:
    if (place / MANIFEST).is_file():
        return "manifest"
    return next((name for name, reader in CORPORA.items() if name != "folder" and reader.recognises(place)), None)


def _holds_corpora(place: Path, depth: int) -> bool:
    return depth > 0 and any(_kind(child) or _holds_corpora(child, depth - 1) for child in subfolders(place))


def _read(reader: str, place: Path, emotions: Collection[str], sounds: Path) -> tuple[list[Clip], list[Problem]]:
    if reader == "dataset":
        return hugging_face.read(str(place), emotions, sounds)
    if reader == "table":
        return listed.read(place, emotions, sounds)
    if reader == "loose":
        message = "is beside corpus folders and isn't read; move it into a folder of its own"
        return [], [Problem(f"{place.name}/{path.name}", "bad-row", message) for path in sound_files(place)]
    if reader != "manifest":
        return CORPORA[reader].read(place, emotions)
    clips, problems = read_manifest(place)
    folder_name = place.absolute().parent.name
    return clips, [replace(problem, where=f"{folder_name}/{problem.where}") for problem in problems]


def _merge(clips: dict[str, Clip], new_clips: Sequence[Clip], name: str) -> list[Problem]:
    """Add `new_clips` to `clips`, renamed if their ids are taken and without recordings that `clips` already has."""
    recordings = {_recording(clip): clip.id for clip in clips.values()}
    renamed = {clip.id: recordings[_recording(clip)] for clip in new_clips if _recording(clip) in recordings}
    problems = []
    fresh = []
    for clip in new_clips:
        if clip.id in renamed:
            message = f"{clip.audio} is already clip {renamed[clip.id]!r} of another source; that one is used"
            problems.append(Problem(f"{name}: {clip.id}", "duplicate-id", message))
        else:
            fresh.append(clip)
    prefix, number = "", 1
    while any(prefix + clip.id in clips for clip in fresh):
        prefix, number = (f"{name}-" if number == 1 else f"{name}-{number}-"), number + 1
    renamed |= {clip.id: prefix + clip.id for clip in fresh}
    for clip in fresh:
        context = tuple(renamed.get(turn, turn) for turn in clip.context)
        clips[renamed[clip.id]] = replace(clip, id=renamed[clip.id], context=context)
    return problems


def _recording(clip: Clip) -> tuple[Path, float | None, float | None, int | None]:
    return clip.audio, clip.start_s, clip.end_s, clip.channel
