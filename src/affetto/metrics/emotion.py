"""Which emotion a judge hears: recall and posterior of the target, and a count of what is heard instead.

Recall is that of one class (the share of its files for which it is the first choice), with Wilson's interval (1927);
papers on emotion recognition mostly give its mean over the classes. Posteriors are the judge's own, not calibrated.
Emotion-embedding similarity isn't included: it rewards mimicry of the reference (arXiv 2604.26347) and is measured only
on request (`evaluate.similarity`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from affetto.metrics import statistics
from affetto.metrics.statistics import Estimate

ROUNDING = 1e-4
"""How far above 1 a probability may be, for those computed in single precision or less."""


class Evaluation(TypedDict):
    """Values by their names in the results; `confusion` counts first choices."""

    recall: Estimate
    posterior: Estimate
    confusion: dict[str, int]


def validate(posteriors_NL: NDArray[np.floating], labels: Sequence[str], target: str, prompts: Sequence[str]) -> None:
    """Raise ValueError if posteriors aren't one probability per file and label, or the names don't match."""
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels must be unique, not {', '.join(labels)}; add up the probabilities of equal ones")
    if target not in labels:
        raise ValueError(f"the judge has no label {target!r}; choose one of {', '.join(labels)}")
    if posteriors_NL.shape != (len(prompts), len(labels)):
        raise ValueError(
            f"posteriors of {len(prompts)} files (one prompt each) and {len(labels)} labels must have the shape "
            f"{(len(prompts), len(labels))}, not {posteriors_NL.shape}"
        )
    if bad := np.flatnonzero(~((posteriors_NL >= 0) & (posteriors_NL <= 1 + ROUNDING)).all(axis=1)).tolist():
        raise ValueError(f"posteriors must be probabilities, 0 to 1; rows {bad[:5]} aren't: apply softmax to scores")


def evaluate(
    posteriors_NL: NDArray[np.floating], labels: Sequence[str], target: str, prompts: Sequence[str]
) -> Evaluation:
    """All metrics of N files' posteriors; file n says `prompts[n]`. ValueError as in `validate`."""
    validate(posteriors_NL, labels, target, prompts)
    choices = first_choices(posteriors_NL, labels)
    return {
        "recall": recall(choices, target, prompts),
        "posterior": mean_posterior(target_posteriors(posteriors_NL, labels, target), prompts),
        "confusion": confusion(choices, labels),
    }


def first_choices(posteriors_NL: NDArray[np.floating], labels: Sequence[str]) -> list[str]:
    """Most probable label of every row; a tie goes to the label that comes first."""
    return [labels[index] for index in np.argmax(posteriors_NL, axis=1)]


def target_posteriors(posteriors_NL: NDArray[np.floating], labels: Sequence[str], target: str) -> list[float]:
    """Probability of `target` in every row."""
    return [float(p) for p in posteriors_NL[:, list(labels).index(target)]]


def recall(choices: Sequence[str], target: str, prompts: Sequence[str]) -> Estimate:
    """Share of first choices that are the target, with Wilson's interval clustered by prompt."""
    return statistics.share([choice == target for choice in choices], prompts)


def mean_posterior(posteriors: Sequence[float], prompts: Sequence[str]) -> Estimate:
    """Mean probability of the target, bootstrapped over prompts."""
    return statistics.bootstrap_mean(posteriors, prompts)


def confusion(choices: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """How often each of the judge's labels is the first choice, in the judge's order; ValueError for other labels."""
    if unknown := sorted(set(choices) - set(labels)):
        raise ValueError(f"the judge has no label {', '.join(unknown)}; its labels are {', '.join(labels)}")
    return {label: choices.count(label) for label in labels}
