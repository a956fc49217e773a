"""What is made ahead is what would have been made in time."""

from __future__ import annotations

import threading

import pytest

from affetto.training.ahead import Ahead


@pytest.mark.parametrize("is_on", [False, True])
def test_everything_comes_once_and_in_order(is_on: bool) -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number * number

    with Ahead(make, 6, is_on=is_on) as ahead:
        assert [ahead.take(number) for number in range(2, 6)] == [4, 9, 16, 25]
    assert sorted(made) == [2, 3, 4, 5], "nothing is made twice, and nothing behind the end"


def test_the_next_is_made_while_this_one_is_used() -> None:
    is_made = threading.Event()

    def make(number: int) -> int:
        if number == 1:
            is_made.set()
        return number

    with Ahead(make, 2) as ahead:
        assert ahead.take(0) == 0
        assert is_made.wait(5), "nobody asked for it yet"
        assert ahead.take(1) == 1


def test_a_leap_is_made_at_once() -> None:
    with Ahead(lambda number: number, 10) as ahead:
        assert [ahead.take(number) for number in (0, 5, 6)] == [0, 5, 6]


def test_errors_come_up_where_the_result_is_asked_for() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise ValueError("a bad clip")
        return number

    with Ahead(make, 3) as ahead:
        ahead.take(0)
        with pytest.raises(ValueError, match="a bad clip"):
            ahead.take(1)
        assert ahead.take(2) == 2
