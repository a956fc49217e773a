"""Coding in separate processes, which end when it is done.

The vocoder uses several if there are many clips. Mimi and DAC use one, however few the clips: so their weights, and on
a GPU the memory of their batches (`codec`), never enter the process that trains.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Protocol, TypeVar

from affetto.audio.sound import SoundError
from affetto.codes.codec import load_codec
from affetto.errors import DataError
from affetto.quiet import quiet_transformers
from affetto.types import Codec

_IN_PROCESS = 48
"""With fewer clips than this the vocoder codes in this process: starting workers would take longer."""

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


class Coders(Protocol):
    """What `coders` yields: runs work with a base's codec."""

    def __call__(self, work: Callable[[Codec, _Part], _Result], parts: Iterable[_Part]) -> Iterator[_Result]:
        """`work(codec, part)` for each of `parts`, in order. Work, parts and results must be picklable."""
        ...


def is_vocoder(base_folder: Path) -> bool:
    """Whether a base's codec is the vocoder, as `load_codec` decides; else it is a network."""
    return (base_folder / "codec.json").is_file()


@contextmanager
def coders(base_folder: Path, num_clips: int, workers: int = 0) -> Iterator[Coders]:
    """Processes that code `num_clips` clips while the block runs: at most `workers` (0: one per core).

    Errors of `load_codec` are raised with the first result; DataError if a process is killed.
    """
    if _stays_here(base_folder, num_clips):
        codec = load_codec(base_folder)
        yield lambda work, parts: (work(codec, part) for part in parts)
        return
    num_processes, threads = (workers or os.cpu_count(), 0) if is_vocoder(base_folder) else (1, _num_threads())
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, spawn, start_worker, (threads,)) as pool:

        def run(work: Callable[[Codec, _Part], _Result], parts: Iterable[_Part]) -> Iterator[_Result]:
            try:
                yield from pool.map(partial(_work, base_folder, work), parts)
            except BrokenProcessPool as error:
                raise DataError(
                    "a process that codes clips ended before its work was done; most often the system killed it "
                    "because memory ran out. What was coded is kept: make room and go on. (In a script, the code to "
                    'run must be under `if __name__ == "__main__":`, or no such process can start.)'
                ) from error

        yield run


def start_worker(threads: int = 0) -> None:
    """Start a worker process that ends with its parent; `threads` sets the number of its network's threads.

    A killed parent can't stop its workers, and they would wait for work for ever, because each holds the writing end of
    the pipe that it reads from.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes start this way"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if threads:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def told() -> Iterator[None]:
    """Turns SoundError into DataError: only errors made from a single message can be pickled back from a worker."""
    try:
        yield
    except SoundError as error:
        raise DataError(str(error)) from None


def _stays_here(base_folder: Path, num_clips: int) -> bool:
    return is_vocoder(base_folder) and num_clips < _IN_PROCESS


def _num_threads() -> int:
    """The number of threads of this process: a batch's last bits can depend on it."""
    import torch

    return torch.get_num_threads()


# Loaded with the first work, not when the process starts: errors at its start would not be reported.
@cache
def _codec(base_folder: Path) -> Codec:
    """The worker's codec."""
    if is_vocoder(base_folder):
        return load_codec(base_folder)
    with quiet_transformers():
        return load_codec(base_folder, use_gpu=True)


def _work(base_folder: Path, work: Callable[[Codec, _Part], _Result], part: _Part) -> _Result:
    return work(_codec(base_folder), part)
