"""The command line's verbs that foretell forgetting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from affetto.cli_options import (
    BaseName,
    ConfigFile,
    Data,
    Emotion,
    Output,
    SkipBad,
    command_line,
    settings_of,
)
from affetto.errors import ConfigError

app = typer.Typer()


@app.command()
def calibrate(
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(help="Adapter folders. Default: plain LoRA and the configuration's recipe are trained for it."),
    ] = None,
    emotion: Emotion = None, config: ConfigFile = None, base: BaseName = None, data: Data = None, output: Output = None,
    skip_bad_clips: SkipBad = False,
) -> None:  # fmt: skip
    """Hold predicted forgetting against measured, for every curvature: calibration.json and calibration.svg."""
    from affetto.evaluate.calibration import fit_table
    from affetto.pipeline import calibrate as calibrate_all
    from affetto.pipeline import prepare_clips
    from affetto.progress import console

    settings, emotions = settings_of(config, emotion, base=base, data=data, output_dir=output)
    prepared = prepare_clips(settings, emotions[:1], skip_bad_clips=skip_bad_clips)
    console.print(fit_table(calibrate_all(settings, emotions[0], prepared, adapters or (), command=command_line())))


@app.command("predict-forgetting")
def predict_forgetting(
    adapter: Annotated[Path, typer.Argument(help="Folder of any LoRA adapter of the base, affetto's or not.")],
    config: ConfigFile = None, base: BaseName = None, data: Data = None,
    intensity: Annotated[list[float] | None, typer.Option(help="Strength; repeat for several.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    skip_bad_clips: SkipBad = False,
) -> None:  # fmt: skip
    """Tell from an adapter's weights how much the base will forget, without a second of audio."""
    from affetto.evaluate.calibration import INTENSITIES, forecast_table
    from affetto.evaluate.calibration import predict_forgetting as predict
    from affetto.files import to_json
    from affetto.pipeline import prepare_clips
    from affetto.progress import console

    if wrong := [value for value in intensity or () if not math.isfinite(value)]:
        raise ConfigError(f"--intensity {wrong[0]} is not a finite number")
    settings, _ = settings_of(config, None, base=base, data=data)
    prepared = prepare_clips(settings, (), skip_bad_clips=skip_bad_clips)
    rows = predict(settings, prepared, adapter, tuple(intensity or INTENSITIES))
    if as_json:
        typer.echo(to_json(rows))
    else:
        console.print(forecast_table(rows))
