"""`affetto ablate`: every cell once, measured on test clips, resumable, shared by processes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_helpers import COUNTS, TINY, make_prepared

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import ConfigError, DataError
from affetto.files import one_at_a_time, read_json, write_json
from affetto.laboratory import ablation
from affetto.laboratory.ablation import (
    Cell,
    ablate,
    cells,
    check_cells,
    frontier_on_test,
    read_rows,
    speaking,
    write_comparison,
)
from affetto.model.base import load_base
from affetto.training.loop import train

Make = Callable[..., Config]
SMALL = {**TINY, "num_epochs": 1, "evaluation_sentences": 2, "judges": {"emotion": "none", "words": "none"}}


def test_every_cell_is_run_once_and_measured_on_test_clips(
    config_of: Make, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = config_of(**SMALL), tmp_path / "ablation"
    wanted = cells(["plain", "replay_kl", "ewc_factors_3000"], ["happy"], 1)
    rows = ablate(config, wanted, prepared, folder, "affetto ablate")
    assert [row["method"] for row in rows] == ["plain", "replay_kl", "ewc_factors_3000"]
    for row in rows:
        base, full = row["points"][0], next(point for point in row["points"] if point["intensity"] == 1)
        assert base["kl"] == pytest.approx(0, abs=1e-4)
        assert full["emotion_nll"] < base["emotion_nll"]
        assert full["kl"] > 1e-5
        assert row["heard"]["emotional"] == {"recall": None, "posterior": None, "wer": None}
        assert row["as_acted"]["intensity"] is None
        assert "at least 8 are needed" in row["as_acted"]["reason"]
    assert rows[0]["settings"]["replay_ratio"] == 0
    assert rows[2]["ewc_natural_weight"] > 0
    # A second time nothing is trained; what another process holds is left to it.
    monkeypatch.setattr(ablation, "train", lambda *_, **__: pytest.fail("it was done"))
    assert ablate(config, wanted, prepared, folder) == rows
    (folder / "rows" / "plain-happy-0.json").unlink()
    with one_at_a_time(folder / "locks" / "plain-happy-0.lock") as is_ours:
        assert is_ours
        assert [row["method"] for row in ablate(config, wanted, prepared, folder)] == ["replay_kl", "ewc_factors_3000"]
    # What an earlier affetto left unmatched is matched now, and nothing else is done again.
    path = folder / "rows" / "replay_kl-happy-0.json"
    whole = path.read_bytes()
    write_json(path, {key: value for key, value in read_json(path).items() if key != "as_acted"})
    monkeypatch.setattr(ablation, "_run", lambda *_, **__: pytest.fail("it was run"))
    assert ablate(config, wanted[1:], prepared, folder) == rows[1:]
    assert path.read_bytes() == whole
    table = write_comparison(read_rows(folder), folder)
    assert "KL to the base" in table
    assert "No run was matched" in table
    assert (folder / "ablation.svg").read_text(encoding="utf-8").startswith("<svg")
    assert len(read_json(folder / "ablation.json")["rows"]) == 2


def test_a_method_is_what_it_is_called_whatever_the_configuration_says(config_of: Make, tmp_path: Path) -> None:
    odd = config_of(**TINY, distillation_alpha=0.5, distill_on="both", temperature=2.0, fisher_kind="empirical")
    replay = Cell("replay_kl", "happy", 0).config(odd, tmp_path)
    assert (replay.distillation_alpha, replay.distill_on, replay.temperature) == (1.0, "rehearsal", 1.0)
    assert replay.ewc_lambda == 0
    ewc = Cell("ewc_kfac_3000", "happy", 0).config(odd, tmp_path)
    assert (ewc.fisher_kind, ewc.replay_ratio, ewc.distillation_alpha) == ("true", 0.0, 0.0)
    assert Cell("ewc_factors_batch_3000", "happy", 0).config(config_of(), tmp_path).fisher_kind == "empirical"


@pytest.mark.parametrize(
    ("changes", "method", "told"),
    [
        ({"replay_ratio": 0.0}, "all_budget", "method all_budget: forgetting_budget: it is kept by rehearsing"),
        (
            {"use_adapters": False},
            "ewc_factors_3000",
            "method ewc_factors_3000: ewc_curvature: it is of LoRA's A and B",
        ),
        ({"use_adapters": False}, "dropout", "method dropout: adapter_dropout: it is LoRA's"),
        ({"expressive_base": True}, "plain", "leave expressive_base off"),
    ],
)
def test_runs_that_cant_be_made_are_refused_before_any_is(
    config_of: Make, tmp_path: Path, changes: dict[str, Any], method: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        check_cells(config_of(**changes), cells(["all", method], ["happy"], 1), tmp_path)


def test_other_settings_or_clips_are_run_anew(config_of: Make, prepared: Prepared, tmp_path: Path) -> None:
    config, cell, base = config_of(**SMALL), Cell("plain", "happy", 0), load_base(config_of().base)
    key = ablation._key(config, cell, base, prepared)
    assert key == ablation._key(config.model_copy(update={"output_dir": tmp_path}), cell, base, prepared)
    assert key != ablation._key(config.model_copy(update={"num_epochs": 2}), cell, base, prepared)
    others = make_prepared(tmp_path / "others", {**COUNTS, ("happy", "train"): 7})
    assert key != ablation._key(config, cell, base, others)


def test_measuring_needs_test_clips_of_both_kinds(config_of: Make, tmp_path: Path) -> None:
    config = config_of(**SMALL)
    counts = {key: count for key, count in COUNTS.items() if key != (None, "test")}
    lacking = make_prepared(tmp_path / "lacking", counts)
    folder = train(config, "happy", lacking)
    with pytest.raises(DataError, match="test clips"):
        frontier_on_test(config, "happy", lacking, speaking(config, "happy", folder / "best"))


def test_rows_are_read_back_from_what_was_written(tmp_path: Path) -> None:
    points = [{"intensity": x, "emotion_nll": 5 - x, "general_nll": 2.0, "kl": 0.1 * x} for x in (0.0, 0.5, 1.0)]
    heard = {kind: {"recall": 0.5, "wer": 0.1} for kind in ("base", "emotional", "plain")}
    rows = [{"method": "plain", "emotion": "happy", "seed": seed, "points": points, "heard": heard} for seed in (0, 1)]
    table = write_comparison(rows, tmp_path)
    assert read_rows(tmp_path) == rows
    assert write_comparison(read_rows(tmp_path), tmp_path / "again") == table


def test_a_table_of_nothing_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="affetto ablate"):
        read_rows(tmp_path)
