"""One adapter's run: what its steps need, how it is set up, and what it resumes from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from affetto.adapters.bank import AdapterBank
from affetto.adapters.checkpoints import read_checkpoint, save_checkpoint
from affetto.adapters.peft_files import read_adapter, save_adapter
from affetto.adapters.trained_clips import clip_hashes, read_trained
from affetto.codes.prepare import Prepared
from affetto.config import EXPRESSIVE, Config
from affetto.errors import CheckpointError, ConfigError, counted
from affetto.files import hash_text
from affetto.folders import recover_folder
from affetto.model.base import Base
from affetto.preserve.budget import ForgettingBudget
from affetto.preserve.curvature import Curvature
from affetto.preserve.ewc import ewc_penalty
from affetto.preserve.teacher import TeacherCache
from affetto.progress import say
from affetto.training.batches import Plan, plan_run
from affetto.training.checkpoint import Progress, has_state, load_state
from affetto.training.facts import run_facts
from affetto.training.log import TrainingLog
from affetto.training.optimizer import adamw
from affetto.training.runtime import timed
from affetto.training.step import LossWeights
from affetto.training.streams import Streams, loss_weights, teacher_answers
from affetto.training.validation import Validation

_NOT_DECISIVE = {
    "output_dir", "trackers", "judges", "matching_sentences", "evaluation_sentences", "evaluation_clips",
    "evaluation_strengths", "sampling_temperature", "sampling_depth_temperature", "sampling_takes", "base", "data",
    "emotions", "num_checkpoints",
}  # fmt: skip
"""Keys that may differ when a run is resumed: they don't affect it, or only through the base's and the rows' hashes."""


@dataclass(frozen=True)
class Run:
    """All that the steps of one adapter need. Adapters that are trained together share the first five fields."""

    config: Config
    accelerator: Any
    base: Base
    bank: AdapterBank
    curvature: Curvature | None
    emotion: str
    folder: Path
    streams: Streams
    weights: LossWeights
    teacher: TeacherCache | None
    validation: Validation
    plan: Plan
    optimizer: Any
    log: TrainingLog
    facts: Mapping[str, Any]
    trained: frozenset[str] | None
    """Hashes of the clips that it is trained on; None if its expressive base doesn't list its own."""
    budget: ForgettingBudget | None

    @property
    def adapters(self) -> list[str]:
        """The adapters whose sum speaks: the one in training and, where it has one, the expressive base below it."""
        return [name for name in self.bank.names if name in (EXPRESSIVE, self.emotion)]

    def penalty(self, step: int | None = None) -> Tensor:
        """The EWC penalty on the adapter as it is now; see `ewc_penalty`."""
        assert self.curvature is not None
        return ewc_penalty(self.curvature, self.bank.summed(self.adapters), step)


def prepared_run(
    config: Config, accelerator: Any, base: Base, bank: AdapterBank, curvature: Curvature | None, emotion: str,
    streams: Streams, prepared: Prepared, timings: dict[str, float], expressive: str | None, *, resume: bool,
    command: str, is_alone: bool,
) -> tuple[Run, Progress]:  # fmt: skip
    """Set up one adapter's run; returns it with the state that it starts from."""
    weights = loss_weights(config, streams, base)
    _say_weights(config, emotion, streams, weights, accelerator)
    facts = run_facts(config, emotion, base, prepared, streams, weights, command, expressive)
    with timed(timings, "teacher"):
        teacher = teacher_answers(config, base, streams, weights)
        validation = Validation(base, streams.validation_emotional, streams.validation_general)
    plan = _plan(config, streams)
    parameters = bank.parameters(emotion)
    optimizer = accelerator.prepare_optimizer(
        adamw(parameters.values(), config.learning_rate, config.weight_decay, config.optimizer_bits)
    )
    folder = config.model_of(emotion)
    key = _run_key(config, emotion, base, streams, expressive)
    state = _start(folder / "last", parameters, optimizer, key, accelerator, resume)
    log = TrainingLog(
        folder / "training_log.jsonl", state.step, accelerator, weights.ewc, "" if is_alone else f"{emotion}/"
    )
    budget = ForgettingBudget(config.forgetting_budget) if config.forgetting_budget else None
    run = Run(
        config, accelerator, base, bank, curvature, emotion, folder, streams, weights, teacher, validation, plan,
        optimizer, log, facts, _trained_hashes(config, streams, prepared, expressive), budget,
    )  # fmt: skip
    return run, state


def save_run(run: Run, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the adapter as it is now, the expressive base below it included; one of full rank as a whole checkpoint."""
    if run.bank.is_full(run.emotion):
        save_checkpoint(folder, run.bank, run.emotion, run.base.model, run.base.folder, facts, run.trained)
    else:
        save_adapter(folder, run.bank, run.adapters, run.base.id, facts, run.trained)


@torch.no_grad()
def restore_run(run: Run, folder: Path) -> None:
    """Put the adapter in `folder` back into the bank: its own factors, which come last in its file."""
    recover_folder(folder)
    stored = read_checkpoint(folder, run.bank) if run.bank.is_full(run.emotion) else read_adapter(folder)
    for site, a_RI, b_OR, scale in run.bank.factors(run.emotion):
        stored_a, stored_b = stored.tensors[site]
        rank = len(a_RI)
        a_RI.copy_(stored_a[-rank:])
        if b_OR is not None and stored_b is not None:
            b_OR.copy_(stored_b[:, -rank:] * (stored.scales[site] / scale))


def _start(
    last: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: Any,
    run_key: str,
    accelerator: Any,
    resume: bool,
) -> Progress:
    """The state to start from. A run that starts afresh deletes an earlier run's, which it must not be resumed from."""
    if resume and has_state(last):
        state = load_state(last, parameters, optimizer, run_key)
        best = recover_folder(last.with_name("best"))
        if state.best_value is not None and not best.is_dir():
            raise CheckpointError(f"{best}, the run's best adapter so far, is gone; start afresh without --resume")
        if accelerator.scaler is not None and state.loss_scaling is not None:
            accelerator.scaler.load_state_dict(dict(state.loss_scaling))
        if accelerator.is_main_process:
            say(f"resuming after step {state.step}")
        return state
    if accelerator.is_main_process:
        if resume:
            say(f"nothing to resume in {last}: starting afresh")
        for old in (last, last.with_name("checkpoints")):
            shutil.rmtree(old, ignore_errors=True)
    return Progress(0, None, None, run_key)


def _trained_hashes(
    config: Config, streams: Streams, prepared: Prepared, expressive: str | None
) -> frozenset[str] | None:
    """Hashes of the clips that the adapter learns from or is preserved on, those of the expressive base included."""
    rows = (*streams.emotional, *streams.rehearsal, *streams.fisher)
    below = read_trained(config.expressive_folder) if expressive else frozenset[str]()
    return None if below is None else clip_hashes(prepared.keys, (row.clip_id for row in rows)) | below


def _plan(config: Config, streams: Streams) -> Plan:
    return plan_run(
        [row.num_frames for row in streams.emotional],
        [row.num_frames for row in streams.rehearsal],
        batch_size=config.batch_size,
        accumulation=config.grad_accumulation_steps,
        replay_ratio=config.replay_ratio,
        num_epochs=config.num_epochs,
        seed=config.seed,
    )


def _run_key(config: Config, emotion: str, base: Base, streams: Streams, expressive: str | None) -> str:
    """Hash of everything that decides a run: only one with the same key can be resumed."""
    parts = ("run-2", config.model_dump_json(exclude=_NOT_DECISIVE), emotion, base.hash, streams.hash)
    return hash_text(*parts, *([expressive] if expressive else []))


def check_together(config: Config, accelerator: Any, emotions: Sequence[str]) -> None:
    """ConfigError if adapters that are trained together would not become what each becomes alone."""
    if len(emotions) < 2:
        return
    if config.adapter_dropout:
        raise ConfigError(
            "adapter_dropout draws its masks over all rows of a step, so it trains one emotion at a time: name one "
            "with --emotion, or leave adapter_dropout at 0"
        )
    if accelerator.scaler is not None:
        raise ConfigError(
            "precision fp16 adapts one loss scale to one adapter's gradients, so it trains one emotion at a time: name "
            "one with --emotion, or use bf16"
        )


def _say_weights(config: Config, emotion: str, streams: Streams, weights: LossWeights, accelerator: Any) -> None:
    if accelerator.is_main_process:
        said = f"ewc_lambda {config.ewc_lambda:g} is {weights.ewc:.3g} in natural units"
        if config.forgetting_budget is not None:
            budget = f"forgetting_budget {config.forgetting_budget:g} nats per code"
            said += f"; {budget} is held by a multiplier of the preservation terms"
        say(f"{emotion}: {counted(len(streams.emotional), 'clip')}, {len(streams.rehearsal)} rehearsed; {said}")
