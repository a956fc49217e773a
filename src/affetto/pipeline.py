"""The verbs of the main road but for evaluate: prepare, train, calibrate, report. `affetto.run` goes all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """Check and code the clips of `emotions` and the general speech; everything is cached.

    Before anything else it is seen that the output folder and the cache can be written (DataError), and that the base
    is of a kind that speaks (BaseModelError). Bad clips are listed in one table. They stop the run unless
    `skip_bad_clips`; the good ones stay coded either way. `skip_datasets` takes what was coded before as it is, and
    renders, checks and codes nothing. With `general: self` the base speaks the general clips, and those of the data are
    left alone. Of emotions that aren't named by the user (`are_named`) the miniature may know a few.
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
                f"{counted(prepared.num_bad, 'clip')} can't be used (table above). Mend them, or go on with the good "
                "ones: --skip-bad-clips. What was coded is kept"
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
    """Those of `emotions` that no clip is of; `base`, the expressive base, is of all."""
    found = {clip.emotion for clip in prepared.clips} | {EXPRESSIVE}
    return [name for name in emotions if name not in found]


def with_clips(prepared: Prepared, emotions: Sequence[str], *, are_named: bool) -> list[str]:
    """Those of `emotions` that clips are of. DataError where none is, and where one isn't that the user named."""
    missing = without_clips(prepared, emotions)
    if missing and (are_named or len(missing) == len(emotions)):
        raise DataError(f"there is nothing to train {', '.join(missing)} on; what was coded is kept")
    return [name for name in emotions if name not in missing]


def _labels(config: Config, emotions: Sequence[str]) -> Sequence[str]:
    """Whose clips are needed: every emotion's where the expressive base is to be trained."""
    needs_all = EXPRESSIVE in emotions or (emotions and lacks_expressive_base(config))
    return config.emotions if needs_all else emotions


def speak_general(config: Config, prepared: Prepared, *, use_cached_only: bool = False) -> Prepared:
    """`prepared` with as much of the base's own speech as a run and its evaluation use, whatever the run's seed."""
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
    """Manifests and folders of the configuration; `miniature` are its own clips, rendered where they aren't there yet.

    Emotions that are named and the miniature can't act must come from the other sources. A folder of that name is
    `./miniature`.
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
    """Train each of `emotions` in turn, or all in one run; the folder of each as soon as it is trained and the
    intensity found that it is recommended at.

    Where `expressive_base` is on and there is none yet, it is trained first.
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
    """Train the adapter that the emotions build on, where the configuration asks for one and there is none yet."""
    from affetto.training.loop import train

    if lacks_expressive_base(config):
        say(f"{EXPRESSIVE} (the expressive base, once for all emotions)", style="bold")
        train(config, EXPRESSIVE, prepared, resume=True, command=command)


def calibrate(
    config: Config, emotion: str, prepared: Prepared, adapters: Sequence[Path] = (), *, command: str = ""
) -> list[Fit]:
    """Hold every curvature's prediction against measured forgetting; `calibration.json` and `calibration.svg`.

    Without `adapters` it trains its own into `calibration/`: plain LoRA and the configuration's recipe, each kept at
    `NUM_CHECKPOINTS` moments of its run. What was trained before is used again.
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
            name: _train_kept(config.model_copy(update=changes), emotion, prepared, name, command)
            for name, changes in {"plain LoRA": PLAIN_LORA, "preserved": {}}.items()
        }
    points = calibrate_adapters(config, prepared, families, command)
    written = read_json(config.output_dir / "calibration.json")
    write_text(config.output_dir / "calibration.svg", calibration_picture(written).standalone() + "\n")
    return fits(points)


NUM_CHECKPOINTS = 8


def _train_kept(config: Config, emotion: str, prepared: Prepared, name: str, command: str) -> list[Path]:
    """Train into `calibration/<name>` and return the adapters that were kept on the way."""
    from affetto.training.loop import train

    output = config.output_dir / "calibration" / name.replace(" ", "_")
    chosen = config.model_copy(update={"output_dir": output, "num_checkpoints": NUM_CHECKPOINTS})
    try:
        folder = train(chosen, emotion, prepared, resume=True, command=command)
    except CheckpointError:
        say(f"{output} is of other settings, another base or other clips: trained anew")
        folder = train(chosen, emotion, prepared, command=command)
    return sorted((folder / "checkpoints").glob("step-*"))


def unmet_budgets(config: Config, emotions: Sequence[str]) -> list[str]:
    """What to tell of each trained emotion that didn't meet the configuration's forgetting budget."""
    from affetto.report.run_files import read_facts
    from affetto.training.facts import unmet_budget

    if config.forgetting_budget is None:
        return []
    folders = (config.model_of(emotion) for emotion in emotions)
    told = (unmet_budget(read_facts(folder / "best" / "affetto.json")) for folder in folders)
    return [warning for warning in told if warning]


def report(config: Config, emotion: str) -> Path:
    """Draw `emotion_models/<emotion>/report.html`, and the adapter's card, from what training and evaluation wrote.

    DataError where one of it isn't there yet, is damaged, or isn't of base and adapter.
    """
    from affetto.evaluate.results import read_results
    from affetto.report.adapter_card import write_adapter_card
    from affetto.report.players import AudioCell, AudioRow
    from affetto.report.run_files import read_calibration, read_whole_facts, report_facts
    from affetto.report.run_page import write_report
    from affetto.training.log import read_log

    folder = config.model_of(emotion)
    results_path = config.results_of(emotion)
    facts_path = folder / "best" / "affetto.json"
    for path, verb in ((facts_path, "train"), (results_path, "evaluate")):
        if not path.is_file():
            raise DataError(f"there is no {path} to report on: affetto {verb} --emotion {emotion}")
    results, facts = read_results(results_path), read_whole_facts(facts_path)
    if not {("base", "base"), (emotion, "adapter")} <= {(item["name"], item["role"]) for item in results["systems"]}:
        raise DataError(
            f"{results_path} isn't of base and adapter: affetto evaluate --emotion {emotion} makes it again"
        )
    log = read_log(folder / "training_log.jsonl")
    calibration = read_calibration(config.output_dir / "calibration.json", facts["base"]["hash"])
    write_adapter_card(folder / "best", facts, results, config.output_dir)
    systems = {system["name"]: system for system in results["systems"]}
    by_prompt: dict[tuple[str, str | None, str | None], Any] = {
        (name, row["prompt"], row["text"]): row for name in ("base", emotion) for row in systems[name]["files"]
    }
    rows = []
    for row in systems[emotion]["files"][:_PLAYERS]:
        cells = []
        for title, key in (
            ("base", ("base", "emotional", row["text"])),
            (emotion, (emotion, "emotional", row["text"])),
            (f"{emotion}, plain prompt", (emotion, "plain", row["text"])),
        ):
            if found := by_prompt.get(key):
                cells.append(AudioCell(title, config.output_dir / found["file"], _said(found["values"])))
        rows.append(AudioRow(str(row["text"]), "emotional", str(row["speaker"]), row["seed"], tuple(cells)))
    return write_report(
        folder / "report.html",
        [results],
        title=f"{emotion.capitalize()} on {facts['base']['id']}",
        audio=rows,
        training_log=log,
        facts=report_facts(facts, results),
        frontier=facts["frontier"],
        calibration=calibration,
    )


_PLAYERS = 8
"""Sentences with players in the report."""


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "transcript": values.get("heard"), "label": values.get("first_choice"), "posterior": values.get("posterior")
    }  # fmt: skip
