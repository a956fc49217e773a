"""Elastic weight consolidation in natural units: half of dW^T F dW predicts KL(base || adapted) in nats per code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from affetto.model.batch import Row
from affetto.preserve.curvature import Curvature, Factor


def ewc_penalty(curvature: Curvature, factors: Iterable[Factor], step: int | None = None) -> Tensor:
    """Half of dW^T F dW, for `AdapterBank.factors`; nats per code, differentiable.

    With `step`, sampled curvatures use a part of their sample, another one at each step.
    """
    return 0.5 * curvature.form([factor for factor in factors if factor[1].shape[0]], step)


def natural_weight(ewc_lambda: float, mean_codes: float) -> float:
    """The guide's `ewc_lambda` in natural units.

    The guide's Fisher is of the mean loss of one utterance; with N codes in a mean utterance it is 1/N of the
    per-code Fisher, hence lambda / N (method.md, section 2).
    """
    return ewc_lambda / mean_codes


def mean_codes(rows: Sequence[Row], num_codebooks: int) -> float:
    """Mean number of predicted codes per utterance: all codebooks of all frames, whether trained on or not."""
    return sum(row.num_frames for row in rows) * num_codebooks / len(rows)
