"""Speaker verification: how often a threshold on likeness takes one voice for another."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def equal_error_rate(own: ArrayLike, others: ArrayLike) -> float:
    """Error rate at the threshold where as many `own` trials are turned away as `others` are let in, in 0 to 1.

    A trial is let in where its score reaches the threshold. Scores are steps, so the two rates cross between two of
    them: there the lower of the mean rates is taken. Raises ValueError where there is no trial of a kind or a score
    isn't finite.
    """
    targets, impostors = np.sort(np.ravel(own).astype(float)), np.sort(np.ravel(others).astype(float))
    if not len(targets) or not len(impostors):
        raise ValueError("an equal error rate needs trials of the same voice and of others")
    if not np.isfinite(targets).all() or not np.isfinite(impostors).all():
        raise ValueError("scores must be finite")
    thresholds = np.append(np.unique(np.concatenate([targets, impostors])), np.inf)
    turned_away = np.searchsorted(targets, thresholds, side="left") / len(targets)
    let_in = 1 - np.searchsorted(impostors, thresholds, side="left") / len(impostors)
    gaps = np.abs(turned_away - let_in)
    return float(np.min(((turned_away + let_in) / 2)[np.isclose(gaps, gaps.min(), rtol=0, atol=1e-9)]))
