"""The controller against simulated plants, loops and hand values."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.preserve.budget import BudgetState, ForgettingBudget


def simulate(budget: ForgettingBudget, steps: int, *, at_one: float, power: float, lag: float = 25.0) -> list[float]:
    """KL step by step where a multiplier m leads to `at_one` / m^power, approached with a lag of so many steps."""
    state, kl, seen = BudgetState(), 1e-9, []
    for _ in range(steps):
        kl *= (at_one / budget.multiplier(state) ** power / kl) ** (1 / lag)
        state = budget.update(state, kl)
        seen.append(kl)
    return seen


@pytest.mark.parametrize("value", [0.0003, 0.003, 0.03])
@pytest.mark.parametrize(("at_one", "power"), [(0.2, 1.5), (0.05, 1.0), (0.5, 2.0)])
def test_kl_settles_on_the_budget(value: float, at_one: float, power: float) -> None:
    """One set of gains for budgets two orders of magnitude apart, and for plants that answer weakly and strongly."""
    seen = simulate(ForgettingBudget(value), 600, at_one=at_one, power=power)
    assert seen[-1] == pytest.approx(value, rel=0.02)
    assert all(kl == pytest.approx(value, rel=0.25) for kl in seen[400:])


def test_a_constraint_that_does_not_bind_lets_the_multiplier_go() -> None:
    budget = ForgettingBudget(1.0)
    assert simulate(budget, 500, at_one=0.01, power=0.1)[-1] < 1.0
    state = BudgetState()
    for _ in range(500):
        state = budget.update(state, 0.01)
    assert budget.multiplier(state) == pytest.approx(budget.lowest, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=60), st.floats(1e-6, 10.0))
def test_the_multiplier_is_positive_and_inside_its_bounds_whatever_comes(kls: list[float], value: float) -> None:
    budget, state = ForgettingBudget(value), BudgetState()
    for kl in kls:
        state = budget.update(state, kl)
        assert budget.lowest * 0.999 <= budget.multiplier(state) <= budget.highest * 1.001
        assert all(math.isfinite(number) for number in asdict(state).values() if number is not None)


@pytest.mark.parametrize(("kl", "opposite"), [(1.0, 1e-9), (1e-9, 1.0)])
def test_a_long_time_at_a_bound_is_not_summed_up(kl: float, opposite: float) -> None:
    """After 10,000 steps at a bound it leaves it as soon as after the steps that led there."""
    budget = ForgettingBudget(0.01)

    def steps_to_leave(steps: int) -> int:
        state = BudgetState()
        for _ in range(steps):
            state = budget.update(state, kl)
        bound = budget.multiplier(state)
        assert bound == pytest.approx(budget.highest if kl == 1.0 else budget.lowest, rel=0.05)
        for number in range(10_000):
            if budget.multiplier(state) != pytest.approx(bound, rel=0.5):
                return number
            state = budget.update(state, opposite)
        raise AssertionError("it stays at the bound")

    assert steps_to_leave(10_000) == steps_to_leave(1000) < 30


def test_two_steps_by_hand() -> None:
    """nuPI: theta = theta_0 + k_p xi + k_i sum(e), xi = nu xi + (1 - nu) e; here in logs."""
    budget = ForgettingBudget(0.01, proportional=2.0, integral=0.1, smoothing=0.75, start=3.0, lowest_error=-1.0)
    state = budget.update(budget.update(BudgetState(), 0.02), 0.005)
    e = math.log(2.0)
    xi = 0.75 * (0.25 * e) + 0.25 * -e
    assert state.error == pytest.approx(xi)
    assert state.integral == pytest.approx(0.1 * (e - e))
    assert budget.multiplier(state) == pytest.approx(3.0 * math.exp(2.0 * xi))
    assert state.kl == pytest.approx(0.75 * 0.02 + 0.25 * 0.005)


def test_errors_are_cut_off() -> None:
    budget = ForgettingBudget(0.01)
    for nothing in (0.0, 1e-12):
        state = budget.update(BudgetState(), nothing)
        assert (state.integral, state.error) == pytest.approx((-0.5 * budget.integral, -0.5 * (1 - budget.smoothing)))
    assert budget.update(BudgetState(), 10.0).integral == budget.update(BudgetState(), 0.1).integral


def test_held_out_kl_moves_the_target_until_it_meets_the_budget() -> None:
    """Held-out clips forget 1.6 times what rehearsed ones do, then 2 times, and go on so."""
    budget, state = ForgettingBudget(0.01), BudgetState(kl=0.004)
    targets = []
    for ratio in (1.6, 1.6, 2.0, 2.5):
        state = budget.correct(state, ratio * 0.004)
        targets.append(budget.target(state))
    assert targets == pytest.approx([0.01 / 1.6, 0.01 / 1.6, 0.01 / 2.5, 0.01 / 3.125])
    higher = budget.update(state, 0.01)
    assert higher.error > budget.update(BudgetState(), 0.01).error == 0.0


def test_what_is_not_known_corrects_nothing_and_no_correction_is_wild() -> None:
    budget = ForgettingBudget(0.01)
    for state, held_out in ((BudgetState(), 0.1), (BudgetState(kl=0.0), 0.1), (BudgetState(kl=0.1), 0.0)):
        assert budget.correct(state, held_out) == state
    state = BudgetState(kl=1e-9)
    for _ in range(30):
        state = budget.correct(state, 1.0)
    assert budget.target(state) == pytest.approx(0.01 / 10)
    steep = budget.correct(budget.correct(BudgetState(kl=0.1), 0.02), 0.2)
    assert budget.target(steep) == pytest.approx(0.01 / (2 * 2))


@given(st.floats(1e-12, 10.0), st.floats(1e-12, 10.0), st.floats(1e-12, 10.0))
def test_state_survives_json_bit_for_bit(one: float, two: float, three: float) -> None:
    budget = ForgettingBudget(0.01)
    state = budget.correct(budget.update(budget.update(BudgetState(), one), two), three)
    back = BudgetState(**json.loads(json.dumps(asdict(state))))
    assert back == state
    assert budget.update(back, one) == budget.update(state, one)
