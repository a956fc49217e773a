"""Other strengths stand in order, and the evaluated one isn't said twice; tests/test_main_road.py hears real ones."""

from __future__ import annotations

import pytest

from affetto.evaluate import strengths
from affetto.evaluate.results import System
from affetto.evaluate.strengths import HEARD, Sentence, hear_strengths
from affetto.judges.kinds import Judges
from affetto.speak.voice import Voice
from evaluate_fakes import fake_judges

SENTENCES = [Sentence("The red boat came back", "0", 0, 5), Sentence("Please call the road", "1", 1, 6)]


@pytest.fixture(scope="module")
def voice() -> Voice:
    return Voice.load("miniature")


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The intensities that were asked for, while a base without adapters speaks."""
    asked: list[float] = []

    def plain(*_args, intensity, **_options):
        asked.append(intensity)
        return {name: {"value": intensity, "low": None, "high": None, "n": 2, "unit": "share", "reason": None}
                for name in (*HEARD, "mos_overall")}  # fmt: skip

    monkeypatch.setattr(strengths, "hear", plain)
    return asked


def own(intensity: float) -> System:
    metric = {"value": -1.0, "low": None, "high": None, "n": 2, "unit": "share", "reason": None}
    return System(
        name="happy", role="adapter", intensity=intensity, num_files=0, num_failed=0,
        metrics=dict.fromkeys((*HEARD, "mos_overall"), metric), plain_metrics=None, confusion=None, files=[],
    )  # type: ignore[typeddict-item]  # fmt: skip


def test_strengths_stand_in_order_and_the_evaluated_one_is_not_spoken_again(voice: Voice, spoken: list[float]) -> None:
    found = hear_strengths(voice, SENTENCES, own(1.0), (1.25, 1.0, 0.5), fake_judges(), temperature=0.6)
    assert spoken == [1.25, 0.5]
    assert [(item["intensity"], item["metrics"]["recall"]["value"]) for item in found] == [
        (0.5, 0.5), (1.0, -1.0), (1.25, 1.25)
    ]  # fmt: skip
    assert all(tuple(item["metrics"]) == HEARD for item in found)


def test_without_judges_or_strengths_there_is_nothing_to_hear(voice: Voice, spoken: list[float]) -> None:
    assert hear_strengths(voice, SENTENCES, own(1.0), (0.5,), Judges(), temperature=0.6) == []
    assert hear_strengths(voice, SENTENCES, own(1.0), (), fake_judges(), temperature=0.6) == []
    assert hear_strengths(voice, SENTENCES, own(1.0), (1.0,), fake_judges(), temperature=0.6) == []
    assert spoken == []
