"""`affetto evaluate --calibrate-judges`: what the judges hear in real recordings."""

from __future__ import annotations

from pathlib import Path

import typer

from affetto.commands.options import command_line, pairs_of


def calibrate_on(source: Path, judge: list[str] | None, output: Path | None) -> None:
    """Print the table and what follows from it, and write `judge_calibration.json` into the output folder."""
    from rich.console import Console

    from affetto.evaluate.judge_calibration import calibrate_judges
    from affetto.evaluate.judge_calibration_table import calibration_table, said
    from affetto.judges.choice import all_judges

    path = (output or Path()) / "judge_calibration.json"
    document = calibrate_judges(source, all_judges(pairs_of(judge, "--judge") or {}), path, command=command_line())
    Console(width=None).print(calibration_table(document))
    for line in [*said(document), f"written to {path}"]:
        typer.echo(line)
