"""The verb that estimates what a run will need, before anything is loaded."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from affetto.commands.options import BaseName, ConfigFile, fastest_device, settings_of

app = typer.Typer()


@app.command()
def plan(
    config: ConfigFile = None, base: BaseName = None,
    clips: Annotated[int, typer.Option(min=1, help="Number of emotional clips.")] = 200,
    seconds: Annotated[float, typer.Option(min=0.1, help="Mean length of a clip.")] = 5.0,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda. Default: the GPU if there is one.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=1e-6, help="The device's speed in 10^12 operations a second, instead of timing it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:  # fmt: skip
    """Estimate the memory, disk and time that training one emotion will take.

    No weights are loaded, and at most the base's configuration is fetched. `--base random:csm-1b` has CSM-1B's shape
    without its licence.
    """
    from affetto.errors import ConfigError

    settings, _ = settings_of(config, None, base=base)
    for option, value in (("--seconds", seconds), ("--tflops", tflops)):
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{option} {value:g}: it must be a finite number")
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"--device {device}: it is cpu or cuda")
    from affetto.files import to_json
    from affetto.planning.plan import plan as make_plan
    from affetto.planning.table import render
    from affetto.planning.workload import Data
    from affetto.progress import show

    estimate = make_plan(settings, Data(clips, seconds), device=device or fastest_device(), tflops=tflops)
    if as_json:
        typer.echo(to_json(estimate.to_document()))
        return
    show(render(estimate))
