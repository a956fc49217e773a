"""Run folders as affetto writes them, with whatever numbers a test wants: everything healthy unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from affetto.config import Config
from affetto.evaluate.judge_facts import judge_facts
from affetto.evaluate.matching import Match
from affetto.evaluate.results import (
    VALUE_NAMES,
    FileRow,
    Metric,
    PerCodebook,
    Results,
    Retention,
    System,
    Value,
    build_results,
    write_results,
)
from affetto.evaluate.summary import build_system, compare
from affetto.files import write_json
from affetto.judges.choice import Judges
from affetto.preserve.budget import ForgettingBudget
from affetto.training.checkpoint import Progress
from affetto.training.facts import final_facts
from affetto.training.log import TrainingLog
from affetto.training.loop import lr_factor

STEPS_PER_EPOCH, WORDS = 20, 20
_JUDGE = {"tier": "local", "licence": None, "sample_rate": 16_000}
JUDGES = cast(
    Judges,
    SimpleNamespace(
        emotion=SimpleNamespace(id="ear", labels=("sad", "happy"), **_JUDGE),
        words=SimpleNamespace(id="pen", **_JUDGE),
        quality=SimpleNamespace(id="nose", **_JUDGE),
        reason=lambda kind: f"no judge for {kind}",
    ),
)


class Silent:
    """An accelerator that only keeps the log."""

    is_main_process = True

    def log(self, values: object, step: int) -> None:
        pass


@dataclass(frozen=True)
class Spoken:
    """What one system's files score, each the same but for the emotion, which a share of them conveys."""

    recall: float = 0.7
    wer: float = 0.2
    mos: float = 2.5
    posterior: float | None = None
    """Mean posterior; the recall unless given."""
    stop_failures: float = 0.0
    failed: float = 0.0
    n: int = 40


@dataclass(frozen=True)
class Made:
    """A run to be written."""

    configuration: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    speakers: tuple[str, ...] = ("ann", "bob")
    losses: tuple[float, float] = (5.0, 3.2)
    """Training loss on emotional clips, of the base and at the end."""
    jumps: Mapping[int, Mapping[str, float | None]] = field(default_factory=dict)
    """Terms of the training rows of these steps."""
    emotion_nll: tuple[float, ...] = (3.9, 3.5, 3.4, 3.36, 3.35)
    """By epoch, on validation."""
    general_kl: tuple[float | None, ...] = (0.005,) * 5
    recommended: float = 1.0
    matched: float | None = None
    """Strength of the clips' at the highest intensity, 1.25, which is recommended then; None matches nothing."""
    frontier_kl: float | None = 0.005
    in_budget: tuple[float, ...] = (3.9, 3.5, 3.4, 3.36, 3.35)
    """With a `forgetting_budget`, the emotion's NLL inside it, by epoch."""
    is_finished: bool = True

    base: Spoken = field(default_factory=lambda: Spoken(recall=0.0))
    adapter: Spoken = field(default_factory=Spoken)
    plain: Spoken = field(default_factory=lambda: Spoken(recall=0.0))
    real: Spoken = field(default_factory=lambda: Spoken(recall=0.75, wer=0.1))
    delta_nll: tuple[float, float, float] = (0.002, 0.001, 0.003)
    kl: tuple[float, float, float] = (0.004, 0.003, 0.005)
    general_clips: int = 120
    is_evaluated: bool = True


def write_run(output: Path, made: Made, emotion: str = "happy") -> Path:
    """Write the run below `output`; returns `emotion_models/<emotion>`."""
    folder = output / "emotion_models" / emotion
    write_log(folder, made)
    write_json(folder / "best" / "affetto.json", make_facts(made, emotion))
    if made.is_evaluated:
        write_results(output / "evaluation_results" / f"{emotion}_results.json", make_results(made, emotion))
    return folder


def write_log(folder: Path, made: Made) -> None:
    """A row every five steps, a validation every epoch."""
    config = _config(made)
    num_steps = STEPS_PER_EPOCH * len(made.emotion_nll)
    log = TrainingLog(folder / "training_log.jsonl", 0, Silent(), 1.25)
    for step in [1, *range(5, num_steps + 1, 5)]:
        lr = config.learning_rate * lr_factor(step - 1, num_steps, config.warmup_ratio)
        first, last = made.losses
        loss = first if step == 1 else last + 0.02 * (step % 2)
        terms: dict[str, float | None] = {
            "emotion_ce_c0": loss, "emotion_ce_depth": loss, "ewc": 0.001, "total": 0.6 * loss,
            "gradient_norm": 0.4 + 0.1 * (step % 3),
        }  # fmt: skip
        log.write(step, step / STEPS_PER_EPOCH, "train", lr, {**terms, **made.jumps.get(step, {})})
        if step % STEPS_PER_EPOCH == 0:
            nll, kl = made.emotion_nll[step // STEPS_PER_EPOCH - 1], made.general_kl[step // STEPS_PER_EPOCH - 1]
            values = {"emotion_nll": nll, "general_nll": kl, "general_kl": kl, "value": nll + (kl or 0.0)}
            if config.forgetting_budget is not None:
                values["emotion_nll_in_budget"] = made.in_budget[step // STEPS_PER_EPOCH - 1]
            log.write(step, step / STEPS_PER_EPOCH, "validation", lr, values)


def make_facts(made: Made, emotion: str) -> dict[str, Any]:
    """`affetto.json`."""
    values = [nll + (kl or 0.0) for nll, kl in zip(made.emotion_nll, made.general_kl, strict=True)]
    best = min(range(len(values)), key=lambda epoch: values[epoch])
    data = {"emotional_clips": 300, "rehearsed_clips": 240, "validation_clips": 40, "prepared_clips": 900}
    facts = {
        "format": "affetto.adapter/1", "emotion": emotion, "base": {"id": "b", "hash": "0", "num_codebooks": 8},
        "recommended_intensity": 1.0, "frontier": None, "trained_speakers": list(made.speakers),
        "data": {**data, "bad_clips": 0, **made.data},
        "configuration": _config(made).model_dump(mode="json", exclude={"output_dir"}),
        "command": "affetto train --emotion happy --config my.yaml --resume",
    }  # fmt: skip
    step = (best + 1) * STEPS_PER_EPOCH
    if not made.is_finished:
        return {**facts, "validation": {"step": step, "value": values[best]}}
    points = [
        {"intensity": intensity, "kl": made.frontier_kl, "emotion_nll": 3.35 + abs(intensity - made.recommended)}
        for intensity in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    ]
    asked = _config(made).forgetting_budget
    budget = ForgettingBudget(asked) if asked is not None else None
    final = final_facts(facts, Progress(step, values[best], step, ""), points, {}, budget)
    if made.matched is not None:
        looks = {1.0: made.matched - 0.2, 1.25: made.matched}
        final |= {"recommended_intensity": 1.25, "matching": Match(1.25, looks, 9.0).document()}
    return final


def make_results(made: Made, emotion: str) -> Results:
    """The evaluation, summarised by the package itself."""
    base, real = _rows(made.base, "base", "emotional"), _rows(made.real, "real", None)
    plain_base = [FileRow(**{**row, "prompt": "plain"}) for row in base]
    ours = [*_rows(made.adapter, emotion, "emotional"), *_rows(made.plain, emotion, "plain")]
    systems: list[System] = [
        build_system("base", "base", [*base, *plain_base], JUDGES, 0.0),
        build_system(emotion, "adapter", ours, JUDGES, made.recommended),
        build_system("real", "real", real, JUDGES),
    ]
    comparisons = [
        compare(ours, [*base, *plain_base], system=emotion, against="base", prompt=prompt)
        for prompt in ("emotional", "plain")
    ]
    retention = Retention(
        num_clips=made.general_clips, num_codes=1000, delta_nll=_metric(made.delta_nll, made.general_clips),
        kl=_metric(made.kl, made.general_clips), per_codebook=PerCodebook(delta_nll=[0.0] * 8, kl=[made.kl[0]] * 8),
    )  # fmt: skip
    judges = judge_facts(JUDGES, systems[-1]["metrics"]["recall"])
    return build_results(emotion, "affetto evaluate", judges, systems, comparisons, retention)


def _config(made: Made) -> Config:
    return Config(**({"num_epochs": 5} | dict(made.configuration)))


def _metric(ends: Sequence[float], n: int) -> Metric:
    value, low, high = ends
    return Metric(value=value, low=low, high=high, n=n, unit="nats/code", reason=None)


def _rows(spoken: Spoken, name: str, prompt: Any) -> list[FileRow]:
    """Files of which the first ones convey the emotion, and the last ones failed."""
    return [
        FileRow(
            file=f"{name}/{prompt}/{index}.wav", prompt=prompt, text=f"sentence {index}", speaker="ann", seed=index,
            duration_s=2.0, error="empty file" if index >= spoken.n * (1 - spoken.failed) else None,
            values=_values(spoken, index),
        )
        for index in range(spoken.n)
    ]  # fmt: skip


def _values(spoken: Spoken, index: int) -> dict[str, Value]:
    is_heard = index < round(spoken.recall * spoken.n)
    known: dict[str, Value] = {
        "recall": int(is_heard), "first_choice": "happy" if is_heard else "sad",
        "posterior": spoken.recall if spoken.posterior is None else spoken.posterior,
        "word_edits": round(spoken.wer * WORDS), "num_words": WORDS, "char_edits": 0, "num_chars": 5 * WORDS,
        "mos_overall": spoken.mos, "stop_failures": int(index < round(spoken.stop_failures * spoken.n)),
    }  # fmt: skip
    return dict.fromkeys(VALUE_NAMES) | known
