from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from affetto.metrics import emotion
from affetto.metrics.statistics import bootstrap_mean, share

LABELS = ("sad", "happy", "angry")
POSTERIORS = np.array([[0.1, 0.7, 0.2], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2], [0.0, 1.0, 0.0]])
PROMPTS = ["one", "two", "two", "three"]


def test_evaluate_has_all_metrics() -> None:
    found = emotion.evaluate(POSTERIORS, LABELS, "happy", PROMPTS)
    assert (found["recall"].value, found["recall"].n) == (0.5, 4)
    assert found["recall"] == share([True, False, False, True], PROMPTS)
    assert found["posterior"] == bootstrap_mean([0.7, 0.2, 0.4, 1.0], PROMPTS)
    assert found["posterior"].value == pytest.approx(2.3 / 4)
    assert found["confusion"] == {"sad": 1, "happy": 2, "angry": 1}, "a tie goes to the first label"


def test_no_files_have_reasons_and_no_numbers() -> None:
    found = emotion.evaluate(np.zeros((0, 3)), LABELS, "happy", [])
    for estimate in (found["recall"], found["posterior"]):
        assert estimate.value is None
        assert estimate.reason
    assert found["confusion"] == dict.fromkeys(LABELS, 0)


def _with(value: float) -> NDArray[np.float64]:
    changed = POSTERIORS.copy()
    changed[2, 1] = value
    return changed


@pytest.mark.parametrize(
    ("posteriors", "labels", "target", "prompts", "message"),
    [
        (POSTERIORS, ("sad", "happy", "sad"), "happy", PROMPTS, "unique, not sad, happy, sad"),
        (POSTERIORS, LABELS, "bored", PROMPTS, "no label 'bored'; choose one of sad, happy, angry"),
        (POSTERIORS, LABELS[:2], "happy", PROMPTS, r"shape \(4, 2\), not \(4, 3\)"),
        (POSTERIORS, LABELS, "happy", PROMPTS[:3], r"shape \(3, 3\), not \(4, 3\)"),
        (POSTERIORS[0], LABELS, "happy", PROMPTS[:1], r"shape \(1, 3\), not \(3,\)"),
        (_with(-0.1), LABELS, "happy", PROMPTS, r"0 to 1; rows \[2\]"),
        (_with(1.01), LABELS, "happy", PROMPTS, r"0 to 1; rows \[2\]"),
        (_with(np.nan), LABELS, "happy", PROMPTS, r"0 to 1; rows \[2\]"),
    ],
)
def test_what_is_no_posterior_of_the_files_is_refused(
    posteriors: NDArray[np.float64], labels: tuple[str, ...], target: str, prompts: list[str], message: str
) -> None:
    for check in (emotion.validate, emotion.evaluate):
        with pytest.raises(ValueError, match=message):
            check(posteriors, labels, target, prompts)


def test_rounding_over_one_is_let_pass() -> None:
    assert emotion.evaluate(_with(1 + 1e-6), LABELS, "happy", PROMPTS)["recall"].value == 0.75


def test_a_choice_that_is_no_label_is_refused() -> None:
    with pytest.raises(ValueError, match="no label bored, calm; its labels are sad, happy, angry"):
        emotion.confusion(["sad", "calm", "bored"], LABELS)
