"""`affetto ablate`: every cell once, measured on test clips, resumable, shared by processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from training_helpers import COUNTS, TINY, make_prepared

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import DataError
from affetto.files import one_at_a_time, read_json, write_json
from affetto.laboratory import ablation
from affetto.laboratory.ablation import Cell, ablate, cells, frontier_on_test, read_rows, speaking, write_comparison
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
