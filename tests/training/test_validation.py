"""Validation against retention's own measure and a loop; the same numbers every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from affetto.adapters.bank import AdapterBank
from affetto.model.base import Base
from affetto.model.batch import Row, collate
from affetto.training.validation import INTENSITIES, Validation, fit_intensity, frontier, recommend


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> tuple[list[Row], list[Row]]:
    made = [make_row(seed, frames=(seed % 5 + 2,), gate=(1.0,)) for seed in range(22)]
    return made[:4], made[4:]


@pytest.fixture
def validation(tiny_base: Base, rows: tuple[list[Row], list[Row]], tmp_path: Path) -> Validation:
    """Of an adapter that has learned something; made while the adapter was not there yet, as in a run."""
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    made = Validation(tiny_base, *rows, tmp_path)
    bank.add("happy", 4, 8.0, 0)
    generator = torch.Generator().manual_seed(0)
    for _, _, b_OR, _ in bank.factors("happy"):
        b_OR.data.normal_(std=0.02, generator=generator)
    return made


def test_pitfall_28_two_validations_are_identical(validation: Validation, tmp_path: Path) -> None:
    values = validation()
    assert validation() == values
    assert validation(0.5) != values
    again = Validation(validation.base, validation.emotional, validation.general, tmp_path / "elsewhere")
    assert again() == values


def test_weaker_clips_are_looked_at_under_their_own_gate(
    tiny_base: Base, validation: Validation, rows: tuple[list[Row], list[Row]], tmp_path: Path
) -> None:
    weaker = Validation(tiny_base, [row.at(0.6) for row in rows[0]], rows[1], tmp_path)
    assert weaker.emotion_nll(1.0) == pytest.approx(validation.emotion_nll(0.6), abs=1e-9)
    assert weaker.general_kl(1.0) == validation.general_kl(1.0)
    mixed = Validation(tiny_base, [rows[0][0].at(0.5), *rows[0][1:]], [], tmp_path)
    assert validation.emotion_nll(1.0) != mixed.emotion_nll(1.0) != mixed.emotion_nll(0.5)


def test_forgetting_is_the_kl_to_the_live_base_per_code(
    tiny_base: Base, validation: Validation, rows: tuple[list[Row], list[Row]]
) -> None:
    for intensity in (0.0, 0.5, 1.0):
        kl, nll, num_codes = 0.0, 0.0, 0
        for row in rows[1]:
            batch = collate([replace(row, gate=(intensity,))], 8)
            with torch.no_grad():
                after, before = tiny_base.network(batch), tiny_base.network(batch.with_gate(batch.gate_BE[:, :0]))
            q_TKV, p_TKV = (
                torch.cat([logits.c0_NV[:, None], logits.depth_MJV], dim=1).double().log_softmax(-1)
                for logits in (after, before)
            )
            kl += (p_TKV.exp() * (p_TKV - q_TKV)).sum().item()
            nll -= q_TKV.gather(-1, batch.depth_codes_MK[..., None]).sum().item()
            num_codes += batch.depth_codes_MK.numel()
        values = validation(intensity)
        assert values["general_kl"] == pytest.approx(kl / num_codes, rel=2e-3, abs=2e-6)
        assert values["general_nll"] == pytest.approx(nll / num_codes, rel=1e-4)
        assert intensity == 0.0 or kl / num_codes > 1e-3


def test_emotion_nll_is_per_code_over_all_codebooks_with_the_adapter_on(
    tiny_base: Base, validation: Validation, rows: tuple[list[Row], list[Row]]
) -> None:
    each: list[float] = []
    for row in rows[0]:
        batch = collate([replace(row, gate=(0.7,))], 8)
        with torch.no_grad():
            logits = tiny_base.network(batch)
        for n, codes_K in enumerate(batch.depth_codes_MK.tolist()):
            each.append(-logits.c0_NV[n].log_softmax(-1)[codes_K[0]].item())
            each += [-logits.depth_MJV[n, j].log_softmax(-1)[code].item() for j, code in enumerate(codes_K[1:])]
    values = validation(0.7)
    assert values["emotion_nll"] == pytest.approx(np.mean(each), rel=1e-5)
    assert values["general_kl"] is not None
    assert values["value"] == pytest.approx(np.mean(each) + values["general_kl"], rel=1e-5)


def test_without_general_clips_forgetting_is_unknown_and_not_zero(
    tiny_base: Base, rows: tuple[list[Row], list[Row]]
) -> None:
    AdapterBank(tiny_base.model, tiny_base.network.gates).add("happy", 4, 8.0, 0)
    validation = Validation(tiny_base, rows[0], [])
    values = validation()
    assert (values["general_nll"], values["general_kl"]) == (None, None)
    assert values["value"] == values["emotion_nll"]
    assert {point["kl"] for point in frontier(validation)} == {None}


def test_without_emotional_clips_there_is_no_validation(tiny_base: Base, rows: tuple[list[Row], list[Row]]) -> None:
    with pytest.raises(AssertionError, match="needs emotional clips"):
        Validation(tiny_base, [], rows[1])


def test_frontier_has_a_point_per_intensity(validation: Validation) -> None:
    points = frontier(validation)
    assert [point["intensity"] for point in points] == list(INTENSITIES)
    for point in points:
        values = validation(point["intensity"])
        assert (point["kl"], point["emotion_nll"]) == (values["general_kl"], values["emotion_nll"])
    costs = [point["kl"] for point in points]
    assert costs == sorted(costs), "forgetting grows with the intensity"


def test_recommended_intensity_costs_least() -> None:
    points = [
        {"intensity": 0.5, "kl": 0.01, "emotion_nll": 3.0},
        {"intensity": 1.0, "kl": 0.05, "emotion_nll": 2.5},
        {"intensity": 1.5, "kl": 0.9, "emotion_nll": 2.4},
    ]
    assert recommend(points) == 1.0
    assert recommend([{**point, "kl": None} for point in points]) == 1.5


def test_recommended_intensity_with_a_budget_is_the_largest_inside() -> None:
    points = [{"intensity": x, "kl": 0.01 * x**2, "emotion_nll": 3.0 + (x - 0.5) ** 2} for x in INTENSITIES]
    assert recommend(points, 0.0057) == 0.75
    assert recommend(points, 0.0225) == recommend(points, 9.0) == 1.5
    assert recommend(points, 1e-5) == INTENSITIES[0], "outside the budget, but less would be nothing"
    weak = {"intensity": 0.1, "kl": 1e-4, "emotion_nll": 3.5}
    assert recommend([weak, *points], 2e-4) == INTENSITIES[0]


CURVES: dict[str, Callable[[float], float]] = {
    "square": lambda s: 0.02 * s**2, "gentle": lambda s: 0.02 * s**0.7, "steep": lambda s: 0.02 * s**6,
    "wall": lambda s: 0.001 * s if s < 0.8 else 5.0, "late": lambda s: max(0.0, s - 0.6) ** 2,
    "rounded below zero": lambda s: 0.02 * s**2 - 1e-6,
}  # fmt: skip


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("budget", [1e-5, 0.0007, 0.01, 0.03, 3.0])
@pytest.mark.parametrize("start", [(1.0,), INTENSITIES])
def test_the_largest_intensity_inside_a_budget_is_found(curve: str, budget: float, start: tuple[float, ...]) -> None:
    """Against a fine scan; within 2 % of the budget or 0.001 of the intensity, and never outside."""
    asked: list[float] = []

    def kl_at(intensity: float) -> float:
        asked.append(intensity)
        return CURVES[curve](intensity)

    intensity, kl = fit_intensity(kl_at, budget, {s: CURVES[curve](s) for s in start})
    assert kl == max(CURVES[curve](intensity), 0.0) <= budget
    assert intensity <= INTENSITIES[-1]
    largest = max(s for s in np.arange(0, 1.5001, 0.0005) if CURVES[curve](s) <= budget)
    assert kl >= 0.98 * budget or intensity >= largest - 0.002
    assert len(asked) <= 30
    if curve == "square":
        assert len(asked) <= 2, "a square needs no search"


def test_frontier_with_a_budget_has_the_largest_intensity_inside_it(validation: Validation) -> None:
    plain = frontier(validation)
    assert plain[1]["kl"] is not None
    budget = 0.5 * (plain[1]["kl"] + plain[2]["kl"])
    points = frontier(validation, budget)
    (found,) = [point for point in points if point not in plain]
    assert points == sorted([*plain, found], key=lambda point: point["intensity"])
    assert 0.98 * budget <= found["kl"] <= budget
    assert recommend(points, budget) == found["intensity"]
    values = validation(found["intensity"])
    assert (found["kl"], found["emotion_nll"]) == (values["general_kl"], values["emotion_nll"])
    assert frontier(validation, 1e9) == plain, "the largest intensity is there already"
