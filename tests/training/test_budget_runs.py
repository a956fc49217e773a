"""Whole runs under a forgetting budget: kept where it can be, told where it can't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_helpers import TINY, make_prepared

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import DataError
from affetto.files import read_json
from affetto.preserve.budget import ForgettingBudget
from affetto.training.log import read_log
from affetto.training.loop import train
from affetto.training.validation import INTENSITIES

Make = Callable[..., Config]
COUNTS = {
    ("happy", "train"): 12, ("happy", "validation"): 3,
    (None, "train"): 80, (None, "validation"): 8,
}  # fmt: skip
LONG: dict[str, Any] = {
    "num_epochs": 40,
    "rehearsal_buffer_size": 80,
    "replay_ratio": 0.5,
    "learning_rate": 4e-3,
    "distillation_alpha": 1.0,
}


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = read_json(folder / "best" / "affetto.json")
    return facts


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    return [row["terms"] for row in read_log(folder / "training_log.jsonl") if row["split"] == split]


@pytest.mark.slow
def test_forgetting_lands_on_the_budget_and_more_of_it_is_more_emotion(config_of: Make, tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path / "many", COUNTS)
    learned = []
    for budget in (0.03, 0.15):
        folder = train(config_of(f"budget-{budget}", **LONG, forgetting_budget=budget), "happy", prepared)
        facts = facts_of(folder)
        as_trained = next(point for point in facts["frontier"] if point["intensity"] == 1.0)
        assert 0.5 * budget < as_trained["kl"] < 1.25 * budget, "training alone lands near it"
        told = facts["forgetting_budget"]
        assert 0.9 * budget < told["kl"] <= budget
        assert (told["budget"], told["met"]) == (budget, True)
        spoken = next(point for point in facts["frontier"] if point["intensity"] == facts["recommended_intensity"])
        assert spoken["kl"] == told["kl"]
        learned.append(spoken["emotion_nll"])
        best = min(row["emotion_nll_in_budget"] for row in rows_of(folder, "validation"))
        assert facts["validation"]["value"] == best
        assert spoken["emotion_nll"] == pytest.approx(best, abs=0.02), "validation found the intensity, too"
    assert learned[1] < learned[0] - 0.1


def test_a_budget_that_cannot_be_met_is_told_and_everything_is_written(
    config_of: Make, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(config_of(**TINY | {"learning_rate": 1e-2}, forgetting_budget=1e-7), "happy", prepared)
    facts = facts_of(folder)
    told = facts["forgetting_budget"]
    assert facts["recommended_intensity"] == INTENSITIES[0]
    assert told["met"] is False
    assert told["kl"] > told["budget"] == 1e-7
    assert {path.name for path in folder.iterdir()} == {"best", "last", "training_log.jsonl"}
    said = capsys.readouterr().err
    assert "happy: the forgetting budget of 1e-07 nats per code was not met" in said
    assert "even at intensity 0.25" in said
    assert "forgetting_budget 1e-07 nats per code is held by a multiplier of the preservation terms" in said


def test_a_wide_budget_lets_the_multiplier_fall_and_every_step_tells_it(config_of: Make, prepared: Prepared) -> None:
    folder = train(config_of(**TINY, forgetting_budget=50.0), "happy", prepared)
    facts = facts_of(folder)
    assert facts["recommended_intensity"] == INTENSITIES[-1]
    weight = facts["ewc_natural_weight"]
    assert weight > 0
    rows = rows_of(folder, "train")
    assert [row["multiplier"] for row in rows] == sorted((row["multiplier"] for row in rows), reverse=True)
    assert rows[0]["multiplier"] == pytest.approx(ForgettingBudget(50.0).start)
    assert facts["forgetting_budget"]["multiplier"] < rows[-1]["multiplier"]
    for row in rows:
        assert row["rehearsal_kl"] >= 0
        assert row["rehearsal_kl_target"] > 0
        task = 0.3 * (row["emotion_ce_c0"] + row["emotion_ce_depth"])
        task += 0.1 * (row["rehearsal_ce_c0"] + row["rehearsal_ce_depth"])
        kept = 0.1 * (row["rehearsal_kl_c0"] + row["rehearsal_kl_depth"]) + weight * row["ewc"]
        assert row["total"] == pytest.approx((task + row["multiplier"] * kept) * 2 / (1 + row["multiplier"]))


def test_a_budget_is_measured_on_held_out_speech(config_of: Make, tmp_path: Path) -> None:
    counts = {key: count for key, count in COUNTS.items() if key != (None, "validation")}
    with pytest.raises(DataError, match="measured on held-out general speech, and the data has none"):
        train(config_of(**TINY, forgetting_budget=0.01), "happy", make_prepared(tmp_path / "few", counts))


def test_a_budget_is_of_the_kl_at_temperature_one(config_of: Make, prepared: Prepared) -> None:
    folders = [
        train(
            config_of(f"at-{temperature}", **TINY, forgetting_budget=0.01, temperature=temperature), "happy", prepared
        )
        for temperature in (1.0, 3.0)
    ]
    one, other = (read_log(folder / "training_log.jsonl") for folder in folders)
    assert one == other
