"""Evaluates a folder of sound files, alone or compared with others, for `scripts/evaluation_metrics.py`."""

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
    """Folders that the evaluated folder is compared with; each has texts and speakers of its own."""

    base: Path | None = None
    """The same sentences without the emotion, for example by the model before training. Paired by speaker and text, or
    by file name without a text."""
    reference: Path | None = None
    """Real recordings of the emotion: the judges' ceiling, and the voices and emotion that the files should match."""
    neutral: Path | None = None
    """Neutral speech of the same speakers, with any texts: the reference for prosody."""

    @property
    def folders(self) -> dict[str, Path]:
        """The given folders by the name of their system."""
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

    For texts and speakers see `folder_items`. `beside` has folders to compare it with. `judges` are names by kind (see
    `choose_judges`), or judges that are already loaded. Rows are saved beside `output` as they are made (see
    `journal`); `resume` reuses those that are still valid. If `output` holds the results of a run (`affetto evaluate`),
    the folder is added to them as a system, with a journal of its own. Raises DataError if there is nothing to score or
    `output` can't be used, JudgeError if a judge can't be used, ConfigError if `emotion` is empty or looks like a
    misspelt label of the default judge (a run's emotion is taken as it is).
    """
    if not emotion.strip():
        raise ConfigError("no emotion is given that the files should express: name one, such as --emotion happy")
    if output.suffix.lower() != ".json":
        raise DataError(f"results are written as JSON (and CSV beside it): name {output.with_suffix('.json')}")
    folders = (beside or Beside()).folders
    own = as_text(path.stem if path.is_file() else path.resolve().name)
    # A scored folder that is called base or real mustn't be taken for the base or the ceiling.
    name = f"{own} (files)" if own in (BASE, REAL, *folders) else own
    items = {name: folder_items(path, metadata)} | {other: folder_items(folder) for other, folder in folders.items()}
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
        # Another folder may have been added meanwhile.
        run = _run_in(output, emotion, judge_facts(chosen)) or run
        results = _joined(run, systems[0], f"{own} (files)", f"{place} (files)")
        write_results(output, results)
    return results


def _refuse_misspelt(emotion: str, choices: Mapping[str, str]) -> None:
    if "emotion" in choices or emotion in EMOTIONS or not (hint := did_you_mean(emotion, EMOTIONS)):
        return
    raise ConfigError(
        f"the default judge has no label {emotion!r}{hint}; if it is an emotion of your own, leave it unjudged with "
        "--judge emotion=none"
    )


def _joined(run: Results, system: System, name: str, whole_name: str) -> Results:
    """`run` with `system` at its end, replacing an earlier one of the same folder; it is called `name`, or
    `whole_name` if another folder has that name already."""
    own, folder = (name, whole_name), system.get("folder")
    others = [each for each in run["systems"] if each["name"] not in own or each.get("folder", folder) != folder]
    system["name"] = own[name in {each["name"] for each in others}]
    return Results(**{**run, "systems": [*others, system]})


def _scored(name: str, items: Sequence[Item], journal: Journal) -> list[FileRow]:
    with progress(f"Judging {name}", len(items)) as bar:
        return journal.score(items, bar.advance)


def _compare_vectors(name: str, scored: Mapping[str, Scored], judges: Judges) -> None:
    """Fill the cosines of voices and emotions, in place."""
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
    comparisons = []
    if BASE in rows:
        ours, theirs = _pairable(rows[name]), _pairable(rows[BASE])
        comparisons.append(compare(ours, theirs, system=name, against=BASE, prompt=None, emotion=emotion))
    if NEUTRAL in rows:
        ours, theirs = (_with_speakers(rows[side]) for side in (name, NEUTRAL))
        comparisons.append(against_neutral(ours, theirs, system=name, emotion=emotion))
    return comparisons


def _pairable(rows: Sequence[FileRow]) -> list[FileRow]:
    """The rows with a key for pairing: the text, or the file's name without its suffix.

    Several takes of a text by a speaker get a number instead of a seed, in the order of their names, so that the first
    take is paired with the other side's first.
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


def _with_speakers(rows: Sequence[FileRow]) -> list[FileRow]:
    """The rows with an empty speaker where there is none, so that such files count as one voice."""
    return [FileRow(**{**row, "speaker": row["speaker"] or ""}) for row in rows]


def _seen_from(start: Path, folder: Path) -> str:
    """`folder` relative to `start`, so that both can be moved together; its absolute path if they share no root."""
    try:
        return as_text(Path(os.path.relpath(folder, start)).as_posix())
    except ValueError:
        return as_text(folder.resolve().as_posix())


def _run_in(output: Path, emotion: str, judges: Mapping[str, JudgeFacts | None]) -> Results | None:
    """The results of a run in `output`, which mustn't be lost; None if there are none."""
    if not output.is_file() or not output.stat().st_size:
        return None
    try:
        run = read_results(output)
    except DataError as error:
        raise DataError(f"{error}. Its content would be lost: move it away, or name another --output") from error
    if all(system["role"] != "adapter" for system in run["systems"]):
        return None
    # Only judges that exist: results of an earlier affetto lack some kinds.
    ids = [{kind: judge["id"] for kind, judge in each.items() if judge} for each in (run["judges"], judges)]
    if run["emotion"] != emotion or ids[0] != ids[1]:
        raise DataError(
            f"{output} holds the results of a run (emotion {run['emotion']}), made with other judges or for another "
            "emotion: name another --output"
        )
    return run
