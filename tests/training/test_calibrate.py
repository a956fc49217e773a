"""`affetto calibrate` and `affetto predict-forgetting` on a tiny run that was really trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_helpers import make_config, make_prepared

from affetto.errors import DataError
from affetto.laboratory.calibration import INTENSITIES, forecast_table, predict_forgetting
from affetto.pipeline import calibrate
from affetto.preserve.curvature import CURVATURES


def test_a_trained_run_is_predicted(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    config = make_config(tiny_base_folder, tmp_path / "out", learning_rate=2e-4, evaluation_clips=4)
    prepared = make_prepared(tmp_path)
    lines = calibrate(config, "happy", prepared, command="test")
    written = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert {point["family"] for point in written["points"]} == {"plain LoRA", "preserved"}
    steps = {point["adapter"] for point in written["points"]}
    assert len(written["points"]) == 2 * len(steps) * len(INTENSITIES)
    assert (tmp_path / "out" / "calibration.svg").stat().st_size > 5000
    assert len(lines) == 3 * (2 + len(CURVATURES))
    adapter = tmp_path / "out" / "calibration" / "plain_LoRA" / "emotion_models" / "happy" / "best"
    rows = predict_forgetting(config, prepared, adapter, (0.5, 1.0))
    by_intensity = {row["intensity"]: row["kl"] for row in rows}
    assert by_intensity[1.0] == pytest.approx(4 * by_intensity[0.5])
    assert {row["low"] for row in rows} == {None}
    assert rows[0]["reason"] == "3 prompts are too few for an interval (at least 6)"
    many = make_prepared(tmp_path / "many", {(None, "train"): 8, (None, "validation"): 8, ("happy", "train"): 4})
    for row in predict_forgetting(config.model_copy(update={"fisher_clips": 8}), many, adapter, (0.5, 1.0)):
        assert row["low"] <= row["kl"] <= row["high"]
        assert row["reason"] is None
    assert forecast_table(rows).row_count == len(rows)


def test_a_budget_calibrates_too_and_changed_settings_train_anew(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    prepared = make_prepared(tmp_path)
    for budget in (0.01, 0.03):
        config = make_config(
            tiny_base_folder, tmp_path / "out", learning_rate=2e-4, evaluation_clips=4, num_epochs=1,
            forgetting_budget=budget,
        )  # fmt: skip
        lines = calibrate(config, "happy", prepared, command="test")
        assert {line.curvature for line in lines} > set(CURVATURES)
    adapter = tmp_path / "out" / "calibration" / "preserved" / "emotion_models" / "happy" / "best"
    assert json.loads((adapter / "affetto.json").read_text())["configuration"]["forgetting_budget"] == 0.03


def test_without_general_speech_the_error_says_what_to_add(tiny_base_folder: Path, tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path, {("happy", "train"): 4, ("happy", "validation"): 2})
    config = make_config(
        tiny_base_folder, tmp_path / "out", evaluation_clips=4, ewc_lambda=0.0, replay_ratio=0.0,
        distillation_alpha=0.0,
    )  # fmt: skip
    with pytest.raises(DataError, match="the data lacks it; add LJSpeech, say, or let the base speak some"):
        calibrate(config, "happy", prepared, command="test")
