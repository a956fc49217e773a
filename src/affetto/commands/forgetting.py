"""The verbs about forgetting: calibrate, predict-forgetting and ablate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affetto.commands.options import (
    BaseName,
    ConfigFile,
    Data,
    EachEmotion,
    General,
    Output,
    SkipBad,
    are_named,
    command_line,
    refuse,
    settings_of,
)
from affetto.errors import ConfigError

if TYPE_CHECKING:
    from affetto.config import Config

app = typer.Typer()


@app.command()
def calibrate(
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(help="Adapter folders. Default: plain LoRA and the configuration's recipe, trained for this."),
    ] = None,
    emotion: Annotated[
        list[str] | None,
        typer.Option("--emotion", "-e", help="The emotion of the adapters. Default: the configuration's first."),
    ] = None,
    config: ConfigFile = None, base: BaseName = None, data: Data = None,
    general: General = None, output: Output = None, skip_bad_clips: SkipBad = False,
) -> None:  # fmt: skip
    """Compare predicted with measured forgetting, for every curvature: calibration.json and calibration.svg."""
    from affetto.laboratory.calibration import fit_table, require_general, require_no_expressive_base
    from affetto.pipeline import calibrate as calibrate_all
    from affetto.pipeline import prepare_clips, with_clips
    from affetto.progress import show

    settings, emotions = settings_of(config, emotion, base=base, data=data, general=general, output_dir=output)
    if emotion is not None and len(emotions) > 1:
        raise ConfigError(
            f"only adapters of one emotion can be calibrated at a time: name one, such as --emotion {emotions[0]}"
        )
    if not adapters:
        require_no_expressive_base(settings)
    _check_adapters(adapters or (), settings)
    prepared = prepare_clips(settings, emotions[:1], skip_bad_clips=skip_bad_clips)
    with_clips(prepared, emotions[:1], are_named=True)
    require_general(prepared)
    show(fit_table(calibrate_all(settings, emotions[0], prepared, adapters or (), command=command_line())))


@app.command("predict-forgetting")
def predict_forgetting(
    adapter: Annotated[Path, typer.Argument(help="Folder of any LoRA adapter of the base, affetto's or not.")],
    config: ConfigFile = None, base: BaseName = None, data: Data = None, general: General = None,
    intensity: Annotated[list[float] | None, typer.Option(help="Strength; repeat for several.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    skip_bad_clips: SkipBad = False,
) -> None:  # fmt: skip
    """Predict from an adapter's weights how much the base will forget, without speaking a word."""
    from affetto.files import to_json
    from affetto.laboratory.calibration import INTENSITIES, forecast_table
    from affetto.laboratory.calibration import predict_forgetting as predict
    from affetto.pipeline import prepare_clips
    from affetto.progress import show
    from affetto.speak.arguments import require_strength

    for value in intensity or ():
        require_strength(value)
    settings, _ = settings_of(config, None, base=base, data=data, general=general)
    _check_adapters([adapter], settings)
    # With `general: self` the base speaks in the voices of the emotional clips.
    voices = settings.emotions if settings.general == "self" else ()
    prepared = prepare_clips(settings, voices, skip_bad_clips=skip_bad_clips)
    rows = predict(settings, prepared, adapter, tuple(intensity or INTENSITIES))
    if as_json:
        typer.echo(to_json(rows))
    else:
        show(forecast_table(rows))


def _check_adapters(adapters: Sequence[Path], settings: Config) -> None:
    """AdapterError if one isn't an adapter of the base, before any clip is encoded."""
    if adapters:
        from affetto.adapters.checkpoints import check_adapter
        from affetto.model.base import find_base, weights_hash

        base_hash = weights_hash(find_base(settings.base))
        for adapter in adapters:
            check_adapter(adapter, base_hash)


@app.command()
def ablate(
    emotion: EachEmotion = None, config: ConfigFile = None, base: BaseName = None, data: Data = None,
    general: General = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="A method by name; repeat for several. Default: all.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs per method and emotion. Default: 3.")] = None,
    sentences: Annotated[
        int | None, typer.Option(min=1, help="Held-out sentences that each run is judged on. Default: 60.")
    ] = None,
    folder: Annotated[
        Path,
        typer.Option("--folder", help="Folder for runs and results. Run again to continue, or several to share work."),
    ] = Path("ablation"),
    table_only: Annotated[bool, typer.Option("--table", help="Don't train: write the results so far.")] = False,
    skip_bad_clips: SkipBad = False,
) -> None:  # fmt: skip
    """Compare preservation methods at matched expressivity: ablation.json, ablation.md and ablation.svg."""
    from affetto.files import make_writable
    from affetto.laboratory.ablation import ablate as run_ablation
    from affetto.laboratory.ablation import cells, check_cells, read_rows, write_comparison
    from affetto.laboratory.methods import METHODS
    from affetto.pipeline import prepare_clips, with_clips

    if table_only:
        refuse({
            "--emotion": emotion, "--config": config, "--base": base, "--data": data, "--general": general,
            "--method": method, "--seeds": seeds, "--sentences": sentences, "--skip-bad-clips": skip_bad_clips or None,
        }, "--table only writes the results so far in --folder")  # fmt: skip
        rows = read_rows(folder)
    else:
        settings, emotions = settings_of(config, emotion, base=base, data=data, general=general)
        settings = settings.model_copy(update={"evaluation_sentences": sentences or 60})
        wanted = cells(method or list(METHODS), emotions, seeds or 3)
        check_cells(settings, wanted, folder)
        make_writable(folder)
        prepared = prepare_clips(settings, emotions, skip_bad_clips=skip_bad_clips, are_named=are_named(emotion))
        kept = with_clips(prepared, emotions, are_named=are_named(emotion))
        wanted = [cell for cell in wanted if cell.emotion in kept]
        rows = run_ablation(settings, wanted, prepared, folder, command_line())
    typer.echo(write_comparison(rows, folder))
