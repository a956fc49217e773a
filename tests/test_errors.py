from __future__ import annotations

from affetto.errors import did_you_mean


def test_near_names() -> None:
    assert did_you_mean("emotoin", ["emotion", "speaker"]) == " (did you mean 'emotion'?)"
    assert did_you_mean("Happy", ["happy", "sad"]) == " (did you mean 'happy'?)"
    assert did_you_mean("val", ["train", "validation"]) == " (did you mean 'validation'?)"


def test_nothing_near() -> None:
    assert did_you_mean("zzz", ["happy", "sad"]) == ""
    assert did_you_mean("a", []) == ""
    assert did_you_mean("name-1", [f"name-{number}" for number in range(10_000)]) == "", "too many to search"
