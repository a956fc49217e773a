"""Files of a run that a report reads: what is damaged is named, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from affetto.errors import DataError
from affetto.files import write_json
from affetto.report.run_files import read_calibration, read_facts, read_whole_facts, report_facts
from result_samples import result

FACTS: dict[str, Any] = {
    "emotion": "happy", "prompt_template": "x {text}", "recommended_intensity": 1.0, "ewc_natural_weight": 3.0,
    "command": "affetto train", "versions": {}, "frontier": None, "base": {"id": "tiny", "hash": "0a"},
    "data": {"emotional_clips": 1, "rehearsed_clips": 2, "fisher_clips": 3},
    "configuration": {
        "num_epochs": 1, "adapter_r": 4, "learning_rate": 1e-3, "ewc_lambda": 1.0, "distillation_alpha": 1.0,
        "replay_ratio": 0.5,
    },
}  # fmt: skip
CALIBRATION = {"base": {"hash": "0a"}, "points": [], "fits": [], "most_kl": 0.05}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base": None}, "doesn't say base.id, base.hash; copy the adapter again, or train it again"),
        ({"data": {"emotional_clips": 1}}, "doesn't say data.rehearsed_clips, data.fisher_clips;"),
        ({"configuration": "x"}, "doesn't say configuration.num_epochs, .*;"),
    ],
)
def test_facts_that_lack_what_is_reported_say_what(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = tmp_path / "affetto.json"
    write_json(path, FACTS)
    assert read_whole_facts(path) == FACTS
    write_json(path, FACTS | changes)
    assert read_facts(path)["emotion"] == "happy"
    with pytest.raises(DataError, match=rf"affetto\.json {told}"):
        read_whole_facts(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "it isn't JSON: .*; make it again with affetto calibrate, or move it away"),
        (b"\xff", "it isn't UTF-8"),
        (b"[]", "isn't what affetto calibrate writes; make it again with affetto calibrate"),
        (b'{"base": {"hash": "0a"}}', "isn't what affetto calibrate writes"),
    ],
)
def test_a_damaged_calibration_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"calibration\.json.*{told}"):
        read_calibration(path, "0a")


def test_a_calibration_is_of_one_base(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    assert read_calibration(path, "0a") is None
    write_json(path, CALIBRATION)
    assert read_calibration(path, "0a") == CALIBRATION
    assert read_calibration(path, "0b") is None


def test_notes_of_the_evaluation_are_warnings_of_the_report() -> None:
    results: Any = result()
    assert report_facts(FACTS, results)["warnings"] == []
    assert report_facts(FACTS, results | {"notes": ["nobody knows"]})["warnings"] == ["nobody knows"]
