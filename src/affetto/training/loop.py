"""`affetto train`: one emotion's run, told once."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from affetto.adapters.bank import AdapterBank
from affetto.adapters.peft_files import read_adapter, save_adapter
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import Interrupted, NonFiniteLossError
from affetto.files import hash_text
from affetto.model.base import Base, load_base
from affetto.preserve.budget import BudgetState, ForgettingBudget
from affetto.preserve.curvature import Curvature
from affetto.preserve.ewc import ewc_penalty
from affetto.preserve.teacher import TeacherCache
from affetto.progress import Task, progress, say
from affetto.training.batches import Plan, TrainBatch, assemble, plan_run
from affetto.training.checkpoint import Progress, has_state, load_state, save_state
from affetto.training.facts import final_facts, run_facts, unmet_budget
from affetto.training.log import TrainingLog
from affetto.training.runtime import accelerated, stop_signals, timed
from affetto.training.steering import after_step, after_validation, step_weights
from affetto.training.step import BudgetWeights, LossWeights, accumulate_gradients, finish_gradients
from affetto.training.streams import Streams, build_streams, general_fisher, loss_weights, teacher_answers
from affetto.training.validation import Validation, frontier

_LOG_EVERY = 5
_NOT_DECISIVE = {
    "output_dir", "trackers", "judges", "evaluation_sentences", "evaluation_clips", "sampling_temperature",
    "base", "data", "emotions", "num_checkpoints",
}  # fmt: skip
"""Keys that don't change a run, or do so through the base's and the rows' hashes."""


@dataclass(frozen=True)
class Run:
    """What every step needs."""

    config: Config
    emotion: str
    folder: Path
    accelerator: Any
    base: Base
    bank: AdapterBank
    streams: Streams
    weights: LossWeights | BudgetWeights
    curvature: Curvature | None
    teacher: TeacherCache | None
    validation: Validation
    plan: Plan
    optimizer: Any
    log: TrainingLog
    facts: Mapping[str, Any]
    budget: ForgettingBudget | None

    def penalty(self, step: int | None = None) -> Tensor:
        """The EWC term of the adapter as it is; see `ewc_penalty`."""
        assert self.curvature is not None
        return ewc_penalty(self.curvature, self.bank.factors(self.emotion), step)


def train(config: Config, emotion: str, prepared: Prepared, *, resume: bool = False, command: str = "") -> Path:
    """Train the adapter of one emotion; returns the folder `emotion_models/<emotion>`.

    Writes `best/` (the adapter, by validation), `last/` (to resume from), `training_log.jsonl` and, where
    `num_checkpoints` asks for them, `checkpoints/step-…`. Raises Interrupted
    after saving where SIGTERM or Ctrl-C arrives; `resume=True` then goes on as if nothing had happened, and starts
    afresh where nothing was saved. Raises NonFiniteLossError, with the state before that step saved, where a loss or
    gradient is not finite.
    """
    folder = config.output_dir / "emotion_models" / emotion
    timings: dict[str, float] = {}
    started = time.monotonic()
    # 1. Accelerate decides device, precision and processes.
    with accelerated(config, emotion) as accelerator:
        # 2. The frozen base, and rows of codes in its own template.
        base = load_base(config.base, device=accelerator.device)
        streams = build_streams(config, emotion, prepared, base)
        weights = loss_weights(config, streams, base)
        _say_weights(config, emotion, streams, weights, accelerator)
        facts = run_facts(config, emotion, base, prepared, streams, weights, command)

        # 3. The bank: a place for an adapter at every target layer.
        bank = AdapterBank(base.model, base.network.gates, config.target_modules, config.adapted_parts)

        # 4. What the base must not forget: Fisher and teacher's answers, cached for every emotion and run.
        with accelerator.main_process_first():
            with timed(timings, "fisher"):
                curvature = general_fisher(config, base, list(bank.sites), streams.fisher)
            with timed(timings, "teacher"):
                teacher = teacher_answers(config, base, streams, weights)
                validation = Validation(base, streams.validation_emotional, streams.validation_general)

        # 5. A fresh adapter, which starts as the base; every step's plan; where an earlier run stopped.
        bank.add(emotion, config.adapter_r, config.lora_alpha, config.seed)
        plan = _plan(config, streams)
        optimizer = accelerator.prepare_optimizer(
            torch.optim.AdamW(
                bank.parameters(emotion).values(), config.learning_rate, betas=(0.9, 0.99),
                weight_decay=config.weight_decay,
            )
        )  # fmt: skip
        key = _run_key(config, emotion, base, streams)
        state = earlier = _start(folder / "last", bank.parameters(emotion), optimizer, key, accelerator, resume)
        log = TrainingLog(folder / "training_log.jsonl", state.step, accelerator, weights.ewc)

        # 6. Train; the best adapter so far is always on disk.
        run = Run(
            config, emotion, folder, accelerator, base, bank, streams, weights, curvature, teacher, validation, plan,
            optimizer, log, facts, ForgettingBudget(config.forgetting_budget) if config.forgetting_budget else None,
        )  # fmt: skip
        state = run_steps(run, state)

        # 7. How strong should it speak? Measure the frontier of the best adapter.
        timings["training"] = round(state.training_s, 2)
        with timed(timings, "frontier"):
            points = _best_frontier(run)
        timings["total"] = round(time.monotonic() - started + earlier.training_s, 2)
        if accelerator.is_main_process:
            facts = final_facts(facts, state, points, timings, run.budget)
            save_adapter(folder / "best", bank, emotion, base.id, facts)
            if warning := unmet_budget(facts):
                say(warning, style="yellow")
        accelerator.wait_for_everyone()
    return folder


def run_steps(run: Run, state: Progress) -> Progress:
    """The steps from `state` on; returns the final state."""
    before, started = state.training_s, time.monotonic()
    num_kept = min(run.config.num_checkpoints, run.plan.num_steps)
    kept = {round(run.plan.num_steps * number / num_kept) for number in range(1, num_kept + 1)}
    with stop_signals() as stop, progress(f"Training {run.emotion}", run.plan.num_steps) as bar:
        bar.advance(state.step)
        for step in range(state.step, run.plan.num_steps):
            try:
                lr, terms, control = _step(run, step, state.control)
            except NonFiniteLossError:
                _save(run, state)
                raise
            done = step + 1
            if done % _LOG_EVERY == 0 or done == run.plan.num_steps or step == 0:
                run.log.write(done, run.plan.epoch(done), "train", lr, terms)
            state = replace(state, step=done, training_s=before + time.monotonic() - started, control=control)
            if done in run.plan.epoch_ends:
                state = _validate(run, state, lr, bar)
                _save(run, state)
            if done in kept:
                _keep(run, done)
            bar.advance(1)
            if received := stop.agreed(run.accelerator):
                _save(run, state)
                raise Interrupted(
                    f"stopped by {received} after step {done} of {run.plan.num_steps}; go on with --resume"
                )
    return state


def _step(run: Run, step: int, control: BudgetState | None) -> tuple[float, dict[str, float], BudgetState | None]:
    """One optimizer step; returns its learning rate, the terms of its loss, and the budget's controller after it."""
    lr = run.config.learning_rate * lr_factor(step, run.plan.num_steps, run.config.warmup_ratio)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    micro = _micro_batches(run, step)
    penalty = partial(run.penalty, step) if run.curvature is not None else None
    weights = step_weights(run.weights, run.budget, control)
    terms = accumulate_gradients(run.base.network, micro, weights, penalty, run.accelerator)
    parameters = list(run.bank.parameters(run.emotion).values())
    terms["gradient_norm"] = finish_gradients(parameters, run.config.max_grad_norm, run.accelerator, micro)
    run.optimizer.step()
    run.optimizer.zero_grad()
    control, told = after_step(run.budget, control, terms, run.base.num_codebooks)
    return lr, terms | told, control


def _micro_batches(run: Run, step: int) -> list[TrainBatch]:
    """This process's micro-batches of a step; processes take turns, and draw as one process would."""
    made = []
    for number, rows in enumerate(run.plan.steps[step]):
        if number % run.accelerator.num_processes == run.accelerator.process_index:
            emotional = [run.streams.emotional[index] for index in rows.emotional]
            general = [run.streams.rehearsal[index] for index in rows.general]
            rng = np.random.default_rng((run.config.seed, 2, step, number))
            share = run.config.depth_frames_share
            made.append(
                assemble(emotional, general, run.teacher, run.weights.taught, run.base.num_codebooks, share, rng)
            )
    return made


def lr_factor(step: int, num_steps: int, warmup_ratio: float) -> float:
    """Linear warm-up to 1, then a cosine to 0 at `num_steps`."""
    warmup = max(1, round(warmup_ratio * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def _validate(run: Run, state: Progress, lr: float, bar: Task) -> Progress:
    """Validate and log; the adapter is saved where it is the best so far."""
    values = run.validation()
    control, told = after_validation(run.budget, state.control, values, run.validation, run.accelerator)
    state, values = replace(state, control=control), values | told
    run.log.write(state.step, run.plan.epoch(state.step), "validation", lr, values)
    forgotten = "unknown" if values["general_kl"] is None else f"{values['general_kl']:.4f}"
    bar.note(f"emotion {values['emotion_nll']:.3f}, forgetting {forgotten} nats/code")
    value = values["value" if run.budget is None else "emotion_nll_in_budget"]
    assert value is not None
    if state.best_value is not None and not value < state.best_value:
        return state
    if run.accelerator.is_main_process:
        facts = {**run.facts, "validation": {**values, "step": state.step}}
        save_adapter(run.folder / "best", run.bank, run.emotion, run.base.id, facts)
    return replace(state, best_value=value, best_step=state.step)


def _keep(run: Run, step: int) -> None:
    """The adapter as it is now, beside `best`, for whoever wants to see how it came about."""
    if run.accelerator.is_main_process:
        facts = {**run.facts, "recommended_intensity": 1.0, "step": step}
        save_adapter(run.folder / "checkpoints" / f"step-{step:05d}", run.bank, run.emotion, run.base.id, facts)


def _save(run: Run, state: Progress) -> None:
    scaler = run.accelerator.scaler
    if scaler is not None:
        state = replace(state, loss_scaling=scaler.state_dict())
    if run.accelerator.is_main_process:
        save_state(run.folder / "last", run.bank.parameters(run.emotion), run.optimizer, state)


def _start(
    last: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: Any,
    run_key: str,
    accelerator: Any,
    resume: bool,
) -> Progress:
    """The state to start from. A run that starts afresh removes an earlier one's, which isn't its own to resume."""
    if resume and has_state(last):
        state = load_state(last, parameters, optimizer, run_key)
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


def _best_frontier(run: Run) -> list[dict[str, Any]]:
    """The best adapter, read back from disk, at several intensities."""
    run.accelerator.wait_for_everyone()
    best = read_adapter(run.folder / "best")
    with torch.no_grad():
        for site, a_RI, b_OR, _ in run.bank.factors(run.emotion):
            a_RI.copy_(best.tensors[site][0])
            b_OR.copy_(best.tensors[site][1])
    return frontier(run.validation, run.budget.budget if run.budget else None)


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


def _run_key(config: Config, emotion: str, base: Base, streams: Streams) -> str:
    return hash_text("run-2", config.model_dump_json(exclude=_NOT_DECISIVE), emotion, base.hash, streams.hash)


def _say_weights(
    config: Config, emotion: str, streams: Streams, weights: LossWeights | BudgetWeights, accelerator: Any
) -> None:
    if accelerator.is_main_process:
        said = f"ewc_lambda {config.ewc_lambda:g} is {weights.ewc:.3g} in natural units"
        if config.forgetting_budget is not None:
            said = (
                f"forgetting_budget {config.forgetting_budget:g} nats per code, in place of distillation_alpha, "
                "temperature and ewc_lambda, which don't apply"
            )
        say(f"{emotion}: {len(streams.emotional)} clips, {len(streams.rehearsal)} rehearsed; {said}")
