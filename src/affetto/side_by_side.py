"""Several pieces of work at a time, each in a process of its own: emotions on a machine with many processors.

One process with two threads trains and judges an emotion in 0.8 of the time that it takes with one, because much of a
run can't be shared out; two processes with a thread each do two in about the time of one. What they show goes to the
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
"""How soon a signal is passed on."""


@dataclass
class _Worker:
    """A process, the parent's end of its pipe, and what it is at."""

    process: BaseProcess
    pipe: Connection
    name: str | None = None


def side_by_side(
    work: Callable[[str], Any], names: Sequence[str], num_jobs: int, *, threads: int = 1
) -> Iterator[tuple[str, Any]]:
    """(name, `work(name)`) as they are done, `num_jobs` at a time in processes that compute with `threads` each.

    `work` and what it returns must survive pickling. Where one fails the others go on, and the errors are raised at
    the end, as one AffettoError; anything else than an AffettoError comes with its traceback. SIGTERM and Ctrl-C are
    passed on once, so that each process saves what it has; Interrupted is raised when all have ended.
    """
    waiting, errors = deque(names), dict[str, str]()
    with stop_signals() as stop, board() as show, _workers(work, min(num_jobs, len(names)), threads) as workers:
        for worker in workers:
            _hand_out(worker, waiting)
        for worker, kind, value in _told(workers, stop):
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
    errors |= dict.fromkeys(waiting, "not begun: every process had ended")
    if errors:
        raise AffettoError("\n".join(f"{name}: {error}" for name, error in errors.items()))


def _told(workers: Sequence[_Worker], stop: Stop) -> Iterator[tuple[_Worker, str, Any]]:
    """What the workers send until all have ended, which a signal makes them do."""
    alive = {worker.pipe: worker for worker in workers}
    is_passed_on = False
    while alive:
        if stop.signal and not is_passed_on:
            is_passed_on = True
            for worker in alive.values():
                worker.process.terminate()
        for pipe in wait(list(alive), timeout=_POLL_S):
            worker = alive[cast(Connection, pipe)]
            kind, value = _heard(worker)
            if kind == "gone":
                del alive[worker.pipe]
            yield worker, kind, value


def _heard(worker: _Worker) -> tuple[str, Any]:
    """What it sends: ("shown", event), ("done", value) or ("failed", why); ("gone", why) where it has ended."""
    try:
        heard: tuple[str, Any] = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode or 0
        if code < 0:
            return "gone", f"its process was killed by {signal.Signals(-code).name}; if memory ran out: --jobs 1"
        return "gone", f"its process ended with status {code}"
    return heard


def _hand_out(worker: _Worker, waiting: deque[str]) -> None:
    """Give a worker its next name; one that has none left ends."""
    worker.name = waiting.popleft() if waiting else None
    with suppress(BrokenPipeError):  # It has just been killed, which the end of its pipe tells next.
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

    os.setsid()  # Ctrl-C on the terminal is the parent's to pass on.
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
    """Stop as on SIGTERM when the parent is gone, however it went."""
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
