"""The report of one trained and evaluated emotion, gathered from the files that training and evaluation wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affetto.errors import DataError
from affetto.evaluate.results import Results, read_results
from affetto.report.adapter_card import write_adapter_card
from affetto.report.players import AudioCell, AudioRow
from affetto.report.run_files import read_calibration, read_whole_facts, report_facts
from affetto.report.run_page import write_report
from affetto.training.log import read_log

_NUM_PLAYERS = 8
"""Sentences with players in the report."""


def write_emotion_report(emotion: str, folder: Path, results_path: Path, output_dir: Path) -> Path:
    """Write `report.html` and the adapter's card into the emotion's `folder`; returns the page's path.

    Sounds and calibration are in `output_dir`. DataError if a file is missing or damaged, or if the results don't have
    base and adapter.
    """
    facts_path = folder / "best" / "affetto.json"
    for path, verb in ((facts_path, "train"), (results_path, "evaluate")):
        if not path.is_file():
            raise DataError(f"there is no {path} to report on: affetto {verb} --emotion {emotion}")
    results, facts = read_results(results_path), read_whole_facts(facts_path)
    if not {("base", "base"), (emotion, "adapter")} <= {(item["name"], item["role"]) for item in results["systems"]}:
        raise DataError(
            f"{results_path} doesn't have base and adapter: make it again with affetto evaluate --emotion {emotion}"
        )
    log = read_log(folder / "training_log.jsonl")
    calibration = read_calibration(output_dir / "calibration.json", facts["base"]["hash"])
    write_adapter_card(folder / "best", facts, results, output_dir)
    return write_report(
        folder / "report.html",
        [results],
        title=f"{emotion.capitalize()} on {facts['base']['id']}",
        audio=_players(results, emotion, output_dir),
        training_log=log,
        facts=report_facts(facts, results),
        frontier=facts["frontier"],
        calibration=calibration,
    )


def _players(results: Results, emotion: str, output_dir: Path) -> list[AudioRow]:
    """The first sentences, each by the base, by the adapter, and by the adapter with a plain prompt."""
    systems = {system["name"]: system for system in results["systems"]}
    by_prompt: dict[tuple[str, str | None, str | None], Any] = {
        (name, row["prompt"], row["text"]): row for name in ("base", emotion) for row in systems[name]["files"]
    }
    rows = []
    for row in systems[emotion]["files"][:_NUM_PLAYERS]:
        cells = []
        for title, key in (
            ("base", ("base", "emotional", row["text"])),
            (emotion, (emotion, "emotional", row["text"])),
            (f"{emotion}, plain prompt", (emotion, "plain", row["text"])),
        ):
            if spoken := by_prompt.get(key):
                cells.append(AudioCell(title, output_dir / spoken["file"], _judged(spoken["values"])))
        rows.append(AudioRow(str(row["text"]), "emotional", str(row["speaker"]), row["seed"], tuple(cells)))
    return rows


def _judged(values: Mapping[str, Any]) -> dict[str, Any]:
    """The judges' answers, under the names that a player uses."""
    return {
        "transcript": values.get("heard"), "label": values.get("first_choice"), "posterior": values.get("posterior")
    }  # fmt: skip
