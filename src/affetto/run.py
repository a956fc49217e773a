"""`affetto run`: from clips to reports, one emotion after another or several at a time."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from affetto.codes.prepare import Prepared
from affetto.config import EXPRESSIVE, Config
from affetto.errors import AffettoError, ConfigError, Interrupted
from affetto.judges.kinds import KINDS
from affetto.model.base import MINIATURE
from affetto.pipeline import prepare_clips, report, train_emotions, train_expressive_base, with_clips
from affetto.processes import alone_in, num_launched
from affetto.progress import console, say
from affetto.types import EMOTIONS


def run(
    config: Config,
    emotions: Sequence[str],
    *,
    command: str,
    are_named: bool = True,
    skip_bad_clips: bool = False,
    skip_datasets: bool = False,
    together: bool = False,
    resume: bool = False,
    jobs: int | None = 1,
) -> list[Path]:
    """Prepare, train, evaluate and report each emotion; returns the paths of the reports.

    `together` trains all emotions in one run before any is evaluated. The `failed_files` are listed at the end.
    Anything that stops the run is an AffettoError, raised before the clips are prepared if it can be known by then.

    Without `are_named` the emotions are all those of the configuration: the ones without clips are left out, and only
    the rest must be known to the judges. DataError if none is left.

    `jobs` emotions at a time are trained and evaluated, each in a process of its own; None takes as many as processors
    and memory allow (`planning.capacity.num_jobs`). The results don't depend on it except for rounding, because fewer
    threads add in another order. If one of several fails the others go on, and the error is raised at the end.
    """
    from affetto.training.runtime import check_installed

    if (launched := num_launched()) > 1:
        raise ConfigError(
            f"affetto run works as one process, but {launched} were launched: train with several (accelerate launch -m "
            "affetto train …), then evaluate and report with one (affetto evaluate, affetto report)"
        )
    check_installed(config)
    own = [emotion for emotion in emotions if emotion != EXPRESSIVE]
    _check_judges(config, own if are_named else [])
    prepared = prepare_clips(
        config, emotions, skip_bad_clips=skip_bad_clips, skip_datasets=skip_datasets, are_named=are_named
    )
    emotions = with_clips(prepared, emotions, are_named=are_named)
    own = [emotion for emotion in own if emotion in emotions]
    if not are_named:
        _check_judges(config, own)
    if jobs is None and not together and len(own) > 1:
        from affetto.planning.capacity import num_jobs

        jobs = num_jobs(config, prepared, own)
    if together or jobs is None or min(jobs, len(own)) < 2:
        with alone_in([config.model_of(emotion) for emotion in emotions]):
            for folder in train_emotions(config, emotions, prepared, together=together, resume=resume, command=command):
                if folder.name == EXPRESSIVE:
                    _say_expressive_base(folder)
                else:
                    _evaluate_and_report(config, folder.name, prepared, command, resume=resume)
                    _say_results(config, folder.name)
        _compare(config, own, command)
    else:
        _run_side_by_side(config, emotions, own, prepared, command, resume=resume, jobs=min(jobs, len(own)))
    for line in failed_files(config, own):
        say(line, style="yellow")
    return [config.model_of(emotion) / "report.html" for emotion in own]


def _check_judges(config: Config, emotions: Sequence[str]) -> None:
    """Check that the chosen judges load and know `emotions`; warn of those that the default judge doesn't know, which
    will have no recall."""
    from affetto.judges.choice import check_choices, choose_judges, unheard

    check_choices(config.judges, emotions)
    others = [] if "emotion" in config.judges else [name for name in emotions if name not in EMOTIONS]
    for name in others:
        if why := unheard(choose_judges({kind: "none" for kind in KINDS if kind != "emotion"}, name), config.judges):
            say(f"{name} will be trained and spoken, but not heard: {why}", style="yellow")


def _run_side_by_side(
    config: Config, emotions: Sequence[str], own: Sequence[str], prepared: Prepared, command: str, *, resume: bool,
    jobs: int,
) -> None:  # fmt: skip
    """`run` of several emotions at a time; `own` are `emotions` without the expressive base, which comes first."""
    from affetto.planning.capacity import processors
    from affetto.side_by_side import side_by_side

    if EXPRESSIVE in emotions:
        for folder in train_emotions(config, [EXPRESSIVE], prepared, resume=resume, command=command):
            _say_expressive_base(folder)
    train_expressive_base(config, prepared, command=command)
    threads = max(1, processors() // jobs)
    say(f"{jobs} emotions at a time, each in a process of its own with {threads} thread{'s' if threads > 1 else ''}")
    work = partial(_run_one, config, prepared, command, resume)
    done: list[str] = []
    try:
        for emotion, _ in side_by_side(work, own, jobs, threads=threads):
            done.append(emotion)
            _say_results(config, emotion)
    except Interrupted:
        raise
    except AffettoError:
        _compare(config, [emotion for emotion in own if emotion in done], command)
        raise
    _compare(config, own, command)


def _run_one(config: Config, prepared: Prepared, command: str, resume: bool, emotion: str) -> None:
    """Train, evaluate and report one emotion: the work of one process."""
    with alone_in([config.model_of(emotion)]):
        list(train_emotions(config, [emotion], prepared, resume=resume, command=command))
        _evaluate_and_report(config, emotion, prepared, command, resume=resume)


def _evaluate_and_report(config: Config, emotion: str, prepared: Prepared, command: str, *, resume: bool) -> None:
    from affetto.evaluate.suite import evaluate

    evaluate(config, emotion, prepared, command=command, resume=resume)
    report(config, emotion)


def failed_files(config: Config, emotions: Sequence[str]) -> list[str]:
    """A line for each file that the evaluations of `emotions` could not score."""
    from affetto.evaluate.folder_lines import failures
    from affetto.evaluate.results import read_results

    paths = [config.results_of(emotion) for emotion in emotions]
    return [line for path in paths if path.is_file() for line in failures(read_results(path), name_systems=True)]


def _say_results(config: Config, emotion: str) -> None:
    """Show the short table of an evaluated emotion, where its report is, and a command that speaks with it."""
    from affetto.evaluate.results import read_results
    from affetto.report.tables import terminal_table

    results = read_results(config.results_of(emotion))
    console.print(terminal_table([results]))
    say(f"report: {config.model_of(emotion) / 'report.html'}")
    say(f"hear more: {_speak_command(config, emotion)}")


def _say_expressive_base(folder: Path) -> None:
    say(f"the expressive base is in {folder}; emotions build on it with expressive_base: true")


def _compare(config: Config, emotions: Sequence[str], command: str) -> None:
    from affetto.report.comparison_page import compare_run

    if len(emotions) > 1:
        say(f"side by side: {compare_run(config.output_dir / 'evaluation_results', emotions, command)}")


def _speak_command(config: Config, emotion: str) -> str:
    """A command that speaks with the new adapter, ready to paste."""
    beside = Path(sys.executable).with_name("affetto")
    program = ["affetto"] if shutil.which("affetto") else [str(beside)]
    if program != ["affetto"] and not beside.is_file():
        # affetto isn't installed: it runs from its sources.
        program = [f"PYTHONPATH={Path(__file__).parents[1]}", sys.executable, "-m", "affetto"]
    options = [] if config.base == MINIATURE else ["--base", config.base]
    if config.output_dir != Path():
        options += ["--models", str(config.output_dir / "emotion_models")]
    return shlex.join([*program, "speak", "I found the silver key", "--emotion", emotion, *options, "--out", "key.wav"])
