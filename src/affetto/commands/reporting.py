"""The verbs that measure and show: evaluate, report and schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affetto.commands.judges import calibrate_on
from affetto.commands.options import (
    FILES_FAILED,
    BaseName,
    ConfigFile,
    Data,
    EachEmotion,
    General,
    Judge,
    Output,
    Resume,
    SkipBad,
    are_named,
    command_line,
    pairs_of,
    refuse,
    require_suffix,
    settings_of,
)
from affetto.errors import ConfigError, DataError
from affetto.folders import recover_folder

if TYPE_CHECKING:
    from affetto.evaluate.results import Results

app = typer.Typer()


@app.command()
def evaluate(
    emotion: EachEmotion = None, config: ConfigFile = None, base: BaseName = None, data: Data = None,
    general: General = None, output: Output = None,
    judge: Judge = None,
    intensity: Annotated[
        float | None, typer.Option(help="Strength of the adapter. Default: what its training recommended.")
    ] = None,
    calibrate_judges: Annotated[
        Path | None,
        typer.Option(help="Evaluate the judges instead: labelled real recordings, and what they hear in them."),
    ] = None,
    skip_bad_clips: SkipBad = False, resume: Resume = False,
    versa: Annotated[
        Path | None, typer.Option(help="Also write one flat JSON line per file, as VERSA does; for one emotion.")
    ] = None,
    allow_failures: Annotated[
        bool, typer.Option("--allow-failures", help="Exit with 0 even if files could not be scored.")
    ] = False,
) -> None:  # fmt: skip
    """Speak held-out sentences with base and trained adapter, and score both beside real recordings.

    Exit status 4: everything is written, but some files (with --calibrate-judges: recordings) could not be scored.
    """
    judges = pairs_of(judge, "--judge")
    if calibrate_judges is not None:
        refuse({
            "--emotion": emotion, "--base": base, "--data": data, "--general": general, "--intensity": intensity,
            "--skip-bad-clips": skip_bad_clips or None, "--resume": resume or None, "--versa": versa,
        }, "--calibrate-judges only plays its recordings to the judges, and takes --judge, --output, --config (its "
           "judges and output_dir) and --allow-failures")  # fmt: skip
        settings, _ = settings_of(config, None, output_dir=output, judges=judges)
        calibrate_on(calibrate_judges, settings.judges, settings.output_dir, allow_failures=allow_failures)
        return
    from affetto.evaluate.folder_lines import judge_lines
    from affetto.evaluate.journal import check_outputs
    from affetto.evaluate.suite import evaluate as evaluate_emotion
    from affetto.evaluate.versa import write_versa
    from affetto.pipeline import prepare_clips
    from affetto.processes import alone_in
    from affetto.progress import say, show
    from affetto.report.tables import terminal_table
    from affetto.speak.arguments import require_strength

    if intensity is not None:
        require_strength(intensity)
    settings, emotions = settings_of(
        config, emotion, base=base, data=data, general=general, output_dir=output, judges=judges
    )
    trained = [name for name in emotions if recover_folder(settings.model_of(name) / "best").is_dir()]
    if not trained or (are_named(emotion) and trained != emotions):
        absent = next(name for name in emotions if name not in trained)
        raise DataError(f"there is no adapter {settings.model_of(absent) / 'best'}: affetto train --emotion {absent}")
    emotions = trained
    if versa and len(emotions) > 1:
        raise ConfigError(f"--versa {versa} is one file: name one --emotion")
    for name in emotions:
        check_outputs(settings.results_of(name), versa=versa)
    prepared = prepare_clips(settings, emotions, skip_bad_clips=skip_bad_clips)
    num_failed = 0
    for name in emotions:
        with alone_in([settings.model_of(name)]):
            results = evaluate_emotion(
                settings, name, prepared, intensity=intensity, command=command_line(), resume=resume
            )
        show(terminal_table([results]))
        for line in judge_lines(results["judges"]):
            say(line)
        num_failed += _say_failures(results)
        if versa:
            write_versa(versa, results)
    if num_failed and not allow_failures:
        raise typer.Exit(FILES_FAILED)


def _say_failures(results: Results) -> int:
    """Name the files that could not be scored; returns how many there are."""
    from affetto.evaluate.folder_lines import failures
    from affetto.progress import say

    failed = list(failures(results, name_systems=True))
    for line in failed:
        say(line, style="yellow")
    return len(failed)


@app.command()
def report(
    results: Annotated[
        list[str] | None,
        typer.Argument(help="Results to compare on one page, each as FILE or NAME=FILE. Default: a page per emotion."),
    ] = None,
    emotion: EachEmotion = None,
    config: ConfigFile = None,
    output: Output = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The comparison's page. Default: comparison.html.", dir_okay=False)
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The system to compare all others with. Default: each run's own base.")
    ] = None,
    audio: Annotated[
        list[str] | None, typer.Option("--audio", help="NAME=FOLDER: where a system's sound files are; repeat.")
    ] = None,
    sentences: Annotated[
        int | None, typer.Option(min=0, help="Sentences to listen to on the comparison's page. Default: 8.")
    ] = None,
    title: Annotated[str, typer.Option(help="The comparison's title. Default: the systems' names.")] = "",
) -> None:
    """Write the report of each evaluated emotion, a page each, or compare any results on one page."""
    if not results:
        refuse({
            "--out": out, "--against": against, "--audio": audio, "--sentences": sentences, "--title": title or None
        }, "name the results to compare; without any, the report is that of a run")  # fmt: skip
        _report_emotions(emotion, config, output)
        return
    if emotion or config or output:
        raise ConfigError(
            "--emotion, --config and --output are for runs: when results are named, the page goes to --out"
        )
    from affetto.report.comparison_page import write_comparison
    from affetto.report.systems import read_entries

    if out is not None:
        require_suffix(out, "--out", "the page is HTML", ".html", ".htm")
    folders = {name: Path(folder) for name, folder in (pairs_of(audio, "--audio", "NAME=FOLDER") or {}).items()}
    page = write_comparison(
        out or Path("comparison.html"), read_entries(results, folders), title=title, against=against,
        sentences=8 if sentences is None else sentences, command=command_line(),
    )  # fmt: skip
    typer.echo(page)


def _report_emotions(emotion: list[str] | None, config: Path | None, output: Path | None) -> None:
    from affetto.pipeline import report as report_emotion

    settings, emotions = settings_of(config, emotion, output_dir=output)
    if not are_named(emotion):
        emotions = [name for name in emotions if settings.results_of(name).is_file()] or emotions
    for name in emotions:
        typer.echo(report_emotion(settings, name))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the results that an evaluation writes (docs/results.md)."""
    from affetto.evaluate.results_schema import results_schema
    from affetto.files import to_json

    typer.echo(to_json(results_schema()))
