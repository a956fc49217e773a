"""Speaker verification: how often a threshold on similarity confuses two voices.

The equal error rate is where the miss and false-alarm rates of a detection error trade-off curve are equal (Martin et
al. 1997). The curve is left in steps: toolkits that interpolate between them, or take the convex hull first (BOSARIS,
Brümmer and de Villiers 2013), give other numbers for few trials.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def validate(own: ArrayLike, others: ArrayLike) -> None:
    """Raise ValueError if there are no trials of one kind or a score isn't finite."""
    for name, scores in (("own", np.ravel(own)), ("others", np.ravel(others))):
        if not len(scores):
            raise ValueError(f"an equal error rate needs trials of the same voice and of others; {name} has none")
        if num_bad := np.count_nonzero(~np.isfinite(scores.astype(float))):
            raise ValueError(f"scores must be finite; {num_bad} of {len(scores)} in {name} aren't: leave them out")


def evaluate(own: ArrayLike, others: ArrayLike) -> dict[str, float]:
    """`equal_error_rate` of the scores of same-voice trials and of others; ValueError as in `validate`."""
    return {"equal_error_rate": equal_error_rate(own, others)}


def equal_error_rate(own: ArrayLike, others: ArrayLike) -> float:
    """Error rate, 0 to 1, at the threshold where the rejected share of `own` trials equals the accepted of `others`.

    A trial is accepted if its score reaches the threshold. The rates are step functions, which may cross between two
    thresholds: then the lower of their mean rates is taken. ValueError as in `validate`.
    """
    validate(own, others)
    targets, impostors = np.sort(np.ravel(own).astype(float)), np.sort(np.ravel(others).astype(float))
    thresholds = np.append(np.unique(np.concatenate([targets, impostors])), np.inf)
    miss_rate = np.searchsorted(targets, thresholds, side="left") / len(targets)
    false_alarm_rate = 1 - np.searchsorted(impostors, thresholds, side="left") / len(impostors)
    gaps = np.abs(miss_rate - false_alarm_rate)
    return float(np.min(((miss_rate + false_alarm_rate) / 2)[np.isclose(gaps, gaps.min(), rtol=0, atol=1e-9)]))
