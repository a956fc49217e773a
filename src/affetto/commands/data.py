"""The command line's verbs about clips alone: importing, checking and counting them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Clips before any training: import, check, count.", no_args_is_help=True)

Sources = Annotated[
    list[Path], typer.Argument(help="Manifests (.jsonl), folders in a published layout, or plain folders.")
]
BySpeaker = Annotated[bool, typer.Option("--split-by-speaker", help="Keep the speakers of the splits apart, too.")]


@app.command("import")
def import_(
    sources: Sources,
    out: Annotated[Path, typer.Option("--out", "-o", help="Manifest to write.")] = Path("manifest.jsonl"),
    skip_bad_clips: Annotated[
        bool, typer.Option("--skip-bad-clips", help="Status 0 though some can't be read.")
    ] = False,
) -> None:
    """Write one manifest of clips in published layouts (RAVDESS, CREMA-D, ESD, VCTK, …); no sound is moved."""
    from affetto.audio.checks import problem_table
    from affetto.audio.overview import import_clips
    from affetto.progress import console
    from affetto.types import EMOTIONS

    clips, problems = import_clips(sources, out, EMOTIONS)
    if problems:
        console.print(problem_table(problems))
    typer.echo(f"{out}: {len(clips)} clips, {len(problems)} left out or doubtful")
    if problems and not skip_bad_clips:
        raise typer.Exit(1)


@app.command()
def check(sources: Sources, by_speaker: BySpeaker = False) -> None:
    """Open every clip and tell all that is wrong or doubtful at once; exit status 1 where a clip can't be used."""
    from affetto.audio.checks import problem_table
    from affetto.audio.overview import examine, statistics, statistics_table
    from affetto.progress import console
    from affetto.types import EMOTIONS

    found = examine(sources, EMOTIONS, by_speaker=by_speaker, workers=os.cpu_count() or 1)
    if told := [*found.problems, *found.doubts]:
        console.print(problem_table(told))
    console.print(statistics_table(statistics(found.clips)))
    bad = len({problem.where for problem in found.problems})
    typer.echo(f"{len(found.clips)} clips are good, {bad} are not, {len(found.doubts)} doubts")
    if found.problems:
        raise typer.Exit(1)


@app.command()
def stats(
    sources: Sources,
    by_speaker: BySpeaker = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count clips, minutes, speakers, texts and splits by emotion; nothing is checked."""
    from affetto.audio.corpora import load_clips
    from affetto.audio.overview import placed, statistics, statistics_table
    from affetto.files import to_json
    from affetto.progress import console
    from affetto.types import EMOTIONS

    clips, _ = load_clips(sources, emotions=EMOTIONS)
    rows = statistics(placed(clips, by_speaker=by_speaker))
    if as_json:
        typer.echo(to_json(rows))
    else:
        console.print(statistics_table(rows))
