"""Trackers, signals, processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from training_helpers import Alone, Group, Member, read_scalars

from affetto.config import Config
from affetto.errors import ConfigError, MissingDependencyError
from affetto.training import runtime
from affetto.training.runtime import (
    Stop,
    accelerated,
    check_installed,
    peak_memory_mib,
    reset_peak_memory,
    resident_bytes,
    stop_signals,
    timed,
)


def test_a_first_signal_asks_and_a_second_acts() -> None:
    # A shell's background jobs start with Ctrl-C ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGINT)
    with stop_signals() as stop:
        assert stop.agreed(Alone()) is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed(Alone()) == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, inherited)


def test_handlers_are_put_back_even_after_an_error() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def fail() -> None:
        with stop_signals():
            assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_closed_terminal_asks_too_but_where_it_is_nobodys_concern() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.agreed(Alone()) is None, "as under nohup"
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.agreed(Alone()) == "SIGHUP"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_trains_without_handlers() -> None:
    before = signal.getsignal(signal.SIGINT)

    def inside() -> bool:
        with stop_signals() as stop:
            return signal.getsignal(signal.SIGINT) is before and stop.signal is None

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result()


def test_all_processes_stop_when_one_was_told_to() -> None:
    group = Group(2)

    def process(index: int) -> list[str | None]:
        stop, answers = Stop(), []
        for step in range(2):
            if (index, step) == (1, 1):
                stop.signal = "SIGTERM"
            answers.append(stop.agreed(Member(group, index)))
        return answers

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(process, range(2))) == [[None, "a signal"], [None, "SIGTERM"]]


def test_trackers_follow_the_configuration(config_of: Callable[..., Config], tmp_path: Path) -> None:
    with accelerated(config_of(trackers=("tensorboard",)), "happy") as accelerator:
        accelerator.log({"train/total": 1.5}, step=3)
    assert read_scalars(tmp_path / "run" / "runs" / "happy") == {"train/total": [(3, 1.5)]}
    with accelerated(config_of("silent"), "happy") as accelerator:
        accelerator.log({"train/total": 1.5}, step=3)
    assert not (tmp_path / "silent").exists()


def test_trackers_that_cannot_be_had_are_told(config_of: Callable[..., Config]) -> None:
    with (
        pytest.raises(ConfigError, match="accelerate knows no 'tensorbored'"),
        accelerated(config_of(trackers=("tensorbored",)), "happy"),
    ):
        pass
    with (
        pytest.raises(MissingDependencyError, match="'wandb' is not installed"),
        accelerated(config_of(trackers=("wandb",)), "happy"),
    ):
        pass


def test_what_is_not_installed_can_be_told_before_anything_is_done(
    config_of: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_installed(config_of(trackers=("tensorboard",)))
    with pytest.raises(MissingDependencyError, match="'wandb' is not installed"):
        check_installed(config_of(trackers=("wandb",)))
    asked: list[bool] = []
    monkeypatch.setattr(runtime, "eight_bit_class", lambda: asked.append(True))
    check_installed(config_of(optimizer_bits=32))
    assert asked == []
    check_installed(config_of(optimizer_bits=8))
    assert asked == [True]


def test_trackers_are_closed_when_a_run_fails(config_of: Callable[..., Config]) -> None:
    finished = []

    def fail() -> None:
        with accelerated(config_of(trackers=("tensorboard",)), "happy") as accelerator:
            tracker = accelerator.trackers[0]
            real = tracker.finish
            tracker.finish = lambda: finished.append(real())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert finished == [None]


def test_batches_that_processes_cannot_share_are_refused(
    config_of: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 2))
    with (
        pytest.raises(ConfigError, match="grad_accumulation_steps 3 can't be shared by 2 processes"),
        accelerated(config_of(grad_accumulation_steps=3), "happy"),
    ):
        pass
    with accelerated(config_of(grad_accumulation_steps=4), "happy"):
        pass


def test_precision_reaches_accelerate(config_of: Callable[..., Config]) -> None:
    import torch

    with accelerated(config_of(precision="bf16"), "happy") as accelerator, accelerator.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.bfloat16


def test_clocks_and_memory() -> None:
    timings: dict[str, float] = {}
    with timed(timings, "nothing"):
        pass
    assert 0 <= timings["nothing"] < 5
    assert 10 < peak_memory_mib() < 1e6


def test_the_peak_is_that_of_the_run_and_not_of_what_came_before() -> None:
    before = resident_bytes() / 2**20
    held = np.ones(400 * 2**17)  # 400 MiB of float64
    assert peak_memory_mib() > before + 300
    del held
    reset_peak_memory()
    assert peak_memory_mib() < before + 200
