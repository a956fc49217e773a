"""The forgetting budget in a run: the multiplier of each step, and how steps and validations steer its controller."""

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
    """A step's weights: the configuration's, with a budget under the controller's current multiplier."""
    if budget is None:
        return weights
    return replace(weights, multiplier=budget.multiplier(control or BudgetState()))


def after_step(
    budget: ForgettingBudget | None, control: BudgetState | None, terms: Mapping[str, float], num_codebooks: int
) -> tuple[BudgetState | None, dict[str, float]]:
    """The controller's state after a step with `terms`, and values for the log; nothing without a budget.

    The log gets the multiplier of the step, and the smoothed KL on rehearsed clips with its target.
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
    """The controller's state after a validation that found `values`, and values for the log; nothing without a budget.

    The log gets the largest intensity at which the adapter is inside the budget, and its emotion NLL there. The best
    adapter is chosen by that NLL: each is judged at the strength it would be used at, and one that is slightly over the
    budget at full strength isn't discarded for it.
    """
    if budget is None:
        return None, {}
    kl = values["general_kl"]
    assert kl is not None, "a budget is of general clips"
    control = budget.correct(control or BudgetState(), agreed(kl, accelerator))
    intensity, _ = fit_intensity(validation.general_kl, budget.budget, {1.0: kl})
    return control, {"intensity_in_budget": intensity, "emotion_nll_in_budget": validation.emotion_nll(intensity)}
