"""A run's environment: Accelerate and its trackers, stop signals, time and memory."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch

from affetto.config import Config
from affetto.errors import ConfigError, MissingDependencyError
from affetto.processes import num_launched
from affetto.training.optimizer import eight_bit_class


@contextmanager
def accelerated(config: Config, name: str) -> Iterator[Any]:
    """An Accelerator set up for the run (device, precision, processes), whose trackers are closed when the block ends.

    `name` is the run's name for the trackers.
    """
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration, set_seed

    runs = str(config.output_dir / "runs")
    check_installed(config)
    if (launched := num_launched()) > 1 and "RANK" not in os.environ:
        raise ConfigError(
            f"{launched} processes were launched (WORLD_SIZE), but RANK doesn't say which one this is: start them "
            "with torchrun, or on GPUs with accelerate launch"
        )
    accelerator = Accelerator(
        cpu=_is_for_cpu(),
        mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(runs, runs),
    )
    if config.grad_accumulation_steps % accelerator.num_processes:
        raise ConfigError(
            f"grad_accumulation_steps {config.grad_accumulation_steps} can't be shared by {accelerator.num_processes} "
            "processes, which take a step's batches in turn: make it a multiple of their number"
        )
    set_seed(config.seed)
    if config.trackers:
        Path(runs).mkdir(parents=True, exist_ok=True)
        accelerator.init_trackers(name, config=_flat(config))
    try:
        yield accelerator
    finally:
        # Not `end_training`, which also ends the process group that the next emotion's run needs.
        for tracker in accelerator.trackers:
            tracker.finish()


def _is_for_cpu() -> bool:
    """Whether to train on the CPU: there is no GPU, or it is Apple's, which lacks float64 for Fisher and loss sums.

    Accelerate must be told, or processes on a CPU wouldn't know of each other.
    """
    return not torch.accelerator.is_available() or torch.backends.mps.is_available()


def check_installed(config: Config) -> None:
    """Check that the optional packages which the configuration needs are installed: its trackers and its optimizer.

    ConfigError for an unknown tracker, MissingDependencyError for a package that isn't installed.
    """
    _check_trackers(config.trackers)
    if config.optimizer_bits == 8:
        eight_bit_class()


def _check_trackers(trackers: tuple[str, ...]) -> None:
    """Check the names here, because Accelerate silently drops trackers that aren't installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in trackers:
        if name == "all":
            continue
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"trackers: accelerate knows no {name!r}; it knows {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in available:
            raise MissingDependencyError(
                f"the tracker {name!r} is not installed; install it, or leave it out of trackers"
            )


def _flat(config: Config) -> dict[str, str | int | float | bool]:
    """The configuration in the form that trackers take: flat, numbers and strings."""
    plain = config.model_dump(mode="json", exclude={"output_dir"})
    return {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in plain.items()}


class Stop:
    """Whether the user asked to stop, as far as this process knows."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def agreed(self, accelerator: Any) -> str | None:
        """The name of the signal that stops all processes after this step, if any of them has seen one."""
        if accelerator.num_processes == 1:
            return self.signal
        seen = torch.tensor(float(self.signal is not None), device=accelerator.device)
        return (self.signal or "a signal") if accelerator.reduce(seen, "sum").item() else None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGTERM, Ctrl-C and a closed terminal ask for a stop after the current step; a second signal acts at once.

    A closed terminal doesn't count where it is ignored already, as under nohup.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(received: int, _frame: FrameType | None) -> None:
        stop.signal = signal.Signals(received).name
        restore()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that the block takes to `timings[name]`."""
    before = time.monotonic()
    yield
    timings[name] = round(timings.get(name, 0.0) + time.monotonic() - before, 2)


def resident_bytes() -> int:
    """Memory that the process uses now; its peak so far where the system doesn't say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return int(_most_resident_bytes())
    return pages * resource.getpagesize()


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; on a CPU including what the system could reclaim."""
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def _most_resident_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Let `peak_memory_mib` count from now on, where the system allows that (Linux, CUDA)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mib() -> float:
    """Peak memory since `reset_peak_memory`: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(_most_resident_bytes() / 2**20, 1)
