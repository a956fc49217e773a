"""The stages of a run as functions: prepare, train, report, and calibrate. `affetto.run` calls them in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affetto.audio.checks import problem_table
from affetto.codes.prepare import Prepared, prepare
from affetto.config import EXPRESSIVE, Config
from affetto.errors import CheckpointError, DataError, counted
from affetto.files import cache_root, expanded, make_writable, read_json
from affetto.intensity import recommend_as_acted
from affetto.model.base import MINIATURE, find_base, has_text_stream
from affetto.processes import in_turns
from affetto.progress import console, say
from affetto.training.expressive import lacks_expressive_base

if TYPE_CHECKING:
    from affetto.laboratory.calibration import Fit


def prepare_clips(
    config: Config, emotions: Sequence[str], *, skip_bad_clips: bool = False, skip_datasets: bool = False,
    are_named: bool = True,
) -> Prepared:  # fmt: skip
    """Check the clips of `emotions` and the general speech, and encode them with the base's codec; all is cached.

    First of all the output folder and the cache must be writable (DataError), and the base of a kind that can speak
    (BaseModelError). Bad clips are listed in one table. They stop the run unless `skip_bad_clips` is given; the codes
    of the good ones are kept either way. `skip_datasets` uses what was encoded before and renders, checks and encodes
    nothing. With `general: self` the base speaks the general clips, and the data's own are ignored. Unless the user
    named the emotions (`are_named`), the miniature may lack some of them.
    """
    from affetto.judges.aligner import with_timed_words

    for folder in (config.output_dir, cache_root()):
        make_writable(folder)
    is_own = config.general == "self"
    labels = _labels(config, emotions)
    with in_turns():
        base_folder = find_base(config.base)
        prepared = prepare(
            find_sources(config, labels, do_render=not skip_datasets, are_named=are_named),
            base_folder,
            emotions=config.emotions,
            only=labels,
            by_speaker=config.split_by_speaker,
            use_cached_only=skip_datasets,
            use_general=not is_own,
            needs_silence=has_text_stream(base_folder),
        )
        prepared = with_timed_words(prepared, config.base, config.judges, use_cached_only=skip_datasets)
    if prepared.problems:
        console.print(problem_table(prepared.problems))
        if not skip_bad_clips and prepared.num_bad:
            raise DataError(
                f"{counted(prepared.num_bad, 'clip')} can't be used (table above). Fix them, or continue with the good "
                "ones: --skip-bad-clips. The codes made so far are kept"
            )
    if is_own:
        with in_turns():
            prepared = speak_general(config, prepared, use_cached_only=skip_datasets)
            prepared = with_timed_words(prepared, config.base, config.judges, use_cached_only=skip_datasets)
    counts = Counter(clip.emotion or "general" for clip in prepared.clips if clip.split is not None)
    say("clips ready: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    for name in without_clips(prepared, emotions):
        say(f"no clip is labelled {name!r}, so it can't be trained", style="yellow")
    return prepared


def without_clips(prepared: Prepared, emotions: Sequence[str]) -> list[str]:
    """Those of `emotions` that have no clip. `base`, the expressive base, learns from the clips of all."""
    found = {clip.emotion for clip in prepared.clips} | {EXPRESSIVE}
    return [name for name in emotions if name not in found]


def with_clips(prepared: Prepared, emotions: Sequence[str], *, are_named: bool) -> list[str]:
    """Those of `emotions` that have clips. DataError if none has, or if one that the user named has none."""
    missing = without_clips(prepared, emotions)
    if missing and (are_named or len(missing) == len(emotions)):
        raise DataError(f"there is nothing to train {', '.join(missing)} on; the codes made so far are kept")
    return [name for name in emotions if name not in missing]


def _labels(config: Config, emotions: Sequence[str]) -> Sequence[str]:
    """The emotions whose clips are needed: all of them if the expressive base is yet to be trained."""
    needs_all = EXPRESSIVE in emotions or (emotions and lacks_expressive_base(config))
    return config.emotions if needs_all else emotions


def speak_general(config: Config, prepared: Prepared, *, use_cached_only: bool = False) -> Prepared:
    """`prepared` with as much of the base's own speech as a run and its evaluation need, whatever the run's seed."""
    import torch

    from affetto.preserve.self_speech import with_self_speech

    counts = {
        "train": config.rehearsal_buffer_size + config.fisher_clips,
        "validation": config.validation_clips,
        "test": config.evaluation_clips,
    }
    return with_self_speech(
        prepared,
        config.base,
        counts,
        by_speaker=config.split_by_speaker,
        device="cuda" if torch.cuda.is_available() else "cpu",
        use_cached_only=use_cached_only,
    )


def find_sources(
    config: Config, emotions: Sequence[str], *, do_render: bool = True, are_named: bool = True
) -> list[Path]:
    """The configuration's data as paths. `miniature` stands for its own clips, which are rendered if they are missing;
    a folder of that name is `./miniature`.

    Emotions that the user named and the miniature can't act must come from the other sources.
    """
    sources: list[Path] = []
    for name in config.data:
        if name == MINIATURE:
            from affetto.miniature.data import ACTED, miniature_sources

            may_lack = len(config.data) > 1 or not are_named
            acted = [emotion for emotion in emotions if emotion in ACTED] if may_lack else emotions
            sources += miniature_sources(acted, do_render=do_render, with_general=config.general == "data")
        else:
            sources.append(expanded(name))
    return sources


def train_emotions(
    config: Config, emotions: Sequence[str], prepared: Prepared, *, together: bool = False, resume: bool = False,
    command: str = "",
) -> Iterator[Path]:  # fmt: skip
    """Train each of `emotions` in turn, or all `together` in one run; yields each one's folder once it is trained and
    its recommended intensity is known.

    With `expressive_base` on, and no such base yet, that is trained first.
    """
    from affetto.training.loop import train, train_together

    if EXPRESSIVE not in emotions:
        train_expressive_base(config, prepared, command=command)
    if together:
        say(", ".join(emotions), style="bold")
        folders = train_together(config, emotions, prepared, resume=resume, command=command)
        for emotion, folder in zip(emotions, folders, strict=True):
            recommend_as_acted(config, emotion, prepared)
            yield folder
        return
    for emotion in sorted(emotions, key=lambda name: name != EXPRESSIVE):
        say(emotion, style="bold")
        folder = train(config, emotion, prepared, resume=resume, command=command)
        recommend_as_acted(config, emotion, prepared)
        yield folder


def train_expressive_base(config: Config, prepared: Prepared, *, command: str = "") -> None:
    """Train the adapter that the emotions build on, if the configuration asks for one and there is none yet."""
    from affetto.training.loop import train

    if lacks_expressive_base(config):
        say(f"{EXPRESSIVE} (the expressive base, once for all emotions)", style="bold")
        train(config, EXPRESSIVE, prepared, resume=True, command=command)


def calibrate(
    config: Config, emotion: str, prepared: Prepared, adapters: Sequence[Path] = (), *, command: str = ""
) -> list[Fit]:
    """Compare every curvature's predicted forgetting with what is measured; `calibration.json` and `calibration.svg`.

    Without `adapters` it trains its own into `calibration/`: plain LoRA and the configuration's recipe, each saved at
    `NUM_CHECKPOINTS` points of its run. Adapters of an earlier calibration are reused.
    """
    from affetto.files import write_text
    from affetto.laboratory.calibration import calibrate as calibrate_adapters
    from affetto.laboratory.calibration import fits
    from affetto.laboratory.methods import PLAIN_LORA
    from affetto.report.calibration_picture import calibration_picture

    if adapters:
        families = {"given": list(adapters)}
    else:
        families = {
            name: _train_with_checkpoints(config.model_copy(update=changes), emotion, prepared, name, command)
            for name, changes in {"plain LoRA": PLAIN_LORA, "preserved": {}}.items()
        }
    points = calibrate_adapters(config, prepared, families, command)
    written = read_json(config.output_dir / "calibration.json")
    write_text(config.output_dir / "calibration.svg", calibration_picture(written).standalone() + "\n")
    return fits(points)


NUM_CHECKPOINTS = 8
"""Adapters that `calibrate` saves of each training run."""


def _train_with_checkpoints(config: Config, emotion: str, prepared: Prepared, name: str, command: str) -> list[Path]:
    """Train into `calibration/<name>`; returns the folders of the adapters saved along the way."""
    from affetto.training.loop import train

    output = config.output_dir / "calibration" / name.replace(" ", "_")
    chosen = config.model_copy(update={"output_dir": output, "num_checkpoints": NUM_CHECKPOINTS})
    try:
        folder = train(chosen, emotion, prepared, resume=True, command=command)
    except CheckpointError:
        say(f"{output} was made with other settings, another base or other clips: training it anew")
        folder = train(chosen, emotion, prepared, command=command)
    return sorted((folder / "checkpoints").glob("step-*"))


def unmet_budgets(config: Config, emotions: Sequence[str]) -> list[str]:
    """A warning for each trained emotion that didn't meet the configuration's forgetting budget."""
    from affetto.report.run_files import read_facts
    from affetto.training.facts import unmet_budget

    if config.forgetting_budget is None:
        return []
    folders = (config.model_of(emotion) for emotion in emotions)
    warnings = (unmet_budget(read_facts(folder / "best" / "affetto.json")) for folder in folders)
    return [warning for warning in warnings if warning]


def report(config: Config, emotion: str) -> Path:
    """Draw `emotion_models/<emotion>/report.html`, and the adapter's card, from what training and evaluation wrote.

    DataError where a file is missing or damaged, or where the results aren't of base and adapter.
    """
    from affetto.report.emotion_report import write_emotion_report

    return write_emotion_report(emotion, config.model_of(emotion), config.results_of(emotion), config.output_dir)
