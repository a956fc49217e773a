"""The verb that scores sound files of any origin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affetto.commands.options import FILES_FAILED, Judge, Resume, command_line, pairs_of
from affetto.commands.output import tell

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(help="A folder of sound files, or one file.")]
Metadata = Annotated[
    Path | None,
    typer.Option(help="Table with columns file, text, speaker. Default: metadata.csv or .txt files in the folder."),
]


@app.command()
def score(
    folder: Folder,
    emotion: Annotated[str, typer.Option("--emotion", "-e", help="The emotion that the files should express.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.json for the results; a CSV goes beside it.")],
    metadata: Metadata = None,
    base: Annotated[
        Path | None, typer.Option(help="Folder of the same sentences without the emotion, to compare with.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of real recordings of the emotion: the judges' ceiling, and the voices.")
    ] = None,
    neutral: Annotated[
        Path | None, typer.Option(help="Folder of the same speakers' neutral speech, as prosody's reference.")
    ] = None,
    judge: Judge = None,
    device: Annotated[str, typer.Option(help="Where the judges run: cpu or cuda.")] = "cpu",
    resume: Resume = False,
    versa: Annotated[Path | None, typer.Option(help="Also write one flat JSON line per file, as VERSA does.")] = None,
    allow_failures: Annotated[
        bool, typer.Option("--allow-failures", help="Exit with 0 even if files could not be scored.")
    ] = False,
) -> None:
    """Score any system's sound files: emotion, words, quality, voice, pitch and timing, alone or against others.

    Exit status 4: everything is written, but some files could not be scored.
    """
    from affetto.evaluate.folder import Beside, evaluate_folder
    from affetto.evaluate.folder_lines import failures, folder_lines
    from affetto.evaluate.journal import check_outputs
    from affetto.evaluate.versa import write_versa

    beside = Beside(base, reference, neutral)
    check_outputs(output, folders=[folder, *beside.folders.values()], metadata=metadata, versa=versa)

    results = evaluate_folder(
        folder, emotion, output, judges=pairs_of(judge, "--judge"), metadata=metadata, beside=beside,
        command=command_line(), device=device, resume=resume,
    )  # fmt: skip
    if versa:
        write_versa(versa, results)
    tell(folder_lines(results, output))
    failed = list(failures(results))
    for line in failed:
        typer.echo(line, err=True)
    if failed and not allow_failures:
        raise typer.Exit(FILES_FAILED)
