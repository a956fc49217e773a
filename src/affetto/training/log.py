"""The training log: one JSON line per step that is reported, by term, and the trackers that follow it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affetto.files import finite_or_none, place_told, write_text


class TrainingLog:
    """Lines of `training_log.jsonl`, written by the main process.

    Opening it at a step drops what a killed run had written beyond it. `ewc_natural_weight` is the natural value of
    `ewc_lambda`: what the `ewc` term, in nats per code, is multiplied by where there is no budget (`LossWeights`).
    `prefix` stands before what trackers, who may follow several runs at once, are told.
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
        """Append one line and tell the trackers. What is not a finite number is null."""
        finite = {name: finite_or_none(value) for name, value in terms.items()}
        rates = {"lr": lr, "ewc_natural_weight": self.ewc_natural_weight}
        row = {"step": step, "epoch": round(epoch, 4), "split": split, **rates, "terms": finite}
        if self.accelerator.is_main_process:
            with place_told(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        told = {f"{split}/{name}": value for name, value in finite.items() if value is not None}
        self.accelerator.log({f"{self.prefix}{name}": value for name, value in (told | rates).items()}, step=step)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a training log; empty where there is none. A line that a killed run left unfinished is passed over."""
    if not path.is_file():
        return []
    finished, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in finished.splitlines() if line.strip()]
