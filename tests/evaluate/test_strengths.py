"""Other strengths stand in order, and the evaluated one isn't said twice; tests/test_main_road.py hears real ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from affetto.evaluate.results import AT_STRENGTHS, VALUE_NAMES, FileRow, System
from affetto.evaluate.strengths import by_intensity, hear_strengths, of_strengths
from affetto.judges.kinds import Judges
from evaluate_fakes import fake_judges


@pytest.fixture
def asked() -> list[float]:
    return []


@pytest.fixture
def say(asked: list[float]) -> Callable[[float], list[FileRow]]:
    """One file whose posterior is the intensity that was asked for."""

    def speak(intensity: float) -> list[FileRow]:
        asked.append(intensity)
        values = {**dict.fromkeys(VALUE_NAMES), "posterior": intensity, "recall": 1, "first_choice": "happy"}
        row = FileRow(
            file="a.wav",
            prompt="emotional",
            text="hello",
            speaker="0",
            seed=1,
            duration_s=1.0,
            error=None,
            values=values,
        )
        return [row]

    return speak


def own(intensity: float) -> System:
    metric = {"value": -1.0, "low": None, "high": None, "n": 2, "unit": "share", "reason": None}
    return System(
        name="happy", role="adapter", intensity=intensity, num_files=0, num_failed=0,
        metrics=dict.fromkeys((*AT_STRENGTHS, "mos_overall"), metric), plain_metrics=None, confusion=None, files=[],
    )  # type: ignore[typeddict-item]  # fmt: skip


def test_strengths_stand_in_order_and_the_evaluated_one_is_not_spoken_again(say, asked: list[float]) -> None:
    found = hear_strengths(own(1.0), (1.25, 1.0, 0.5), fake_judges(), say)
    assert asked == [1.25, 0.5]
    assert [(item["intensity"], item["metrics"]["posterior"]["value"]) for item in found] == [
        (0.5, 0.5), (1.0, -1.0), (1.25, 1.25)
    ]  # fmt: skip
    assert all(tuple(item["metrics"]) == AT_STRENGTHS for item in found)


def test_without_judges_or_strengths_there_is_nothing_to_hear(say, asked: list[float]) -> None:
    assert hear_strengths(own(1.0), (0.5,), Judges(), say) == []
    assert hear_strengths(own(1.0), (), fake_judges(), say) == []
    assert hear_strengths(own(1.0), (1.0,), fake_judges(), say) == []
    assert asked == []


def test_recordings_stand_by_how_strongly_they_are_acted(say) -> None:
    rows = [row for intensity in (0.9, 0.3, 0.5) for row in say(intensity)]
    found = by_intensity(rows, [1.0, 0.6, 1.0], fake_judges())
    assert [(item["intensity"], item["metrics"]["posterior"]["value"]) for item in found] == [
        (0.6, 0.3), (1.0, pytest.approx(0.7))
    ]  # fmt: skip
    assert all(tuple(item["metrics"]) == AT_STRENGTHS for item in found)
    assert by_intensity(rows, [1.0] * 3, fake_judges()) == by_intensity([], [], fake_judges()) == []
    assert by_intensity(rows, [1.0, 0.6, 1.0], Judges()) == []


def test_only_emotion_and_words_are_judged() -> None:
    judges = of_strengths(fake_judges())
    assert judges.emotion is not None
    assert judges.words is not None
    assert (judges.quality, judges.voice, judges.dimensions, judges.embedding) == (None, None, None, None)
