"""Shards of a data set in any storage: rows, column names, and what the storage says about the columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affetto.audio.corpora.tables import read_table
from affetto.errors import DataError, MissingDependencyError, counted
from affetto.hub import cache_alone_if_unreachable

_BATCH = 64
"""Rows in memory at once: each may hold a sound."""
Row = Mapping[str, object]


@dataclass(frozen=True)
class Shard:
    """Rows of one split."""

    split: str
    columns: Sequence[str]
    rows: Callable[[Sequence[str]], Iterable[Row]]
    """Rows with the given columns; sounds stay encoded."""
    folder: Path
    """Paths of sounds are relative to this folder."""
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of a column's numbered classes."""
    numbers: frozenset[str] = frozenset()
    """Columns of integers."""
    audio: str | None = None
    """The column that the storage declares as sound."""


def table_shards(paths: Sequence[tuple[str, Path]]) -> list[Shard]:
    """Shards of AudioFolder's or other tables, (split, table) each. Raises `DataError` for unreadable rows."""
    shards = []
    for split, path in paths:
        table = read_table(path, f"{path.parent.name}/{path.name}")
        if table.problems:
            listed = "; ".join(f"{problem.where}: {problem.message}" for problem in table.problems[:5])
            raise DataError(f"{path} has {counted(len(table.problems), 'row')} that can't be read: {listed}")
        rows = [row for _, row in table.rows]
        shards.append(Shard(split, table.columns, lambda _, rows=rows: rows, path.absolute().parent))  # type: ignore[misc]
    return shards


def parquet_shards(paths: Sequence[tuple[str, Path]]) -> list[Shard]:
    """Shards of Parquet files, (split, file) each. Raises `DataError`, `MissingDependencyError`."""
    pyarrow = _pyarrow()
    from pyarrow import parquet

    shards = []
    for split, path in paths:
        try:
            schema = parquet.read_schema(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: not a Parquet file ({error}); download it again") from error

        def rows(columns: Sequence[str], path: Path = path) -> Iterator[Row]:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH, columns=list(columns)):
                    yield from batch.to_pylist()

        shards.append(_shard(split, schema, rows, path))
    return shards


def arrow_shards(paths: Sequence[tuple[str, Path]]) -> list[Shard]:
    """Shards of Arrow streams, as `save_to_disk` writes them. Raises `DataError`, `MissingDependencyError`."""
    pyarrow = _pyarrow()
    shards = []
    for split, path in paths:
        try:
            with pyarrow.memory_map(str(path)) as source:
                schema = pyarrow.ipc.open_stream(source).schema
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: not an Arrow stream ({error}); write the data set again") from error

        def rows(columns: Sequence[str], path: Path = path) -> Iterator[Row]:
            with pyarrow.memory_map(str(path)) as source:
                for batch in pyarrow.ipc.open_stream(source):
                    chosen = batch.select(list(columns))
                    for start in range(0, chosen.num_rows, _BATCH):
                        yield from chosen.slice(start, _BATCH).to_pylist()

        shards.append(_shard(split, schema, rows, path))
    return shards


def hub_shards(where: str, config: str | None, revision: str | None) -> list[Shard]:
    """Shards through the `datasets` package. Raises `DataError` for what it can't load, `MissingDependencyError`."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"{where}: hub ids, and folders that aren't AudioFolder, Parquet or save_to_disk's, need the package "
            "`datasets`: pip install datasets. A plain folder of sound files is given without hf:"
        ) from error
    # Loading a folder doesn't ask the hub.
    with nullcontext(True) if Path(where).is_dir() else cache_alone_if_unreachable() as is_online:
        try:
            loaded = datasets.load_dataset(where, config, revision=revision)
        except Exception as error:  # it raises what its loaders, fsspec and the hub's client raise
            if not is_online:
                raise DataError(
                    f"there is no folder {where}, and as a hub id it isn't in the cache and can't be fetched now: mend "
                    "the path, or check the network (HF_HUB_OFFLINE must not be set)"
                ) from error
            raise DataError(f"`datasets` can't load {where}: {type(error).__name__}: {error}") from error
    shards = []
    for split, data in loaded.items():
        for name, kind in data.features.items():
            if isinstance(kind, datasets.Audio):
                data = data.cast_column(name, datasets.Audio(decode=False))
        features = data.features

        def rows(columns: Sequence[str], data: Any = data) -> Iterator[Row]:
            yield from data.select_columns(list(columns))

        shards.append(
            Shard(
                str(split),
                list(features),
                rows,
                Path(where).absolute() if Path(where).is_dir() else Path.cwd(),
                classes={name: kind.names for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)},
                numbers=frozenset(name for name, kind in features.items() if "int" in str(getattr(kind, "dtype", ""))),
                audio=next((name for name, kind in features.items() if isinstance(kind, datasets.Audio)), None),
            )
        )
    return shards


def _shard(split: str, schema: Any, rows: Callable[[Sequence[str]], Iterable[Row]], path: Path) -> Shard:
    from pyarrow import types

    features = _features(schema)
    kinds = {name: kind.get("_type") for name, kind in features.items()}
    return Shard(
        split, list(schema.names), rows, path.absolute().parent,
        classes={name: features[name]["names"] for name, kind in kinds.items() if kind == "ClassLabel"},
        numbers=frozenset(item.name for item in schema if types.is_integer(item.type)),
        audio=next((name for name, kind in kinds.items() if kind == "Audio" and name in schema.names), None),
    )  # fmt: skip


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """The column features that `datasets` wrote into the file: {"label": {"names": […], "_type": "ClassLabel"}}."""
    try:
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = written.get("info", {}).get("features") or {}
    except (ValueError, AttributeError):
        return {}
    return {name: kind for name, kind in features.items() if isinstance(kind, dict)}


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingDependencyError(
            "Parquet and Arrow files need the package `pyarrow`: pip install pyarrow"
        ) from error
    return pyarrow
