"""Hugging Face audio data sets, on disk or by hub id: `hf:ID_OR_PATH?audio=audio&emotion=label&split=train`.

On disk three forms are read without the `datasets` package: AudioFolder (`metadata.csv` or `metadata.jsonl` with
`file_name`), Parquet shards and the output of `save_to_disk` (both with pyarrow); and single tables, whose columns can
be named here. Hub ids, and folders in any other form, are left to `datasets`. Encoded sounds are written to files as
they are, so neither torchcodec nor torchaudio is needed.

After the question mark come, joined by `&`: the columns by field (`audio`, `text`, `emotion`, `speaker`, `id`,
`start_s`, `end_s`, `duration_s`, `intensity`; with nothing after `=` the field isn't read; other columns are guessed
by name), `split` (`train`, `train+test`; default all), `config`, `revision`, `labels=neutral,happy,…` (names of
numbered emotions, if the data set has none), and `keep_splits=true`. Without the last, affetto makes new splits:
published ones often share texts and speakers.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from affetto.audio.columns import COLUMNS, Columns, choose_columns
from affetto.audio.corpora.files import files, tree
from affetto.audio.corpora.rows import SPLIT_NAMES, RowReader, sound_finder
from affetto.audio.corpora.shards import Shard, arrow_shards, hub_shards, parquet_shards, table_shards
from affetto.audio.corpora.tables import SUFFIXES
from affetto.audio.labels import LABELS
from affetto.errors import DataError, did_you_mean
from affetto.files import expanded
from affetto.types import Clip, Problem

SCHEME = "hf:"
LAYOUT = "a data set of Hugging Face: hf:ID_OR_PATH?audio=COLUMN&text=COLUMN&emotion=COLUMN&split=train"
_FIELDS = tuple(name for name in COLUMNS if name != "split")
_KEYS = (*_FIELDS, "split", "config", "revision", "labels", "keep_splits")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
_FILES = {".parquet": parquet_shards, ".arrow": arrow_shards, **dict.fromkeys(sorted(SUFFIXES), table_shards)}
"""The readers of data sets that are a single file, by its suffix."""
_SHARD_NAME = re.compile(r"(?P<split>[\w.]+)-\d+-of-\d+")


@dataclass(frozen=True)
class DatasetSource:
    """A parsed source that begins with `hf:`."""

    where: str
    """Hub id or path."""
    columns: dict[str, str] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    """Empty: all."""
    config: str | None = None
    revision: str | None = None
    labels: tuple[str, ...] = ()
    keep_splits: bool = False

    @property
    def name(self) -> str:
        """The corpus's name: the last part of the id or path."""
        return expanded(self.where).absolute().name


def is_dataset(source: Path) -> bool:
    """Whether this reader reads the source."""
    return str(source).startswith(SCHEME)


def parse_source(source: str) -> DatasetSource:
    """Read `hf:ID_OR_PATH?key=value&…`. Raises `DataError` for keys that don't exist or are given twice."""
    where, _, query = source.removeprefix(SCHEME).partition("?")
    if not where:
        raise DataError(f"{source}: name a data set: {LAYOUT}")
    values: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, sign, value = part.partition("=")
        if key not in _KEYS:
            raise DataError(f"{source}: no key {key!r}{did_you_mean(key, _KEYS)}; the keys are {', '.join(_KEYS)}")
        if not sign:
            raise DataError(f"{source}: {part!r} isn't key=value; write {key}= and its value after it")
        if key in values:
            raise DataError(f"{source}: {key} is given twice")
        values[key] = unquote(value)
    if values.get("keep_splits", "false") not in ("true", "false"):
        raise DataError(f"{source}: keep_splits is true or false, not {values['keep_splits']!r}")
    return DatasetSource(
        where=where,
        columns={key: values[key] for key in _FIELDS if key in values},
        splits=tuple(filter(None, values.get("split", "").split("+"))),
        config=values.get("config") or None,
        revision=values.get("revision") or None,
        labels=tuple(name.strip() for name in values.get("labels", "").split(",") if name.strip()),
        keep_splits=values.get("keep_splits") == "true",
    )


def read(source: str, emotions: Collection[str], sounds: Path) -> tuple[list[Clip], list[Problem]]:
    """The data set's clips, and rows that couldn't be used; sounds inside the rows are written to `sounds`.

    Ids are `NAME-SPLIT-ROW`, or `NAME-SPLIT-ID` if there is an id column; speakers are prefixed with the name. Raises
    `DataError` if there is nothing, a split or column is missing, or emotions are numbers without names;
    `MissingDependencyError` if pyarrow or `datasets` is needed and missing.
    """
    request = parse_source(source)
    shards = _shards(request)
    splits = list(dict.fromkeys(shard.split for shard in shards))
    if missing := [split for split in request.splits if split not in splits]:
        raise DataError(
            f"{source}: no split {missing[0]!r}{did_you_mean(missing[0], splits)}; there are {', '.join(splits)}"
        )
    clips: list[Clip] = []
    problems: list[Problem] = []
    counts: dict[str, int] = {}
    for shard in shards:
        if request.splits and shard.split not in request.splits:
            continue
        reader, columns = _reader(request, shard, emotions, sounds)
        for row in shard.rows([*columns.names.values()]):
            number = counts[shard.split] = counts.get(shard.split, -1) + 1
            name = f"{request.name}-{shard.split}-{columns.text(row, 'id') or f'{number:06d}'}"
            split = SPLIT_NAMES.get(shard.split) if request.keep_splits else None
            reader.add({**row, "\0id": name, "\0split": split}, f"{request.name}/{shard.split}:{number}")
        taken = {clip.id for clip in clips}
        for clip in reader.clips.values():
            if clip.id in taken:
                message = "an earlier row has this id; name another column (id=…), or none (id=)"
                problems.append(Problem(clip.id, "duplicate-id", message))
            else:
                clips.append(clip)
        problems += reader.problems
    return clips, problems


def _reader(request: DatasetSource, shard: Shard, emotions: Collection[str], sounds: Path) -> tuple[RowReader, Columns]:
    where = f"{request.name}/{shard.split}"
    wanted = {**({"audio": shard.audio} if shard.audio else {}), **request.columns}
    columns = choose_columns(shard.columns, wanted, where)
    label = columns.names.get("emotion", "")
    classes = request.labels or shard.classes.get(label, ())
    if label in shard.numbers and not classes:
        raise DataError(
            f"{where}: column {label!r} holds numbers and the data set has no names for them; give them in order, "
            "labels=neutral,happy,…, or leave the column out: emotion="
        )
    reader = RowReader(
        corpus=request.name,
        columns=Columns({**columns.names, "id": "\0id", "split": "\0split"}),
        find=sound_finder(shard.folder),
        names={**LABELS["folder"], **{name.casefold(): name for name in emotions}},
        sounds=sounds,
        classes=classes,
        speaker_prefix=f"{request.name}-",
    )
    return reader, columns


def _shards(request: DatasetSource) -> list[Shard]:
    place = expanded(request.where)
    if not place.exists():
        if request.where.startswith((".", "/", "~")) or request.where.count("/") > 1:
            raise DataError(f"there is no folder {request.where} to read a data set from")
        if place.suffix in _FILES:
            raise DataError(f"there is no file {request.where} to read a data set from; mend the path")
        return hub_shards(request.where, request.config, request.revision)
    if place.is_file():
        if place.suffix not in _FILES:
            raise DataError(f"{place}: a data set is a folder, or a file with one of {', '.join(_FILES)}")
        return _FILES[place.suffix]([(_split_of(place, place.parent), place)])
    places = [found for found in tree(place) if request.config is None or request.config in _parts(found, place)]
    inside = [path for found in places for path in files(found)]
    if saved := [path for path in inside if path.name == "state.json"]:
        return arrow_shards(
            [(_split_of(path.parent, place, "train"), shard) for path in saved for shard in _data(path)]
        )
    if listed := [path for path in inside if path.name in _METADATA]:
        return table_shards([(_split_of(path.parent, place, "train"), path) for path in listed])
    if parquet := [path for path in inside if path.suffix == ".parquet"]:
        return parquet_shards([(_split_of(path, place), path) for path in parquet])
    if request.config is not None and not inside:
        names = sorted({part for found in tree(place) for part in _parts(found, place)})
        raise DataError(f"{place}: no folder of config {request.config!r}{did_you_mean(request.config, names)}")
    return hub_shards(str(place), request.config, None)


def _data(state: Path) -> list[Path]:
    """The shards of a split that `save_to_disk` wrote, in order."""
    return [path for path in files(state.parent) if path.suffix == ".arrow"]


def _parts(path: Path, root: Path) -> tuple[str, ...]:
    return path.relative_to(root).parts


def _split_of(path: Path, root: Path, otherwise: str = "train") -> str:
    """The split named by a shard's file name, or by the nearest folder that contains it."""
    if match := _SHARD_NAME.match(path.name):
        return match["split"]
    names = (
        [path.stem if path.is_file() else path.name, *reversed(path.relative_to(root).parts[:-1])]
        if path != root
        else []
    )
    return next((name for name in names if name.casefold() in SPLIT_NAMES), otherwise)
