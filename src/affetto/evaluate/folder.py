"""A folder of sound files, evaluated, alone or beside others: what `scripts/evaluation_metrics.py` calls."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from affetto.errors import ConfigError, DataError, did_you_mean
from affetto.evaluate.expectations import against_neutral
from affetto.evaluate.folder_files import folder_items
from affetto.evaluate.journal import Journal, journal_path
from affetto.evaluate.judge_facts import judge_facts
from affetto.evaluate.results import (
    Comparison,
    FileRow,
    JudgeFacts,
    Results,
    Role,
    System,
    build_results,
    read_results,
    write_results,
)
from affetto.evaluate.scoring import Item
from affetto.evaluate.similarity import Scored, compare_emotions, compare_voices
from affetto.evaluate.summary import build_system, compare
from affetto.files import as_text, lock_of, one_at_a_time
from affetto.judges.choice import Judges, choose_judges, unheard
from affetto.progress import progress, say
from affetto.types import EMOTIONS

BASE, REAL, NEUTRAL = "base", "real", "neutral"
_ROLES: dict[str, Role] = {BASE: "base", REAL: "real", NEUTRAL: "files"}


@dataclass(frozen=True)
class Beside:
    """Folders that a folder is held against, with texts and speakers of their own as it has."""

    base: Path | None = None
    """The same sentences without the emotion, by the model as it was, say: paired by speaker and text (by the file's
    name where it has no text)."""
    reference: Path | None = None
    """Real recordings of the emotion: the judges' ceiling, and whose voices and emotion the files should be like."""
    neutral: Path | None = None
    """Neutral speech of the same speakers, of any texts: what prosody is measured from."""

    @property
    def folders(self) -> dict[str, Path]:
        """Those that are given, by the name of their system."""
        given = {BASE: self.base, REAL: self.reference, NEUTRAL: self.neutral}
        return {name: path for name, path in given.items() if path is not None}


def evaluate_folder(
    path: Path,
    emotion: str,
    output: Path,
    *,
    judges: Mapping[str, str] | Judges | None = None,
    metadata: Path | None = None,
    beside: Beside | None = None,
    command: str = "",
    device: str = "cpu",
    resume: bool = False,
) -> Results:
    """Score every sound file directly in folder `path` (or the one file `path`) and write the results to `output`.

    For texts and speakers see `folder_items`. `beside` names folders to hold it against. `judges` are names by kind
    (see `choose_judges`), or judges that are already loaded. Rows are kept beside `output` while they are made (see
    `journal`); `resume` takes those up that still hold. Where `output` holds the results of a run (`affetto
    evaluate`), the folder becomes one more system of them, and its rows are kept apart from the run's. Raises DataError
    where there is nothing to score or `output` can't be used, JudgeError where a judge can't be used, ConfigError where
    `emotion` names none, or is so near to one of the default judge's that it may be misspelt (a run's own is its own).
    """
    if not emotion.strip():
        raise ConfigError("no emotion is named that the files should express: give one, such as --emotion happy")
    if output.suffix.lower() != ".json":
        raise DataError(f"results are written as JSON (and CSV beside it): name {output.with_suffix('.json')}")
    folders = (beside or Beside()).folders
    own = as_text(path.stem if path.is_file() else path.resolve().name)
    # Whatever it is called, it is what is scored, and no base and no ceiling.
    name = f"{own} (files)" if own in (BASE, REAL, *folders) else own
    items = {name: folder_items(path, metadata)} | {other: folder_items(where) for other, where in folders.items()}
    chosen = judges if isinstance(judges, Judges) else choose_judges(judges or {}, emotion, device)
    run = _run_in(output, emotion, judge_facts(chosen))
    if run is None and not isinstance(judges, Judges):
        _refuse_misspelt(emotion, judges or {})
    if why := unheard(chosen, {} if isinstance(judges, Judges) else judges or {}):
        say(f"recall and posterior are left out: {why}", style="yellow")
    if run is not None and folders:
        raise DataError(f"{output} holds the results of a run, which has a base of its own: name another --output")

    place = _seen_from(output.parent, path)
    rows = journal_path(output, place if run is not None else "")
    journal = Journal(rows, chosen, emotion, resume=resume, device=device)
    scored = {side: (mine, _scored(side, mine, journal)) for side, mine in items.items()}
    _compare_vectors(name, scored, chosen)
    systems = [_system(side, scored[side][1], chosen, output, folders.get(side, path)) for side in scored]
    ceiling = next((system["metrics"]["recall"] for system in systems if system["role"] == "real"), None)
    comparisons = _comparisons(name, {side: rows for side, (_, rows) in scored.items()}, emotion)
    results = build_results(emotion, command, judge_facts(chosen, ceiling), systems, comparisons)
    if run is None:
        write_results(output, results)
        return results
    with one_at_a_time(lock_of(output)):
        # Another folder may have joined meanwhile.
        run = _run_in(output, emotion, judge_facts(chosen)) or run
        results = _joined(run, systems[0], f"{own} (files)", f"{place} (files)")
        write_results(output, results)
    return results


def _refuse_misspelt(emotion: str, choices: Mapping[str, str]) -> None:
    if "emotion" in choices or emotion in EMOTIONS or not (hint := did_you_mean(emotion, EMOTIONS)):
        return
    raise ConfigError(
        f"the default judge can't hear {emotion!r}{hint}; where that is an emotion of your own, say that nobody is to "
        "judge it: --judge emotion=none"
    )


def _joined(run: Results, system: System, name: str, whole_name: str) -> Results:
    """`run` with `system` as its last, in place of what was known of the same folder; it is called `name`, or
    `whole_name` where another folder has that already."""
    own, folder = (name, whole_name), system.get("folder")
    others = [one for one in run["systems"] if one["name"] not in own or one.get("folder", folder) != folder]
    system["name"] = own[name in {one["name"] for one in others}]
    return Results(**{**run, "systems": [*others, system]})


def _scored(name: str, items: Sequence[Item], journal: Journal) -> list[FileRow]:
    with progress(f"Judging {name}", len(items)) as bar:
        return journal.score(items, bar.advance)


def _compare_vectors(name: str, scored: Mapping[str, Scored], judges: Judges) -> None:
    """Fill what is told by cosines, in place."""
    nothing: Scored = ((), ())
    base, real = scored.get(BASE, nothing), scored.get(REAL, nothing)
    others = [scored[side] for side in scored if side != BASE]
    if judges.voice is not None:
        with progress("Comparing voices", sum(len(items) for items, _ in scored.values()) + len(real[0])) as bar:
            compare_voices(judges.voice, base, others, real[0], on_progress=bar.advance)
    if judges.embedding is not None and real[0]:
        compare_emotions(judges.embedding, [scored[side] for side in (name, BASE) if side in scored], real)


def _system(name: str, rows: Sequence[FileRow], judges: Judges, output: Path, path: Path) -> System:
    system = build_system(name, _ROLES.get(name, "files"), rows, judges)
    system["folder"] = _seen_from(output.parent, path.parent if path.is_file() else path)
    return system


def _comparisons(name: str, rows: Mapping[str, Sequence[FileRow]], emotion: str) -> list[Comparison]:
    found = []
    if BASE in rows:
        ours, theirs = _named(rows[name]), _named(rows[BASE])
        found.append(compare(ours, theirs, system=name, against=BASE, prompt=None, emotion=emotion))
    if NEUTRAL in rows:
        ours, theirs = (_of_somebody(rows[side]) for side in (name, NEUTRAL))
        found.append(against_neutral(ours, theirs, system=name, emotion=emotion))
    return found


def _named(rows: Sequence[FileRow]) -> list[FileRow]:
    """The rows with something to be paired by: the text, or the file's name without its ending.

    Several takes of a speaker's text are told apart by a number in place of a seed, in the order of their names: the
    first take is paired with the other side's first.
    """
    takes: Counter[tuple[str, str | None]] = Counter()
    numbers = {}
    for row in sorted(rows, key=lambda row: row["file"]):
        prompt = (row["text"] or f"file {Path(row['file']).stem}", row["speaker"])
        numbers[row["file"]] = (prompt[0], takes[prompt])
        takes[prompt] += 1
    return [
        FileRow(**{**row, "text": text, "seed": take if row["seed"] is None else row["seed"]})
        for row in rows
        for text, take in [numbers[row["file"]]]
    ]


def _of_somebody(rows: Sequence[FileRow]) -> list[FileRow]:
    """Files whose speaker isn't known count as one voice."""
    return [FileRow(**{**row, "speaker": row["speaker"] or ""}) for row in rows]


def _seen_from(start: Path, folder: Path) -> str:
    """`folder` relative to `start`, so that both can be moved together; its own path where they share no root."""
    try:
        return as_text(Path(os.path.relpath(folder, start)).as_posix())
    except ValueError:
        return as_text(folder.resolve().as_posix())


def _run_in(output: Path, emotion: str, judges: Mapping[str, JudgeFacts | None]) -> Results | None:
    """The results of a run that `output` holds, which mustn't be lost; None where there are none."""
    if not output.is_file() or not output.stat().st_size:
        return None
    try:
        found = read_results(output)
    except DataError as error:
        raise DataError(f"{error}. What it holds would be lost: move it away, or name another --output") from error
    if all(system["role"] != "adapter" for system in found["systems"]):
        return None
    # An earlier affetto had fewer kinds.
    ids = [{kind: judge["id"] for kind, judge in each.items() if judge} for each in (found["judges"], judges)]
    if found["emotion"] != emotion or ids[0] != ids[1]:
        raise DataError(
            f"{output} holds the results of a run (emotion {found['emotion']}), made with other judges or for another "
            "emotion: name another --output"
        )
    return found
