"""Runs that were killed, stopped or repeated: resuming equals never having stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import TINY, assert_equal_runs, make_prepared, results

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import CheckpointError, DataError, Interrupted
from affetto.files import hash_folder, read_json
from affetto.training import loop
from affetto.training.loop import train

Make = Callable[..., Config]

ALONE = """
import sys
from pathlib import Path
from affetto.processes import alone_in
with alone_in([Path(sys.argv[1])]):
    print("alone", flush=True)
    sys.stdin.read()
"""


class Killed(Exception):
    """As if the power had gone."""


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do `act` right before the gradients of step `step` (from zero) are taken."""
    real, seen = loop._micro_batches, []

    def watched(run: loop.Run, at: int) -> list[Any]:
        if at == step and not seen:
            seen.append(at)
            act()
        return real(run, at)

    monkeypatch.setattr(loop, "_micro_batches", watched)


@pytest.fixture
def straight(config_of: Make, prepared: Prepared) -> Path:
    return train(config_of("straight", **TINY), "happy", prepared)


@pytest.mark.parametrize("step", [0, 2, 3, 5])
def test_pitfall_29_stopped_by_a_signal_and_resumed_equals_the_straight_run_bit_for_bit(
    config_of: Make, prepared: Prepared, straight: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = config_of("stopped", **TINY)
    interrupt(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {step + 1} of 6; go on with --resume"):
        train(config, "happy", prepared)
    torch.manual_seed(12345)
    assert_equal_runs(train(config, "happy", prepared, resume=True), straight)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_pitfall_29_killed_between_checkpoints_and_resumed_equals_the_straight_run_bit_for_bit(
    config_of: Make, prepared: Prepared, straight: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def die() -> None:
        raise Killed

    config = config_of("killed", **TINY)
    interrupt(monkeypatch, step, die)
    with pytest.raises(Killed):
        train(config, "happy", prepared)
    log = config.output_dir / "emotion_models" / "happy" / "training_log.jsonl"
    with log.open("a") as file:
        file.write('{"step": 999, "cut off')
    assert_equal_runs(train(config, "happy", prepared, resume=True), straight)


def test_pitfall_29_killed_while_the_best_adapter_was_written_but_not_the_state(
    config_of: Make, prepared: Prepared, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loop._save, []

    def die_at_the_second(run: loop.Run, state: Any) -> None:
        calls.append(state.step)
        if len(calls) == 2:
            raise Killed
        real(run, state)

    config = config_of("killed", **TINY)
    monkeypatch.setattr(loop, "_save", die_at_the_second)
    with pytest.raises(Killed):
        train(config, "happy", prepared)
    assert_equal_runs(train(config, "happy", prepared, resume=True), straight)


def test_a_finished_run_resumes_to_itself_and_keeps_its_training_time(
    config_of: Make, prepared: Prepared, straight: Path, tmp_path: Path
) -> None:
    before, facts = tmp_path / "before", read_json(straight / "best" / "affetto.json")
    shutil.copytree(straight, before)
    train(config_of("straight", **TINY), "happy", prepared, resume=True)
    assert_equal_runs(straight, before)
    again = read_json(straight / "best" / "affetto.json")
    assert again["timings_s"]["training"] == facts["timings_s"]["training"] > 0
    assert again["timings_s"]["total"] >= again["timings_s"]["training"]
    assert again["frontier"] == facts["frontier"]


def test_resuming_what_never_began_starts_afresh_and_a_fresh_start_forgets_the_old_state(
    config_of: Make, prepared: Prepared, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_equal_runs(train(config_of("other", **TINY), "happy", prepared, resume=True), straight)

    def die() -> None:
        raise Killed

    interrupt(monkeypatch, 0, die)
    with pytest.raises(Killed):
        train(config_of("other", **TINY), "happy", prepared)
    assert not (config_of("other").output_dir / "emotion_models" / "happy" / "last").exists()


def test_a_run_whose_best_adapter_is_gone_is_not_resumed(config_of: Make, prepared: Prepared, straight: Path) -> None:
    shutil.rmtree(straight / "best")
    with pytest.raises(CheckpointError, match=r"happy/best, the run's best adapter so far, is gone; start afresh"):
        train(config_of("straight", **TINY), "happy", prepared, resume=True)
    assert_equal_runs(train(config_of("straight", **TINY), "happy", prepared), straight)


def test_two_processes_cannot_train_into_one_folder(config_of: Make, prepared: Prepared, straight: Path) -> None:
    before = hash_folder(straight, ["**/*"])
    other = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(straight)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "alone\n"
    with pytest.raises(
        DataError, match=r"another process is working in .*emotion_models/happy; wait until it has ended"
    ):
        train(config_of("straight", **TINY), "happy", prepared)
    assert hash_folder(straight, ["**/*"]) == before
    other.communicate("")
    train(config_of("straight", **TINY), "happy", prepared)


def test_another_configuration_or_other_data_cannot_be_resumed(
    config_of: Make, prepared: Prepared, straight: Path, tmp_path: Path
) -> None:
    before = results(straight)
    other_data = make_prepared(tmp_path / "others", seed=1)
    for config, data in (
        (config_of("straight", **TINY | {"learning_rate": 1e-4}), prepared),
        (config_of("straight", **TINY | {"num_epochs": 4}), prepared),
        (config_of("straight", **TINY), other_data),
    ):
        with pytest.raises(CheckpointError, match="another configuration, base or data"):
            train(config, "happy", data, resume=True)
    assert results(straight)[2] == before[2], "the log is untouched"
    # What doesn't decide the run may change.
    moved = config_of("straight", **TINY, trackers=("tensorboard",), evaluation_clips=7, data=("elsewhere",))
    train(moved, "happy", prepared, resume=True)


@pytest.mark.parametrize("step", [0, 3])
def test_pitfall_29_a_run_with_a_budget_resumes_to_the_straight_run_bit_for_bit(
    config_of: Make, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Once right after the first step, once between a validation, which corrects the target, and the next."""
    budget = {**TINY, "forgetting_budget": 1e-3}
    expected = train(config_of("straight", **budget), "happy", prepared)
    multipliers = [row["terms"]["multiplier"] for row in results(expected)[2] if row["split"] == "train"]
    assert len(set(multipliers)) == len(multipliers) == 3, "the controller moved"
    interrupt(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(config_of("stopped", **budget), "happy", prepared)
    found = train(config_of("stopped", **budget), "happy", prepared, resume=True)
    assert_equal_runs(found, expected)
    facts = [read_json(folder / "best" / "affetto.json")["forgetting_budget"] for folder in (found, expected)]
    assert facts[0] == facts[1]


def test_accumulated_batches_resume_too(config_of: Make, prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {**TINY, "batch_size": 2, "grad_accumulation_steps": 3, "num_epochs": 2, "replay_ratio": 0.5}
    expected = train(config_of("straight", **odd), "happy", prepared)
    interrupt(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="SIGINT"):
        train(config_of("stopped", **odd), "happy", prepared)
    assert_equal_runs(train(config_of("stopped", **odd), "happy", prepared, resume=True), expected)


def test_dropout_resumes_too_and_changes_what_is_learnt(
    config_of: Make, prepared: Prepared, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = {**TINY, "adapter_dropout": 0.2}
    expected = train(config_of("dropping", **dropping), "happy", prepared)
    with pytest.raises(AssertionError):
        assert_equal_runs(expected, straight)
    interrupt(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(config_of("stopped", **dropping), "happy", prepared)
    torch.manual_seed(12345)
    assert_equal_runs(train(config_of("stopped", **dropping), "happy", prepared, resume=True), expected)
