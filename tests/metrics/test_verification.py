from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.metrics.verification import equal_error_rate, evaluate, validate

SCORES = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=30)


def test_voices_that_never_mix_have_no_errors_and_ones_that_are_swapped_have_all() -> None:
    assert equal_error_rate([0.8, 0.9], [0.1, 0.2]) == 0
    assert equal_error_rate([0.1, 0.2], [0.8, 0.9]) == 1
    assert equal_error_rate([0.5, 0.5], [0.5, 0.5]) == 0.5


def test_known_normal_scores_meet_where_their_tails_do() -> None:
    """Scores one standard deviation either side of the threshold: Φ(−1) = 0.1587 errors of each kind."""
    rng = np.random.default_rng(0)
    own, others = rng.normal(1, 1, 40_000), rng.normal(-1, 1, 40_000)
    assert equal_error_rate(own, others) == pytest.approx(0.1587, abs=0.004)


@given(SCORES, SCORES)
@settings(deadline=None)
def test_every_threshold_was_tried(own: list[float], others: list[float]) -> None:
    tried = []
    for threshold in [*own, *others, 99.0]:
        away = sum(score < threshold for score in own) / len(own)
        into = sum(score >= threshold for score in others) / len(others)
        tried.append((round(abs(away - into), 12), (away + into) / 2))
    assert equal_error_rate(own, others) == pytest.approx(min(tried)[1], abs=1e-9)


@pytest.mark.parametrize(
    ("own", "others", "message"),
    [
        ([], [1.0], "needs trials.*; own has none"),
        ([1.0], [], "needs trials.*; others has none"),
        ([np.nan, 0.5], [1.0], "finite; 1 of 2 in own"),
        ([1.0], [np.inf], "finite; 1 of 1 in others"),
    ],
)
def test_what_cannot_be_compared_is_refused(own: list[float], others: list[float], message: str) -> None:
    for measure in (validate, equal_error_rate, evaluate):
        with pytest.raises(ValueError, match=message):
            measure(own, others)


def test_evaluate_has_the_rate() -> None:
    assert evaluate([0.9, 0.2, 0.8, 0.7], [0.1, 0.3, 0.4, 0.75]) == {"equal_error_rate": 0.25}
