"""Who speaks, as the base counts: a number for every speaker of the data."""

from __future__ import annotations

from collections.abc import Collection


def speaker_numbers(speakers: Collection[str]) -> dict[str, int]:
    """CSM's speaker numbers for a data set's speakers: numbers stay, others get the lowest free numbers in order.

    A number is written as Python writes it: "0", not "00".
    """
    numbers = {speaker: int(speaker) for speaker in speakers if speaker.isdecimal() and str(int(speaker)) == speaker}
    free = (number for number in range(10**6) if number not in set(numbers.values()))
    numbers |= {speaker: next(free) for speaker in sorted(speakers) if speaker not in numbers}
    return numbers
