"""Runs several jobs at a time, each in a process of its own: emotions on a machine with many processors.

One process with two threads trains and judges an emotion in 0.8 of the time that it takes with one, because much of a
run can't be parallelised; two processes with a thread each do two in about the time of one. Their output goes to the
parent, which has the terminal.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

from affetto.errors import AffettoError, Interrupted
from affetto.progress import Event, board, relay, say
from affetto.training.runtime import Stop, stop_signals

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_POLL_S = 0.2
"""Longest delay before a signal is passed on."""


@dataclass
class _Worker:
    """A process, the parent's end of its pipe, and the name of its current job."""

    process: BaseProcess
    pipe: Connection
    name: str | None = None


def side_by_side(
    work: Callable[[str], Any], names: Sequence[str], num_jobs: int, *, threads: int = 1
) -> Iterator[tuple[str, Any]]:
    """(name, `work(name)`) as they are done, `num_jobs` at a time in processes with `threads` threads each.

    `work` and its results must be picklable. If one fails the others go on, and the errors are raised at the end as one
    AffettoError; errors of other types include their traceback. SIGTERM and Ctrl-C are passed on once, so that each
    process saves its state; Interrupted is raised when all have ended.
    """
    waiting, errors = deque(names), dict[str, str]()
    with stop_signals() as stop, board() as show, _workers(work, min(num_jobs, len(names)), threads) as workers:
        for worker in workers:
            _hand_out(worker, waiting)
        for worker, kind, value in _messages(workers, stop):
            name = worker.name
            if kind == "shown":
                show(str(name), value)
                continue
            if kind != "gone":
                _hand_out(worker, deque() if stop.signal else waiting)
            if kind == "done":
                yield str(name), value
            elif name is not None and not stop.signal:
                errors[name] = value
                say(f"{name}: {value}", style="red")
    if stop.signal:
        raise Interrupted(f"stopped by {stop.signal}; go on with --resume")
    errors |= dict.fromkeys(waiting, "not started: every process had ended")
    if errors:
        raise AffettoError("\n".join(f"{name}: {error}" for name, error in errors.items()))


def _messages(workers: Sequence[_Worker], stop: Stop) -> Iterator[tuple[_Worker, str, Any]]:
    """The workers' messages until all have ended, which a signal makes them do."""
    alive = {worker.pipe: worker for worker in workers}
    is_passed_on = False
    while alive:
        if stop.signal and not is_passed_on:
            is_passed_on = True
            for worker in alive.values():
                worker.process.terminate()
        for pipe in wait(list(alive), timeout=_POLL_S):
            worker = alive[cast(Connection, pipe)]
            kind, value = _receive(worker)
            if kind == "gone":
                del alive[worker.pipe]
            yield worker, kind, value


def _receive(worker: _Worker) -> tuple[str, Any]:
    """A worker's message: ("shown", event), ("done", value) or ("failed", why); ("gone", why) if it has ended."""
    try:
        message: tuple[str, Any] = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode or 0
        if code < 0:
            return "gone", f"its process was killed by {signal.Signals(-code).name}; if memory ran out: --jobs 1"
        return "gone", f"its process ended with status {code}"
    return message


def _hand_out(worker: _Worker, waiting: deque[str]) -> None:
    """Give a worker its next name; without one left it ends."""
    worker.name = waiting.popleft() if waiting else None
    with suppress(BrokenPipeError):  # It has just been killed, which reading its pipe will show.
        worker.pipe.send(worker.name)


@contextmanager
def _workers(work: Callable[[str], Any], count: int, threads: int) -> Iterator[list[_Worker]]:
    """Processes that take names; none outlives the block."""
    spawn = multiprocessing.get_context("spawn")
    started: list[_Worker] = []
    try:
        with _environment(dict.fromkeys(_THREADS, str(threads))):
            for _ in range(count):
                here, there = spawn.Pipe()
                process = spawn.Process(target=_serve, args=(work, there, threads))
                process.start()
                there.close()
                started.append(_Worker(process, here))
        yield list(started)
    finally:
        for worker in started:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()


def _serve(work: Callable[[str], Any], pipe: Connection, threads: int) -> None:
    """One process: take names until there are no more."""
    import torch

    os.setsid()  # The parent passes on Ctrl-C from the terminal.
    torch.set_num_threads(threads)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    lock = threading.Lock()

    def send(kind: str, value: Any) -> None:
        with lock:
            pipe.send((kind, value))

    def show(event: Event) -> None:
        send("shown", event)

    relay(show)
    for name in iter(pipe.recv, None):
        try:
            value = work(name)
        except AffettoError as error:
            send("failed", str(error))
        except Exception:
            send("failed", traceback.format_exc())
        else:
            send("done", value)


def _leave_with_parent() -> None:
    """Stop as on SIGTERM when the parent has ended, for whatever reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
