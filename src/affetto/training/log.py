"""The training log: one JSON line per logged step, with every loss term, which trackers are told too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affetto.errors import DataError
from affetto.files import finite_or_none, place_told, why_unreadable, write_text


class TrainingLog:
    """Writes `training_log.jsonl`, from the main process.

    Opening it at a step drops the lines that a killed run wrote beyond that step. `ewc_natural_weight` is `ewc_lambda`
    in natural units: the weight of the `ewc` term, in nats per code, without a budget (`LossWeights`). `prefix` comes
    before the names that trackers see, since they may follow several runs at once.
    """

    def __init__(
        self, path: Path, first_step: int, accelerator: Any, ewc_natural_weight: float, prefix: str = ""
    ) -> None:
        self.path = path
        self.prefix = prefix
        self.ewc_natural_weight = ewc_natural_weight
        self.accelerator = accelerator
        if accelerator.is_main_process:
            kept = [row for row in read_log(path) if row["step"] <= first_step] if first_step else []
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, step: int, epoch: float, split: str, lr: float, terms: Mapping[str, float | None]) -> None:
        """Append one line and tell the trackers. Values that aren't finite become null."""
        finite = {name: finite_or_none(value) for name, value in terms.items()}
        rates = {"lr": lr, "ewc_natural_weight": self.ewc_natural_weight}
        row = {"step": step, "epoch": round(epoch, 4), "split": split, **rates, "terms": finite}
        if self.accelerator.is_main_process:
            with place_told(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        told = {f"{split}/{name}": value for name, value in finite.items() if value is not None}
        self.accelerator.log({f"{self.prefix}{name}": value for name, value in (told | rates).items()}, step=step)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a training log; empty if there is none. An unfinished last line, left by a killed run, is skipped.

    DataError if any other line isn't a valid row.
    """
    if not path.is_file():
        return []
    try:
        finished, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {why_unreadable(error)}; move it away") from error
    lines = enumerate(finished.splitlines(), start=1)
    return [_row(line, path, number) for number, line in lines if line.strip()]


def _row(line: str, path: Path, number: int) -> dict[str, Any]:
    mend = "take that line out, or move the file away"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path} can't be read: line {number} isn't JSON; {mend}") from error
    if not _is_row(row):
        raise DataError(f"{path}: line {number} is no row of a training log; {mend}")
    found: dict[str, Any] = row
    return found


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("terms"), dict):
        return False
    is_known = all(isinstance(row.get(key), int | float) for key in ("step", "epoch", "lr"))
    return is_known and row.get("split") in ("train", "validation") and all(
        value is None or isinstance(value, int | float) for value in row["terms"].values()
    )  # fmt: skip
