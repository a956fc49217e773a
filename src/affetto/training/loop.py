"""`affetto train`: the whole run, of one emotion or of several together, in numbered stages."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from affetto.adapters.bank import AdapterBank
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import Interrupted, NonFiniteLossError
from affetto.model.base import load_base
from affetto.preserve.budget import BudgetState
from affetto.processes import alone_in
from affetto.progress import Task, progress, say
from affetto.training.ahead import Ahead
from affetto.training.batches import TrainBatch, assemble
from affetto.training.checkpoint import Progress, save_state
from affetto.training.expressive import add_expressive_base, own_gate
from affetto.training.facts import final_facts, unmet_budget
from affetto.training.run import Run, check_together, prepared_run, restore_run, save_run
from affetto.training.runtime import accelerated, reset_peak_memory, stop_signals, timed
from affetto.training.steering import after_step, after_validation, step_weights
from affetto.training.step import Share, accumulate_together, finish_gradients
from affetto.training.streams import build_streams, general_fisher
from affetto.training.validation import frontier

_LOG_EVERY = 5
"""Steps between two lines of the training log."""


def train(config: Config, emotion: str, prepared: Prepared, *, resume: bool = False, command: str = "") -> Path:
    """Train the adapter of one emotion, or of `base` (the expressive base); see `train_together`."""
    return train_together(config, [emotion], prepared, resume=resume, command=command)[0]


def train_together(
    config: Config, emotions: Sequence[str], prepared: Prepared, *, resume: bool = False, command: str = ""
) -> list[Path]:
    """Train one adapter per emotion in one run; returns the folders `emotion_models/<emotion>`.

    The rows of all emotions share each forward pass, every row under its own adapter's gate. Each adapter has its own
    optimizer, gradient clipping, best checkpoint and state, and becomes what it would become alone. Writes `best/` (the
    best adapter by validation), `last/` (to resume from), `training_log.jsonl` and, with `num_checkpoints`,
    `checkpoints/step-…`.

    On SIGTERM or Ctrl-C it saves and raises Interrupted; `resume=True` then continues as if nothing had happened, or
    starts afresh if nothing was saved. If a loss or gradient is not finite it saves the state before that step and
    raises NonFiniteLossError.
    """
    timings: dict[str, float] = {}
    reset_peak_memory()
    started = time.monotonic()
    # 1. Accelerate decides device, precision and processes.
    with ExitStack() as used:
        accelerator = used.enter_context(accelerated(config, "_and_".join(emotions)))
        check_together(config, accelerator, emotions)
        if accelerator.is_main_process:
            used.enter_context(alone_in([config.model_of(emotion) for emotion in emotions]))
        # 2. The frozen base, and a bank with a fresh adapter per emotion, which changes nothing yet.
        base = load_base(config.base, device=accelerator.device, precision=config.base_precision)
        if config.activation_checkpointing:
            base.network.enable_checkpointing()
        bank = AdapterBank(base.model, base.network.gates, config.target_modules, config.adapted_parts)
        expressive = add_expressive_base(bank, config, emotions, base)
        for emotion in emotions:
            if config.use_adapters:
                bank.add(emotion, config.adapter_r, config.lora_alpha, config.seed)
            else:
                bank.add_full(emotion)

        # 3. Rows of codes in the base's own template, each under its own adapter's gate.
        streams = {
            emotion: build_streams(config, emotion, prepared, base, own_gate(bank, emotion)) for emotion in emotions
        }

        # 4. What the base must not forget: the Fisher, estimated once for all emotions and runs.
        general = next(iter(streams.values())).fisher
        with timed(timings, "fisher"):
            curvature = general_fisher(config, base, list(bank.sites), general, bank.factors(emotions[0]))

        # 5. The teacher's answers, the plan of all steps, and where an earlier run stopped.
        runs, states = [], []
        for emotion in emotions:
            run, state = prepared_run(
                config, accelerator, base, bank, curvature, emotion, streams[emotion], prepared, timings, expressive,
                resume=resume, command=command, is_alone=len(emotions) == 1,
            )  # fmt: skip
            runs.append(run)
            states.append(state)

        # 6. Train; the best adapter so far is always on disk.
        earlier_s = max(state.training_s for state in states)
        states = run_steps(runs, states)

        # 7. How strongly should each speak? Measure the frontier of the best adapters.
        timings["training"] = round(max(state.training_s for state in states), 2)
        with timed(timings, "frontier"):
            frontiers = [_best_frontier(run) for run in runs]
        timings["total"] = round(time.monotonic() - started + earlier_s, 2)
        for run, state, points in zip(runs, states, frontiers, strict=True):
            _finish(run, state, points, timings)
        accelerator.wait_for_everyone()
    return [run.folder for run in runs]


def _finish(run: Run, state: Progress, points: list[dict[str, Any]], timings: Mapping[str, float]) -> None:
    """Save the best adapter, which the bank now holds, with all that the run found out."""
    if run.accelerator.is_main_process:
        facts = final_facts(run.facts, state, points, timings, run.budget)
        save_run(run, run.folder / "best", facts)
        if warning := unmet_budget(facts):
            say(warning, style="yellow")


def run_steps(runs: Sequence[Run], states: Sequence[Progress]) -> list[Progress]:
    """Train all runs from `states` to the end, one step of each at a time; returns the final states."""
    states = list(states)
    before, started = [state.training_s for state in states], time.monotonic()
    title = f"Training {' '.join(run.emotion for run in runs)}"
    with ExitStack() as used:
        stop = used.enter_context(stop_signals())
        bar = used.enter_context(progress(title, sum(run.plan.num_steps for run in runs)))
        is_gpu = runs[0].accelerator.device.type == "cuda"
        batches = [
            used.enter_context(Ahead(partial(_micro_batches, run), run.plan.num_steps, is_on=is_gpu)) for run in runs
        ]
        bar.advance(sum(state.step for state in states))
        while active := [place for place, run in enumerate(runs) if states[place].step < run.plan.num_steps]:
            try:
                taken = [batches[place].take(states[place].step) for place in active]
                outcomes = _step([runs[place] for place in active], [states[place] for place in active], taken)
            except NonFiniteLossError:
                for place in active:
                    _save(runs[place], states[place])
                raise
            for place, outcome in zip(active, outcomes, strict=True):
                spent = before[place] + time.monotonic() - started
                states[place] = _after_step(runs[place], states[place], outcome, spent, bar)
            bar.advance(len(active))
            if received := stop.agreed(runs[0].accelerator):
                _stop(runs, states, received)
    return states


def _stop(runs: Sequence[Run], states: Sequence[Progress], received: str) -> None:
    for run, state in zip(runs, states, strict=True):
        _save(run, state)
    done, steps = sum(state.step for state in states), sum(run.plan.num_steps for run in runs)
    raise Interrupted(f"stopped by {received} after step {done} of {steps}; go on with --resume")


@dataclass(frozen=True)
class Outcome:
    """The result of one step of one adapter."""

    lr: float
    terms: dict[str, float]
    control: BudgetState | None
    """State of the budget's controller after the step."""


def _after_step(run: Run, state: Progress, outcome: Outcome, training_s: float, bar: Task) -> Progress:
    """Log, validate and save when it is time to; returns the state after the step."""
    done = state.step + 1
    if done % _LOG_EVERY == 0 or done == run.plan.num_steps or state.step == 0:
        run.log.write(done, run.plan.epoch(done), "train", outcome.lr, outcome.terms)
    state = replace(state, step=done, training_s=training_s, control=outcome.control)
    if done in run.plan.epoch_ends:
        state = _validate(run, state, outcome.lr, bar)
        _save(run, state)
    num_kept = min(run.config.num_checkpoints, run.plan.num_steps)
    if done in {round(run.plan.num_steps * number / num_kept) for number in range(1, num_kept + 1)}:
        _save_checkpoint(run, done)
    return state


def _step(runs: Sequence[Run], states: Sequence[Progress], batches: Sequence[Sequence[TrainBatch]]) -> list[Outcome]:
    """One optimizer step of every adapter."""
    shares, rates = [], []
    for run, state, micro_batches in zip(runs, states, batches, strict=True):
        lr = run.config.learning_rate * lr_factor(state.step, run.plan.num_steps, run.config.warmup_ratio)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        penalty = partial(run.penalty, state.step) if run.curvature is not None else None
        weights = step_weights(run.weights, run.budget, state.control)
        shares.append(Share(micro_batches, weights, penalty))
        rates.append(lr)
    accelerator = runs[0].accelerator
    config = runs[0].config
    drawn = np.random.default_rng((config.seed, 3, states[0].step, accelerator.process_index)).integers(2**63)
    network = runs[0].base.network
    with (
        network.gates.dropout(config.adapter_dropout, int(drawn)),
        train_mode(network, config.activation_checkpointing),
    ):
        found = accumulate_together(network, shares, accelerator)
    for run, share, terms in zip(runs, shares, found, strict=True):
        parameters = list(run.bank.parameters(run.emotion).values())
        terms["gradient_norm"] = finish_gradients(
            parameters, run.config.max_grad_norm, accelerator, share.micro_batches
        )
    # No adapter moves before every gradient is known to be finite.
    outcomes = []
    for run, state, terms, lr in zip(runs, states, found, rates, strict=True):
        run.optimizer.step()
        run.optimizer.zero_grad()
        control, told = after_step(run.budget, state.control, terms, run.base.num_codebooks)
        outcomes.append(Outcome(lr, terms | told, control))
    return outcomes


@contextmanager
def train_mode(network: Any, is_on: bool) -> Iterator[None]:
    """Train mode, which activation checkpointing needs and which changes nothing else; bases come in eval mode."""
    if not is_on:
        # Switching every module takes a tenth of a small base's step.
        yield
        return
    network.train()
    try:
        yield
    finally:
        network.eval()


def _micro_batches(run: Run, step: int) -> list[TrainBatch]:
    """This process's micro-batches of a step. Processes take them in turn, and each is drawn as by a single process."""
    made = []
    for number, rows in enumerate(run.plan.steps[step]):
        if number % run.accelerator.num_processes == run.accelerator.process_index:
            emotional = [run.streams.emotional[index] for index in rows.emotional]
            general = [run.streams.rehearsal[index] for index in rows.general]
            rng = np.random.default_rng((run.config.seed, 2, step, number))
            share, weights = run.config.depth_frames_share, run.weights
            batch = assemble(
                emotional, general, run.teacher, weights.taught, run.base.num_codebooks, share, rng, weights.learned
            )
            made.append(batch.pinned() if run.accelerator.device.type == "cuda" else batch)
    return made


def lr_factor(step: int, num_steps: int, warmup_ratio: float) -> float:
    """Linear warm-up to 1, then cosine decay to 0 at `num_steps`."""
    warmup = max(1, round(warmup_ratio * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def _validate(run: Run, state: Progress, lr: float, bar: Task) -> Progress:
    """Validate and log; the adapter is saved if it is the best so far."""
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
        save_run(run, run.folder / "best", facts)
    return replace(state, best_value=value, best_step=state.step)


def _save_checkpoint(run: Run, step: int) -> None:
    """Save the adapter as it is now into `checkpoints/`, to look at its development later."""
    if run.accelerator.is_main_process:
        facts = {**run.facts, "recommended_intensity": 1.0, "step": step}
        save_run(run, run.folder / "checkpoints" / f"step-{step:05d}", facts)


def _save(run: Run, state: Progress) -> None:
    """Save what the run is resumed from."""
    scaler = run.accelerator.scaler
    if scaler is not None:
        state = replace(state, loss_scaling=scaler.state_dict())
    if run.accelerator.is_main_process:
        save_state(run.folder / "last", run.bank.parameters(run.emotion), run.optimizer, state)


def _best_frontier(run: Run) -> list[dict[str, Any]]:
    """The frontier of the best adapter, which is put back into the bank from disk."""
    run.accelerator.wait_for_everyone()
    restore_run(run, run.folder / "best")
    return frontier(run.validation, run.budget.budget if run.budget else None)
