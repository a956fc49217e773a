"""The log's lines, and what a resumed run keeps of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from training_helpers import Alone, Group, Member

from affetto.errors import DataError
from affetto.training.log import TrainingLog, read_log


class Told(Alone):
    """Remembers what the trackers are told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, values))


def test_lines_and_trackers_say_the_same(tmp_path: Path) -> None:
    accelerator = Told()
    log = TrainingLog(tmp_path / "deeper" / "log.jsonl", 0, accelerator, 1.25)
    log.write(1, 1 / 3, "train", 1e-3, {"total": 2.5, "gradient_norm": math.inf})
    log.write(2, 1.0, "validation", 1e-3, {"value": 2.0, "general_kl": None})
    assert read_log(log.path) == [
        {
            "step": 1,
            "epoch": 0.3333,
            "split": "train",
            "lr": 1e-3,
            "ewc_natural_weight": 1.25,
            "terms": {"total": 2.5, "gradient_norm": None},
        },
        {
            "step": 2,
            "epoch": 1.0,
            "split": "validation",
            "lr": 1e-3,
            "ewc_natural_weight": 1.25,
            "terms": {"value": 2.0, "general_kl": None},
        },
    ]
    assert accelerator.told == [
        (1, {"train/total": 2.5, "lr": 1e-3, "ewc_natural_weight": 1.25}),
        (2, {"validation/value": 2.0, "lr": 1e-3, "ewc_natural_weight": 1.25}),
    ]


def test_opening_at_a_step_drops_what_came_after(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = TrainingLog(path, 0, Told(), 1.25)
    for step in range(1, 6):
        log.write(step, 0.0, "train", 0.1, {"total": float(step)})
    TrainingLog(path, 3, Told(), 1.25)
    assert [row["step"] for row in read_log(path)] == [1, 2, 3]
    TrainingLog(path, 0, Told(), 1.25)
    assert path.read_text() == ""


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = TrainingLog(path, 0, Told(), 1.25)
    log.write(1, 0.0, "train", 0.1, {"total": 1.0})
    with path.open("a") as file:
        file.write('{"step": 2, "epo')
    assert [row["step"] for row in read_log(path)] == [1]
    TrainingLog(path, 1, Told(), 1.25).write(2, 0.0, "train", 0.1, {"total": 2.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (b"{\n", "line 2 isn't JSON; take that line out"),
        (b"\xff\n", "it isn't UTF-8; move it away"),
        (b'{"step": 2}\n', "line 2 is no row of a training log"),
    ],
)
def test_a_damaged_log_is_named_with_what_to_do(tmp_path: Path, damage: bytes, told: str) -> None:
    path = tmp_path / "log.jsonl"
    TrainingLog(path, 0, Told(), 1.25).write(1, 0.0, "train", 0.1, {"total": 1.0})
    with path.open("ab") as file:
        file.write(damage)
    with pytest.raises(DataError, match=rf"log\.jsonl.*{told}"):
        read_log(path)


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    class Other(Member):
        def log(self, values: Any, step: int) -> None:
            pass

    path = tmp_path / "log.jsonl"
    TrainingLog(path, 0, Other(Group(2), 1), 1.25).write(1, 0.0, "train", 0.1, {"total": 1.0})
    assert not path.exists()
    assert read_log(path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_with_the_log_and_what_to_do(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log.jsonl", 0, Told(), 1.25)
    log.path.unlink()
    log.path.symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"can't write .*log\.jsonl \(No space left on device\); .*make room there"):
        log.write(1, 0.0, "train", 0.1, {"total": 1.0})
