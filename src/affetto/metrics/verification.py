"""Speaker verification: how often a threshold on likeness takes one voice for another.

The equal error rate is where the misses and the false alarms of a detection error trade-off curve are equal (Martin et
al. 1997). The curve is left in steps: toolkits that interpolate between them, or take the convex hull first (BOSARIS,
Brümmer and de Villiers 2013), give other numbers for few trials.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def validate(own: ArrayLike, others: ArrayLike) -> None:
    """Raise ValueError if there is no trial of a kind or a score isn't finite."""
    for name, scores in (("own", np.ravel(own)), ("others", np.ravel(others))):
        if not len(scores):
            raise ValueError(f"an equal error rate needs trials of the same voice and of others; {name} has none")
        if num_bad := np.count_nonzero(~np.isfinite(scores.astype(float))):
            raise ValueError(f"scores must be finite; {num_bad} of {len(scores)} in {name} aren't: leave them out")


def evaluate(own: ArrayLike, others: ArrayLike) -> dict[str, float]:
    """`equal_error_rate` of the scores of same-voice trials and of others; ValueError as `validate`."""
    return {"equal_error_rate": equal_error_rate(own, others)}


def equal_error_rate(own: ArrayLike, others: ArrayLike) -> float:
    """Error rate at the threshold where as many `own` trials are turned away as `others` are let in, in 0 to 1.

    A trial is let in where its score reaches the threshold. Scores are steps, so the two rates cross between two of
    them: there the lower of the mean rates is taken. ValueError as `validate`.
    """
    validate(own, others)
    targets, impostors = np.sort(np.ravel(own).astype(float)), np.sort(np.ravel(others).astype(float))
    thresholds = np.append(np.unique(np.concatenate([targets, impostors])), np.inf)
    turned_away = np.searchsorted(targets, thresholds, side="left") / len(targets)
    let_in = 1 - np.searchsorted(impostors, thresholds, side="left") / len(impostors)
    gaps = np.abs(turned_away - let_in)
    return float(np.min(((turned_away + let_in) / 2)[np.isclose(gaps, gaps.min(), rtol=0, atol=1e-9)]))
