"""The base model's speaker numbers: one for every speaker of the data."""

from __future__ import annotations

from collections.abc import Collection


def speaker_numbers(speakers: Collection[str]) -> dict[str, int]:
    """CSM's speaker numbers for a data set's speakers: numbers stay, other names get the lowest free ones in order.

    Only names that Python would print for a number count as numbers: "0", not "00".
    """
    numbers = {speaker: int(speaker) for speaker in speakers if speaker.isdecimal() and str(int(speaker)) == speaker}
    free = (number for number in range(10**6) if number not in set(numbers.values()))
    numbers |= {speaker: next(free) for speaker in sorted(speakers) if speaker not in numbers}
    return numbers
