"""The forgetting budget: the multiplier of KL(base || adapted) that holds it at a budget of nats per code.

Minimise the task loss subject to KL <= budget. The multiplier is found while training, by the PI controller with a
smoothed error of Sohrabi et al. 2024 ("On PI controllers for updating Lagrange multipliers in constrained
optimization", nuPI). Theirs moves the multiplier by the constraint's violation; ours moves its logarithm by the
logarithm of KL over target, so it is positive, and one set of gains fits budgets of any size: the KL that a multiplier
leads to is about a power of it, and a power is a straight line in these units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

_LARGEST_RATIO, _LARGEST_TREND = math.log(10.0), math.log(2.0)
"""Bounds of the log of held-out over rehearsed KL, and of its change from one validation to the next."""


@dataclass(frozen=True)
class BudgetState:
    """What the controller remembers from step to step."""

    integral: float = 0.0
    """Sum of the errors times the integral gain."""
    error: float = 0.0
    """Exponentially smoothed error."""
    kl: float | None = None
    """Exponentially smoothed KL on rehearsed clips, nats per code; None before the first step."""
    log_ratio: float | None = None
    """Log of held-out KL over `kl` at the last validation; None before the first."""
    log_correction: float = 0.0
    """The same as it is expected at the next validation."""


@dataclass(frozen=True)
class ForgettingBudget:
    """A budget and the controller that keeps it; pure, the state is handed in and out."""

    budget: float
    """KL(base || adapted) on held-out general clips, nats per code."""
    proportional: float = 1.5
    """Gain of the smoothed error."""
    integral: float = 0.03
    """Gain of the summed errors, per step: low, since the KL follows the multiplier tens of steps later."""
    smoothing: float = 0.9
    """nu: the share of the past in the smoothed error and KL."""
    largest_error: float = 1.0
    lowest_error: float = -0.5
    """Errors are cut off at these: the KL of 0 at the start says little, and being below the budget is no hurry."""
    start: float = 1.0
    """The multiplier at the first step: low, so that the emotion is learned first and what it cost is won back then.
    At 3 and at 20 a tight budget was met later or not at all; probably Adam, knowing only small gradients, takes
    large steps then (docs/log.md)."""
    lowest: float = 1e-3
    highest: float = 300.0
    """Bounds of the multiplier. Below the lowest the budget doesn't bind. In a run that went above the highest the KL
    rose with the multiplier; probably Adam makes full steps of a gradient that is mostly noise (docs/log.md)."""

    def multiplier(self, state: BudgetState) -> float:
        """The weight of the KL where the task loss has weight 1."""
        return math.exp(min(max(self._log_multiplier(state), math.log(self.lowest)), math.log(self.highest)))

    def target(self, state: BudgetState) -> float:
        """The KL on rehearsed clips, which are trained on, at which held-out clips are expected at the budget."""
        return self.budget * math.exp(-state.log_correction)

    def update(self, state: BudgetState, kl: float) -> BudgetState:
        """The state after a step in which rehearsed clips had `kl`, nats per code."""
        smooth = kl if state.kl is None else self.smoothing * state.kl + (1 - self.smoothing) * kl
        raw = math.log(kl) - math.log(self.target(state)) if kl > 0 else self.lowest_error
        error = min(max(raw, self.lowest_error), self.largest_error)
        moved = replace(
            state, error=self.smoothing * state.error + (1 - self.smoothing) * error, kl=smooth,
            integral=state.integral + self.integral * error,
        )  # fmt: skip
        # Anti-windup: at a bound, errors that push beyond it are not summed up, or they would have to be unlearned.
        low, high = math.log(self.lowest), math.log(self.highest)
        log_multiplier = self._log_multiplier(moved)
        is_beyond = log_multiplier > high if error > 0 else log_multiplier < low
        return replace(moved, integral=state.integral) if is_beyond else moved

    def correct(self, state: BudgetState, held_out_kl: float) -> BudgetState:
        """The state after a validation: the target becomes the one that meets the budget at the next one.

        Held-out clips forget ever more than rehearsed ones, which are learned by heart, so the ratio's log is expected
        to go on as it went since the validation before.
        """
        if not state.kl or held_out_kl <= 0:
            return state
        found = _bounded(math.log(held_out_kl) - math.log(state.kl), _LARGEST_RATIO)
        trend = 0.0 if state.log_ratio is None else _bounded(found - state.log_ratio, _LARGEST_TREND)
        return replace(state, log_ratio=found, log_correction=_bounded(found + trend, _LARGEST_RATIO))

    def _log_multiplier(self, state: BudgetState) -> float:
        return math.log(self.start) + state.integral + self.proportional * state.error


def _bounded(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)
