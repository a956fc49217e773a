"""Which emotion a judge hears. Recall and posterior of the target, and what was heard instead.

Emotion-embedding similarity isn't among them: it rewards mimicry of the reference (arXiv 2604.26347), and is measured
only on request (`evaluate.similarity`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from affetto.metrics import statistics
from affetto.metrics.statistics import Estimate


def first_choices(posteriors_NL: NDArray[np.floating], labels: Sequence[str]) -> list[str]:
    """Most probable label of every row; a tie goes to the label that comes first."""
    return [labels[index] for index in np.argmax(posteriors_NL, axis=1)]


def target_posteriors(posteriors_NL: NDArray[np.floating], labels: Sequence[str], target: str) -> list[float]:
    """Probability of `target` in every row."""
    return [float(p) for p in posteriors_NL[:, list(labels).index(target)]]


def recall(choices: Sequence[str], target: str) -> Estimate:
    """Share of first choices that are the target, with Wilson's interval."""
    return statistics.share([choice == target for choice in choices])


def mean_posterior(posteriors: Sequence[float], prompts: Sequence[str]) -> Estimate:
    """Mean probability of the target, bootstrapped over prompts."""
    return statistics.bootstrap_mean(posteriors, prompts)


def confusion(choices: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """How often each of the judge's labels was the first choice; every label is listed, in the judge's order."""
    unknown = set(choices) - set(labels)
    assert not unknown, unknown
    return {label: choices.count(label) for label in labels}
