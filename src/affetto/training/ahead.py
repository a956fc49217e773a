"""Prefetching: a thread makes the next step's batches while the GPU works on this one's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Gives `make(0)`, `make(1)`, … up to `stop`; with `is_on` a thread makes each one ahead of time.

    `make` must depend on its number alone, so that it doesn't matter when it is called. What it raises is raised when
    its result is taken.
    """

    def __init__(self, make: Callable[[int], T], stop: int, *, is_on: bool = True) -> None:
        self._make, self._stop = make, stop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead") if is_on else None
        self._next: tuple[int, Future[T]] | None = None

    def take(self, number: int) -> T:
        """`make(number)`; the thread then starts on the next one."""
        if self._thread is None:
            return self._make(number)
        known, self._next = self._next, None
        found = known[1].result() if known is not None and known[0] == number else self._make(number)
        if number + 1 < self._stop:
            self._next = number + 1, self._thread.submit(self._make, number + 1)
        return found

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
