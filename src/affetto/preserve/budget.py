"""The forgetting budget: a controller of the multiplier that holds KL(base || adapted) at a budget of nats per code.

Minimise the task loss subject to KL <= budget. The multiplier is found during training by the PI controller with
smoothed error of Sohrabi et al. 2024 ("On PI controllers for updating Lagrange multipliers in constrained
optimization", nuPI). Theirs changes the multiplier by the constraint's violation; ours changes its logarithm by the
logarithm of KL over target. So the multiplier stays positive, and one set of gains fits budgets of any size: the KL is
roughly a power of the multiplier, and a power is a straight line on a log-log scale.
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
    """The value of `log_ratio` that is expected at the next validation."""


@dataclass(frozen=True)
class ForgettingBudget:
    """A budget and the controller that keeps it. It is pure: states are passed in and returned."""

    budget: float
    """KL(base || adapted) on held-out general clips, nats per code."""
    proportional: float = 1.5
    """Gain of the smoothed error."""
    integral: float = 0.03
    """Gain of the summed errors, per step: low, since the KL responds to the multiplier only after tens of steps."""
    smoothing: float = 0.9
    """nu: the share of the past in the smoothed error and KL."""
    largest_error: float = 1.0
    lowest_error: float = -0.5
    """Bounds of the error: the KL of 0 at the start says little, and being below the budget isn't urgent."""
    start: float = 1.0
    """The multiplier at the first step: low, so that the emotion is learned first and what that cost is regained later.
    From 3 or 20 a tight budget was met later or not at all; probably Adam, knowing only small gradients, takes large
    steps then (docs/log.md)."""
    lowest: float = 1e-3
    highest: float = 300.0
    """Bounds of the multiplier. Below the lowest the budget doesn't bind. Above the highest, in one run, the KL rose
    with the multiplier; probably Adam takes full steps along a gradient that is mostly noise (docs/log.md)."""

    def multiplier(self, state: BudgetState) -> float:
        """The weight of the KL where the task loss has weight 1."""
        return math.exp(min(max(self._log_multiplier(state), math.log(self.lowest)), math.log(self.highest)))

    def target(self, state: BudgetState) -> float:
        """The KL to aim at on rehearsed clips, at which held-out clips are expected to reach the budget."""
        return self.budget * math.exp(-state.log_correction)

    def update(self, state: BudgetState, kl: float) -> BudgetState:
        """The state after a step in which the rehearsed clips had a KL of `kl`, nats per code."""
        smooth = kl if state.kl is None else self.smoothing * state.kl + (1 - self.smoothing) * kl
        raw = math.log(kl) - math.log(self.target(state)) if kl > 0 else self.lowest_error
        error = min(max(raw, self.lowest_error), self.largest_error)
        moved = replace(
            state, error=self.smoothing * state.error + (1 - self.smoothing) * error, kl=smooth,
            integral=state.integral + self.integral * error,
        )  # fmt: skip
        # Anti-windup: at a bound, errors that push beyond it aren't summed, or they would have to be undone later.
        low, high = math.log(self.lowest), math.log(self.highest)
        log_multiplier = self._log_multiplier(moved)
        is_beyond = log_multiplier > high if error > 0 else log_multiplier < low
        return replace(moved, integral=state.integral) if is_beyond else moved

    def correct(self, state: BudgetState, held_out_kl: float) -> BudgetState:
        """The state after a validation: from now on the target is the one that meets the budget at the next validation.

        Rehearsed clips are learned by heart, so the ratio of held-out to rehearsed KL keeps growing; its log is
        extrapolated from the last two validations.
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
