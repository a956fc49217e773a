"""The intensity at which an adapter is as strong as its clips: on made-up prosody, where it is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from affetto.evaluate.matching import FEATURES, LEAST, MOST, Match, by_voice, kept_prosody, match
from affetto.evaluate.results import VALUE_NAMES, FileRow

AIM = np.array([6.0, 3.0, 0.5, 4.0])
"""What acting changes, in each feature's own unit."""
SPREAD = np.array([1.5, 1.0, 0.4, 2.0])
VOICES = {"low": np.array([2.0, 5.0, 4.0, -25.0]), "high": np.array([9.0, 6.0, 4.4, -22.0])}


def spoken(shift: NDArray[np.float64], seed: int, voices: tuple[str, ...] = ("low", "high")) -> dict[str, NDArray]:
    rng = np.random.default_rng(seed)
    return {name: VOICES[name] + shift + rng.normal(0, 0.1, (40, 4)) * SPREAD for name in voices}


def speaker(strength: Callable[[float], float], asked: list[float]) -> Callable[[float], dict[str, NDArray]]:
    """A model whose change is `strength(intensity)` of the acting."""

    def say(intensity: float) -> dict[str, NDArray]:
        asked.append(intensity)
        return spoken(AIM * (strength(intensity) if intensity else 0.0), round(100 * intensity) + 1)

    return say


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (lambda i: i, 1.0), (lambda i: i / 1.2, 1.2), (lambda i: i / 0.8, 0.8), (lambda i: i / 0.6, 0.6),
        (lambda i: i**3, 1.0), (lambda i: 0.4 * i, MOST), (lambda i: 4 * i, LEAST),
    ],
)  # fmt: skip
def test_the_intensity_is_found(strength: Callable[[float], float], expected: float) -> None:
    asked: list[float] = []
    found = match(speaker(strength, asked), spoken(AIM, 0))
    assert found.intensity == pytest.approx(expected, abs=0.03)
    assert found.reason is None
    assert len(asked) <= 4, "the base and at most three looks"
    assert found.strengths == {at: pytest.approx(strength(at), abs=0.03) for at in asked[1:]}


def test_what_gets_weaker_again_stays_where_it_was_nearest() -> None:
    found = match(speaker(lambda i: 0.8 if i == 1.0 else 0.5, []), spoken(AIM, 0))
    assert found.intensity == 1.0


def test_clips_that_are_acted_weakly_are_matched_at_their_share() -> None:
    """At gate 0.6 the adapter is to be as strong as they are, so at 1 it is stronger than they are."""
    found = match(speaker(lambda i: i, []), spoken(0.6 * AIM, 0), acted_at=0.6)
    assert found.intensity == pytest.approx(1.0, abs=0.03)


def test_a_voice_counts_by_its_own_plain_reading() -> None:
    """Voices differ by more than emotions: who speaks how often must not matter."""
    acted = spoken(AIM, 0)
    acted["high"] = acted["high"][:3]
    assert match(speaker(lambda i: i / 1.2, []), acted).intensity == pytest.approx(1.2, abs=0.05)
    alone = match(speaker(lambda i: i / 1.2, []), spoken(AIM, 0, ("low",)))
    assert alone.intensity == pytest.approx(1.2, abs=0.05)


def test_the_distance_is_in_standard_deviations_of_the_plain_reading_within_voices() -> None:
    plain = {"low": np.array([[0.0] * 4, [2.0] * 4]), "high": np.array([[10.0] * 4, [12.0] * 4])}
    found = match(lambda at: {name: values + 3.0 * at for name, values in plain.items()}, {"low": plain["low"] + 3.0})
    assert found.distance == pytest.approx(3.0 / 2**0.5 * 4**0.5), "two readings 2 apart have a variance of 2"
    assert found.strengths[1.0] == pytest.approx(1.0)


def test_nothing_is_matched_where_there_is_nothing_to_match() -> None:
    plain = match(speaker(lambda i: i, []), spoken(0.001 * AIM, 0))
    assert plain.intensity is None
    assert "standard deviations" in str(plain.reason)
    strangers = match(speaker(lambda i: i, []), {"nobody": np.ones((9, 4))})
    assert strangers.intensity is None
    assert strangers.distance is None
    assert "no voice" in str(strangers.reason)
    for found in (plain, strangers):
        assert found.document()["intensity"] is None
        assert found.document()["reason"]


def test_rows_without_pitch_are_left_out() -> None:
    def row(speaker: str, **values: float | None) -> FileRow:
        filled = {**dict.fromkeys(VALUE_NAMES), **dict.fromkeys(FEATURES, 1.0), **values}
        return FileRow(
            file="a", prompt=None, text="a", speaker=speaker, seed=None, duration_s=1.0, error=None, values=filled
        )  # type: ignore[typeddict-item]

    found = by_voice([row("a"), row("a", f0_median_st=None), row("b", level_db=-3.0)])
    assert {name: values.tolist() for name, values in found.items()} == {"a": [[1.0] * 4], "b": [[1.0, 1.0, 1.0, -3.0]]}


def test_what_is_written_is_sorted_and_short() -> None:
    written = Match(1.16, {1.25: 1.1182, 1.0: 0.80512345}, 14.78925).document()
    looks = [{"intensity": 1.0, "strength": 0.8051}, {"intensity": 1.25, "strength": 1.1182}]
    assert written == {"intensity": 1.16, "strengths": looks, "distance": 14.789, "reason": None}


def test_what_the_base_says_plainly_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last digit, and anew where the file was cut short or is of another form."""
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path))
    measured: list[int] = []

    def measure() -> dict[str, NDArray]:
        measured.append(1)
        return spoken(AIM, len(measured))

    def told(key: str) -> dict[str, list[list[float]]]:
        return {name: values.tolist() for name, values in kept_prosody(key, measure).items()}

    first = told("a")
    assert first == {name: values.tolist() for name, values in spoken(AIM, 1).items()}
    assert (told("a"), len(measured)) == (first, 1)
    assert told("b") != first
    for number, damaged in enumerate(("{", "[]", '{"low": [[1.0]]}', "\xff"), start=3):
        (tmp_path / "prosody" / "a.json").write_bytes(damaged.encode("latin-1"))
        assert told("a") == {name: values.tolist() for name, values in spoken(AIM, number).items()}
    assert len(measured) == 6
