"""The forgetting budget in a run: which multiplier a step takes, and what steps and validations tell the controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from affetto.preserve.budget import BudgetState, ForgettingBudget
from affetto.training.step import LossWeights, agreed, rehearsal_kl
from affetto.training.validation import Validation, fit_intensity


def step_weights(
    weights: LossWeights, budget: ForgettingBudget | None, control: BudgetState | None
) -> LossWeights:  # fmt: skip
    """A step's weights: those of the configuration, with a budget under the controller's multiplier."""
    if budget is None:
        return weights
    return replace(weights, multiplier=budget.multiplier(control or BudgetState()))


def after_step(
    budget: ForgettingBudget | None, control: BudgetState | None, terms: Mapping[str, float], num_codebooks: int
) -> tuple[BudgetState | None, dict[str, float]]:
    """The controller after a step with `terms`, and what the log says of it; nothing without a budget.

    The log gets the multiplier that the step took, and the smoothed KL of rehearsed clips with its target.
    """
    if budget is None:
        return None, {}
    control = control or BudgetState()
    values = {"multiplier": budget.multiplier(control)}
    kl = rehearsal_kl(terms, num_codebooks)
    if kl is not None:
        control = budget.update(control, kl)
    if control.kl is not None:
        values |= {"rehearsal_kl": control.kl, "rehearsal_kl_target": budget.target(control)}
    return control, values


def after_validation(
    budget: ForgettingBudget | None,
    control: BudgetState | None,
    values: Mapping[str, float | None],
    validation: Validation,
    accelerator: Any,
) -> tuple[BudgetState | None, dict[str, float | None]]:
    """The controller after a validation that found `values`, and what the log says; nothing without a budget.

    The log gets the largest intensity at which this adapter is inside the budget, and its emotion NLL there. By that
    number the best adapter is chosen: each is judged as it would be spoken with, and one that happens to stand a little
    above the budget isn't thrown away for it.
    """
    if budget is None:
        return None, {}
    kl = values["general_kl"]
    assert kl is not None, "a budget is of general clips"
    control = budget.correct(control or BudgetState(), agreed(kl, accelerator))
    intensity, _ = fit_intensity(validation.general_kl, budget.budget, {1.0: kl})
    return control, {"intensity_in_budget": intensity, "emotion_nll_in_budget": validation.emotion_nll(intensity)}
