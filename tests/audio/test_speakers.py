"""Speaker numbers of the base."""

from __future__ import annotations

from affetto.audio.speakers import speaker_numbers


def test_numbers_stay_and_names_fill_the_gaps() -> None:
    assert speaker_numbers({"1", "anna", "0", "bob"}) == {"0": 0, "1": 1, "anna": 2, "bob": 3}


def test_what_only_looks_like_a_number_is_a_name() -> None:
    """Two speakers never share a number, and "²" is no error."""
    numbers = speaker_numbers({"0", "00", "007", "²"})
    assert numbers["0"] == 0
    assert sorted(numbers.values()) == [0, 1, 2, 3]
