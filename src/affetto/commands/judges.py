"""`affetto evaluate --calibrate-judges`: what the judges hear in real recordings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import typer

from affetto.commands.options import FILES_FAILED, command_line, fastest_device


def calibrate_on(source: Path, choices: Mapping[str, str], folder: Path, *, allow_failures: bool = False) -> None:
    """Print the table and its conclusions, and write `judge_calibration.json` into `folder`.

    `choices` are judges by kind. Exits with status `FILES_FAILED` if recordings could not be judged or read, unless
    `allow_failures`.
    """
    from affetto.evaluate.judge_calibration import calibrate_judges
    from affetto.evaluate.judge_calibration_table import calibration_table, failures, said
    from affetto.judges.choice import all_judges
    from affetto.progress import show

    path = folder / "judge_calibration.json"
    judges = all_judges(choices, fastest_device())
    document = calibrate_judges(source, judges, path, command=command_line())
    show(calibration_table(document))
    for line in [*said(document), f"written to {path}"]:
        typer.echo(line)
    failed = failures(document)
    for line in failed:
        typer.echo(line, err=True)
    if failed and not allow_failures:
        raise typer.Exit(FILES_FAILED)
