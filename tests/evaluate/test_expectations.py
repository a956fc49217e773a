from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from affetto.evaluate import expectations
from affetto.evaluate.expectations import MEASURED, against_neutral, expected, holds
from affetto.evaluate.results import VALUE_NAMES, FileRow
from affetto.evaluate.summary import METRICS, compare
from affetto.types import EMOTIONS


def _row(index: int, speaker: str = "a", **values: Any) -> FileRow:
    return FileRow(
        file=f"{index}.wav", prompt="emotional", text=f"text {index}", speaker=speaker, seed=0, duration_s=1.0,
        error=None, values={**dict.fromkeys(VALUE_NAMES), **values},
    )  # fmt: skip


def test_directions_are_of_metrics_and_emotions_that_exist() -> None:
    for table in (expectations.PROSODY, expectations.DIMENSIONS):
        assert set(table) <= {*EMOTIONS, "disgusted"} - {"neutral"}
        for directions in table.values():
            assert set(directions) <= set(MEASURED) <= set(METRICS)
    assert expected("sad", "f0_median_st") == "lower"
    assert expected("angry", "valence") == "lower"
    assert expected("surprised", "f0_median_st") is None
    assert expected("happy", "jitter") is None


@pytest.mark.parametrize(
    ("low", "high", "n", "direction", "answer"),
    [
        (0.1, 0.5, 20, "higher", "yes"),
        (0.1, 0.5, 20, "lower", "no"),
        (-0.5, -0.1, 20, "lower", "yes"),
        (-0.5, -0.1, 20, "higher", "no"),
        (-0.1, 0.5, 20, "higher", "undecided"),
        (0.1, 0.5, 19, "higher", None),
        (None, None, 30, "higher", None),
    ],
)
def test_an_interval_decides_whether_a_direction_holds(
    low: float | None, high: float | None, n: int, direction: Any, answer: str | None
) -> None:
    assert holds(low, high, n, direction) == answer


def test_a_comparison_with_the_base_says_what_holds() -> None:
    rng = np.random.default_rng(0)
    base = [_row(i, f0_median_st=5.0, level_db=-20 + rng.normal(), pause_share=0.1 + i / 999) for i in range(30)]
    ours = [
        _row(i, f0_median_st=3 + rng.normal(0, 0.5), level_db=-20 + rng.normal(), pause_share=0.05) for i in range(30)
    ]
    metrics = compare(ours, base, system="sad", against="base", prompt="emotional", emotion="sad")["metrics"]
    assert (metrics["f0_median_st"]["expected"], metrics["f0_median_st"]["holds"]) == ("lower", "yes")
    assert metrics["level_db"]["holds"] == "undecided"
    assert (metrics["pause_share"]["expected"], metrics["pause_share"]["holds"]) == ("higher", "no")
    assert metrics["syllables_per_s"]["holds"] is None, "no file has it"
    assert "expected" not in metrics["wer"]
    assert (
        "expected" not in compare(ours, base, system="sad", against="base", prompt="emotional")["metrics"]["level_db"]
    )


def test_neutral_is_taken_from_each_speakers_own_files() -> None:
    rng = np.random.default_rng(1)
    voices = {f"s{k}": rng.normal(0, 8) for k in range(12)}
    neutral = [_row(i, name, f0_median_st=middle + rng.normal()) for name, middle in voices.items() for i in range(3)]
    happy = [
        _row(10 + i, name, f0_median_st=middle + 2 + rng.normal()) for name, middle in voices.items() for i in range(4)
    ]
    stranger = _row(99, "someone else", f0_median_st=50.0)
    comparison = against_neutral([*happy, stranger], neutral, system="x", emotion="happy")
    metric = comparison["metrics"]["f0_median_st"]
    means = {
        name: np.mean([row["values"]["f0_median_st"] for row in neutral if row["speaker"] == name]) for name in voices
    }
    deltas = [row["values"]["f0_median_st"] - means[row["speaker"]] for row in happy]  # type: ignore[index, operator]
    assert metric["difference"] == pytest.approx(np.mean(deltas))
    assert (metric["n"], metric["holds"]) == (48, "yes")
    assert metric["high"] - metric["low"] < 2, "the speakers' own pitch, which differs by far more, is out of it"  # type: ignore[operator]
    assert comparison["metrics"]["arousal"]["reason"] == "no speaker has this value in both"


def test_what_a_few_speakers_say_is_said_of_these_alone() -> None:
    """The files of each are what was sampled then, and the reason tells."""
    rng = np.random.default_rng(3)
    happy = [_row(i, level_db=float(rng.normal(-18, 2))) for i in range(25)]
    neutral = [_row(i, level_db=float(rng.normal(-24, 2))) for i in range(15)]
    metric = against_neutral(happy, neutral, system="x", emotion="happy")["metrics"]["level_db"]
    test = stats.ttest_ind(*([row["values"]["level_db"] for row in side] for side in (happy, neutral)), equal_var=False)
    assert (metric["low"], metric["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert metric["holds"] == "yes"
    assert metric["reason"] == "about this 1 speaker only: generalising needs at least 6"
    few = against_neutral(happy, neutral[:1], system="x", emotion="happy")["metrics"]["level_db"]
    assert (few["low"], few["holds"]) == (None, None)
    assert few["reason"] == "one file, or files that are all alike, give no interval"


def test_intervals_against_neutral_cover_the_truth_as_often_as_they_say() -> None:
    """Over 1,000 data sets of 20 speakers, who differ in pitch and in how much they move it."""
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(1000):
        moves = rng.normal(2.0, 1.0, 20)
        neutral = [_row(i, f"s{k}", f0_median_st=k + rng.normal()) for k in range(20) for i in range(3)]
        happy = [_row(9 + i, f"s{k}", f0_median_st=k + moves[k] + rng.normal()) for k in range(20) for i in range(4)]
        metric = against_neutral(happy, neutral, system="x", emotion="happy")["metrics"]["f0_median_st"]
        assert metric["low"] is not None
        assert metric["high"] is not None
        covered.append(metric["low"] <= 2.0 <= metric["high"])
    assert 0.93 <= np.mean(covered) <= 0.97
