"""The command line: the verbs of the main road. Each reads its options and calls one function of the library."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import affetto
from affetto.commands.convert import app as convert_app
from affetto.commands.data import app as data_app
from affetto.commands.forgetting import app as preserve_app
from affetto.commands.listen import app as listen_app
from affetto.commands.options import (
    BUDGET_NOT_MET,
    FILES_FAILED,
    BaseName,
    ConfigFile,
    Data,
    DepthTemperature,
    Emotion,
    General,
    Judge,
    Output,
    Resume,
    SkipBad,
    SkipDatasets,
    Temperature,
    are_named,
    command_line,
    earlier_turn,
    is_together,
    pairs_of,
    require_suffix,
    settings_of,
)  # fmt: skip
from affetto.commands.output import until_unread, write_anything
from affetto.commands.plan import app as plan_app
from affetto.commands.reporting import app as reporting_app
from affetto.commands.scoring import app as scoring_app
from affetto.errors import MENDABLE, AffettoError, ConfigError, Interrupted

if TYPE_CHECKING:
    from affetto.config import Config

VERBS = (
    "run", "prepare", "train", "speak", "evaluate", "score", "report", "doctor", "listen", "data", "plan", "convert",
    "predict-forgetting", "calibrate", "ablate", "schema", "miniature",
)  # fmt: skip
"""In the order of `affetto --help`: a run's own verbs, then those that serve it, then the laboratory's."""


class _InOrder(TyperGroup):
    """Lists the verbs in the order of `VERBS`."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return sorted(self.commands, key=VERBS.index)


app = typer.Typer(
    cls=_InOrder,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
miniature_app = typer.Typer(
    help="The small world that affetto ships: corpus, codec, base and judges.", no_args_is_help=True
)
app.add_typer(miniature_app, name="miniature")
app.add_typer(data_app, name="data")
app.add_typer(listen_app, name="listen")
app.add_typer(preserve_app)
app.add_typer(plan_app)
app.add_typer(convert_app)
app.add_typer(reporting_app)
app.add_typer(scoring_app)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"affetto {affetto.__version__}")
        raise typer.Exit


@app.callback(help="Teach a speech language model to speak with emotion, prove that it forgot nothing, and use it.")
def _for_every_verb(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def prepare(
    emotion: Emotion = None, config: ConfigFile = None, base: BaseName = None, data: Data = None,
    general: General = None, output: Output = None,
    skip_bad_clips: SkipBad = False,
) -> None:  # fmt: skip
    """Check the clips and encode them for the base. Cached: a second time takes seconds."""
    from affetto.pipeline import prepare_clips, with_clips

    settings, emotions = settings_of(
        config, emotion, with_base=True, base=base, data=data, general=general, output_dir=output
    )
    prepared = prepare_clips(settings, emotions, skip_bad_clips=skip_bad_clips, are_named=are_named(emotion))
    with_clips(prepared, emotions, are_named=are_named(emotion))


@app.command()
def train(
    emotion: Emotion = None, config: ConfigFile = None, base: BaseName = None, data: Data = None,
    general: General = None, output: Output = None,
    skip_bad_clips: SkipBad = False, resume: Resume = False,
) -> None:  # fmt: skip
    """Train one adapter per emotion, with EWC, distillation and rehearsal.

    Without --emotion, emotions of the configuration that have no clips are left out.

    `--emotion base` trains the expressive base, one adapter over all emotions, on which the others build where the
    configuration has expressive_base: true.

    Exit status 3: everything is trained and written, but an emotion exceeds the configuration's forgetting_budget.
    """
    from affetto.pipeline import prepare_clips, train_emotions, with_clips
    from affetto.progress import say
    from affetto.training.runtime import check_installed

    settings, emotions = settings_of(
        config, emotion, with_base=True, base=base, data=data, general=general, output_dir=output
    )
    check_installed(settings)
    prepared = prepare_clips(settings, emotions, skip_bad_clips=skip_bad_clips, are_named=are_named(emotion))
    emotions = with_clips(prepared, emotions, are_named=are_named(emotion))
    for folder in train_emotions(
        settings, emotions, prepared, together=is_together(emotion), resume=resume, command=command_line()
    ):
        say(f"{folder.name}: {folder / 'best'}")
    _end_by_budget(settings, emotions)


@app.command()
def doctor(
    run: Annotated[Path, typer.Argument(help="A run's output folder, or emotion_models/<emotion> in it.")],
    emotion: Annotated[
        list[str] | None,
        typer.Option("--emotion", "-e", help="An emotion of the run; repeat for several. Default: all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table (docs/doctor.md).")] = False,
) -> None:
    """Diagnose a run (weak emotion, forgetting, instability, bad data): what is wrong, why and what to change first."""
    from affetto.doctor.diagnose import examine
    from affetto.doctor.findings import to_document
    from affetto.doctor.table import render
    from affetto.files import to_json
    from affetto.progress import show

    diagnoses = examine(run, emotion)
    if as_json:
        typer.echo(to_json(to_document(diagnoses)))
        return
    for diagnosis in diagnoses:
        show(render(diagnosis))


@app.command()
def run(
    emotion: Emotion = None, config: ConfigFile = None, base: BaseName = None, data: Data = None,
    general: General = None, output: Output = None,
    judge: Judge = None, skip_bad_clips: SkipBad = False, skip_datasets: SkipDatasets = False, resume: Resume = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Emotions at a time. Default: as many as CPUs and memory allow; one on a GPU."),
    ] = None,
) -> None:  # fmt: skip
    """Prepare, train, evaluate and report, for one emotion or all. `scripts/run_emotion_finetuning.sh` calls this.

    Exit status when everything is done and written: 3 if an emotion exceeds the configuration's forgetting_budget,
    else 4 if some files could not be scored.
    """
    from affetto import run as whole_run
    from affetto.config import EXPRESSIVE

    judges = pairs_of(judge, "--judge")
    settings, emotions = settings_of(
        config, emotion, with_base=True, base=base, data=data, general=general, output_dir=output, judges=judges
    )
    reports = whole_run.run(
        settings, emotions, command=command_line(), are_named=are_named(emotion), skip_bad_clips=skip_bad_clips,
        skip_datasets=skip_datasets, together=is_together(emotion), resume=resume, jobs=jobs,
    )  # fmt: skip
    done = {EXPRESSIVE, *(page.parent.name for page in reports)}
    emotions = [name for name in emotions if name in done]
    _end_by_budget(settings, emotions)
    if whole_run.failed_files(settings, emotions):
        raise typer.Exit(FILES_FAILED)


@app.command()
def speak(
    text: Annotated[str, typer.Argument(help="What to say.")],
    emotion: Annotated[
        str | None,
        typer.Option("--emotion", "-e", help="A name, or a blend such as happy=0.6,sad=0.4. Default: the base."),
    ] = None,
    intensity: Annotated[
        float | None, typer.Option(help="Strength; 0 is the base. Default: what training recommended for each emotion.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Sound file to write.")] = Path("speech.wav"),
    base: Annotated[str, typer.Option("--base", help="Base model: miniature, a folder, or a hub id.")] = "miniature",
    models: Annotated[
        Path, typer.Option("--models", help="Folder of the adapters: one folder per emotion, with best/ in it.")
    ] = Path("emotion_models"),
    speaker: Annotated[int, typer.Option(min=0, help="The base's number of the speaker.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same speech.")] = 0,
    temperature: Temperature = None,
    depth_temperature: DepthTemperature = None,
    takes: Annotated[
        int | None,
        typer.Option(min=1, help="How often it is said; the best is kept. Default: 6; 1 with Moshi and Dia."),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            help="An earlier turn of the conversation: a sound file with its words in a .txt beside it. "
            "Write 1:FILE for speaker 1; FILE alone is --speaker's. Repeat for several, oldest first."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda. Default: the GPU if there is one; the miniature takes the CPU.")
    ] = None,
) -> None:
    """Speak a sentence with any trained emotion or blend of emotions, at any strength."""
    if not (math.isfinite(temperature or 0.0) and math.isfinite(depth_temperature or 0.0)):
        raise ConfigError("--temperature and --depth-temperature must be finite numbers")
    turns = [earlier_turn(turn, speaker) for turn in after or ()]
    from affetto.speak.to_file import speak_to_file

    speak_to_file(
        text, emotion, out, base=base, models=models, intensity=intensity, speaker=speaker, seed=seed,
        temperature=temperature, depth_temperature=depth_temperature, takes=takes, after=turns, device=device,
    )  # fmt: skip
    typer.echo(out)


@miniature_app.command("build")
def miniature_build(
    work: Annotated[Path, typer.Option("--work", help="Folder for intermediate files, to resume from.")] = Path(
        "miniature_build"
    ),
    install: Annotated[bool, typer.Option("--install", help="Replace the weights inside the package.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights and the order of batches.")] = 0,
    earlier: Annotated[
        Path | None,
        typer.Option("--from", help="An earlier miniature's assets, to train base and recogniser from.", exists=True),
    ] = None,
) -> None:
    """Build corpus, codec, base and judges from scratch (hours of CPU), and the model card that measures them."""
    from affetto.miniature.build import build

    build(work, install=install, seed=seed, earlier=earlier)


@miniature_app.command("measure")
def miniature_measure(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the model card goes.")] = Path(
        "miniature_card.md"
    ),
) -> None:
    """Measure the installed miniature and write its model card."""
    from affetto.files import make_writable
    from affetto.miniature.card import measure

    require_suffix(output, "--output", "the card is Markdown", ".md")
    make_writable(output.parent)
    measure(output)


def main() -> NoReturn:
    """Entry point. Errors that a user can mend, a full disk and too long a name included, come without a traceback."""
    write_anything()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's products are small here: threads would wait
    try:
        # None unless the command ended early: 0 after --help, 130 after Ctrl-C.
        status = until_unread(app)
    except Interrupted as stopped:
        typer.secho(str(stopped), fg="yellow", err=True)
        sys.exit(130)
    except (AffettoError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in MENDABLE:
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            error.show()  # type: ignore[attr-defined]
            sys.exit(int(error.exit_code))
        raise
    sys.exit(status or 0)


def _end_by_budget(settings: Config, emotions: list[str]) -> None:
    """Repeat the warning and exit with BUDGET_NOT_MET if an emotion didn't meet its forgetting budget."""
    from affetto.pipeline import unmet_budgets
    from affetto.progress import say

    if warnings := unmet_budgets(settings, emotions):
        for warning in warnings:
            say(warning, style="yellow")
        raise typer.Exit(BUDGET_NOT_MET)
