"""Scoring that can be interrupted: rows are written batch by batch, and a later run reuses those that are still valid.

A row is valid as long as everything that it was made from is the same: the file's bytes, its text, speaker, prompt and
seed, the target emotion, the judges (ids with hashes), the device and the number of processors, the versions of affetto
and its libraries, and the source code that measures and judges. The hash of these is the row's key. A judge's answer
may differ in the last digit with the sounds that share its batch, so batches are cut by content, never by order or
number: a batch ends after a key of a certain form. A new file then changes its own batch only, and a batch is reused
whole or not at all, so that a resumed run writes the same bytes as an uninterrupted one.

Rows of sounds that no training changes (the base's speech, recordings) can also be stored in affetto's cache, for all
later evaluations by the same judges on the same machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from affetto.errors import DataError
from affetto.evaluate.judge_facts import judge_facts
from affetto.evaluate.own_files import OWN_CSV, OWN_JSON, OWN_LINES, check_own
from affetto.evaluate.results import VALUE_NAMES, FileRow, JudgeFacts
from affetto.evaluate.scoring import Item, score_files
from affetto.files import (
    cache_root,
    hash_bytes,
    hash_file,
    hash_folder,
    hash_text,
    is_same_file,
    lock_of,
    one_at_a_time,
    write_text,
)
from affetto.judges.choice import Judges
from affetto.provenance import versions

_MEAN_BATCH, _MOST_BATCH = 16, 64
"""Files per batch: on average, and at most."""
_MEASURING = ("metrics/*.py", "judges/*.py", "evaluate/scoring.py", "audio/sound.py")
"""The package's source files that decide what a row holds."""
_METADATA = ("metadata.csv", "metadata.jsonl")
"""Files that a folder's texts and speakers are read from (`folder_files`)."""


def journal_path(output: Path, joining: str = "") -> Path:
    """Where the rows of the results at `output` are, or those of a folder that is `joining` them. Safe to delete."""
    return output.with_suffix(f".{hash_text(joining)[:8]}.rows.jsonl" if joining else ".rows.jsonl")


def check_outputs(
    output: Path, *, folders: Collection[Path] = (), metadata: Path | None = None, versa: Path | None = None
) -> None:
    """Refuse, before anything is scored, to overwrite a file of the user's (DataError).

    The files to be written are `output`, its CSV twin, its journal and `versa`, if given. They must be distinct, and
    none may be the table `metadata`, a metadata file of one of the scored `folders`, or a file that affetto didn't
    write (`own_files.check_own`).
    """
    if not output.name:
        raise DataError("no name is given for the results: name a file such as results.json")
    written = {output: OWN_JSON, output.with_suffix(".csv"): OWN_CSV, journal_path(output): OWN_LINES}
    if versa is not None:
        if not versa.name:
            raise DataError("no name is given for VERSA's lines: name a file such as versa.jsonl")
        if any(is_same_file(versa, path) for path in written):
            raise DataError(f"{versa} is one of the files of {output}: name another file for VERSA's lines")
        written[versa] = OWN_LINES
    for path, beginning in written.items():
        is_metadata = path.name in _METADATA and any(is_same_file(path.parent, folder) for folder in folders)
        if is_metadata or (metadata is not None and is_same_file(path, metadata)):
            raise DataError(f"{path} is read for texts and speakers, and would be overwritten: name another output")
        check_own(path, beginning)


class Journal:
    """The rows of one evaluation, with one target emotion and one set of judges."""

    def __init__(self, path: Path, judges: Judges, emotion: str, *, resume: bool, device: str = "cpu") -> None:
        """Keep rows at `path`. With `resume`, valid rows found there are reused; without, it starts anew.

        DataError if `path` is a file that affetto didn't write.
        """
        check_own(path, OWN_LINES)
        facts = judges_fingerprint(judge_facts(judges))
        self._path, self._judges, self._emotion = path, judges, emotion
        setting = [emotion, facts, device, os.cpu_count(), versions(), source_hash()]
        self._setting = hash_text(json.dumps(setting, sort_keys=True))[:16]
        earlier = _read(path) if resume else {}
        self._rows = {key: row for key, row in earlier.items() if key.startswith(self._setting)}
        write_text(path, "".join(_line(key, row) for key, row in self._rows.items()))

    @property
    def _lasting(self) -> Path:
        """Where the cache keeps rows by this evaluation's judges."""
        return cache_root() / "judged" / f"{self._setting}.jsonl"

    def score(
        self, items: Sequence[Item], on_progress: Callable[[int], object] | None = None, *, lasting: bool = False
    ) -> list[FileRow]:
        """`scoring.score_files` in batches, each of which is saved as soon as it is scored; a batch whose rows are all
        saved already isn't scored again. Rows of `lasting` sounds are also stored in the cache and read from there."""
        keys = [f"{self._setting}-{_key(item)}" for item in items]
        rows: dict[int, FileRow] = {}
        saved = (_read(self._lasting) if lasting else {}) | self._rows
        with self._path.open("a", encoding="utf-8") as file:
            for batch in _batches(keys):
                if all(keys[index] in saved for index in batch):
                    scored = [_named(saved[keys[index]], items[index].file) for index in batch]
                else:
                    scored = score_files([items[index] for index in batch], self._judges, self._emotion)
                    lines = [_line(keys[index], row) for index, row in zip(batch, scored, strict=True)]
                    _add(file, lines)
                    if lasting:
                        with one_at_a_time(lock_of(self._lasting)), self._lasting.open("a", encoding="utf-8") as kept:
                            _add(kept, lines)
                rows.update(zip(batch, scored, strict=True))
                if on_progress:
                    on_progress(len(batch))
        return [rows[index] for index in range(len(items))]


def _key(item: Item) -> str:
    """One hash of everything besides the setting that an item's row depends on; its name isn't included."""
    if isinstance(item.sound, Path):
        try:
            content = hash_file(item.sound)
        except OSError as error:
            content = f"unreadable: {error.strerror}"
    else:
        samples = np.ascontiguousarray(item.sound)
        content = hash_bytes(samples.tobytes(), f"{samples.dtype} {samples.shape} {item.sample_rate}".encode())
    facts = [item.text, item.speaker, item.prompt, item.seed, item.hit_cap, item.error]
    return hash_text(content, json.dumps(facts))


def _batches(keys: Sequence[str]) -> Iterator[list[int]]:
    """Positions in batches that depend on the keys alone."""
    batch: list[int] = []
    for index in sorted(range(len(keys)), key=lambda index: (keys[index], index)):
        batch.append(index)
        if int(keys[index][-8:], 16) % _MEAN_BATCH == 0 or len(batch) == _MOST_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _add(file: TextIO, lines: Sequence[str]) -> None:
    """Write lines and flush them to disk, so that they survive a kill."""
    file.writelines(lines)
    file.flush()
    os.fsync(file.fileno())


def _line(key: str, row: FileRow) -> str:
    return json.dumps({"key": key, "row": row}, ensure_ascii=False, allow_nan=False) + "\n"


def _named(row: FileRow, file: str) -> FileRow:
    return FileRow(**{**row, "file": file, "values": {**row["values"]}})


def _read(path: Path) -> dict[str, FileRow]:
    """Rows by key; lines that a kill truncated or an older affetto wrote in another form are skipped."""
    try:
        lines = path.read_bytes().decode(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return {}
    rows: dict[str, FileRow] = {}
    for line in lines:
        try:
            entry: Any = json.loads(line)
        except ValueError:
            continue
        row = entry.get("row") if isinstance(entry, dict) else None
        if isinstance(row, dict) and _is_row(row):
            rows[str(entry.get("key"))] = FileRow(**row)  # type: ignore[typeddict-item]
    return rows


def _is_row(row: Mapping[str, Any]) -> bool:
    values = row.get("values")
    return set(row) == set(FileRow.__annotations__) and isinstance(values, dict) and set(VALUE_NAMES) <= set(values)


@cache
def source_hash() -> str:
    """Hash of the code that makes rows, so that rows of a changed metric aren't reused."""
    return hash_folder(Path(__file__).parents[1], _MEASURING)


def judges_fingerprint(facts: Mapping[str, JudgeFacts | None]) -> dict[str, str]:
    """What must be equal for two evaluations' numbers to be comparable: by kind, the judge's id (with its commit or the
    hash of its weights), tier, labels and sample rate; `none` if there is no judge."""
    return {
        kind: "none" if judge is None else f"{judge['id']} {judge['tier']} {judge['sample_rate']} {judge['labels']}"
        for kind, judge in facts.items()
    }
