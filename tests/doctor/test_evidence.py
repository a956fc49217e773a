"""Runs that aren't whole: what is there counts, what is missing is said with what makes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doctor_runs import Made, Silent, write_log, write_run

from affetto.doctor.diagnose import examine
from affetto.doctor.evidence import find_runs, read_evidence
from affetto.doctor.findings import Diagnosis
from affetto.errors import ConfigError, DataError
from affetto.files import read_json, write_json
from affetto.training.log import TrainingLog


def answers(diagnosis: Diagnosis) -> dict[str, str]:
    return {item.name: item.answer for item in diagnosis.symptoms}


def missing(diagnosis: Diagnosis) -> dict[str, str]:
    return {item.what: item.why for item in diagnosis.missing}


def test_a_run_is_found_by_its_output_folder_and_by_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for emotion in ("happy", "sad"):
        write_run(tmp_path, Made(is_evaluated=False), emotion)
    models = tmp_path / "emotion_models"
    (models / "notes").mkdir()
    assert find_runs(tmp_path) == find_runs(models) == [models / "happy", models / "sad"]
    assert find_runs(tmp_path, ["sad"]) == find_runs(models / "sad") == find_runs(models / "sad", ["sad"])
    monkeypatch.chdir(models / "sad")
    assert read_evidence(find_runs(Path())[0]).emotion == "sad"


def test_folders_that_hold_no_run_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"isn't a folder: give a run's output folder"):
        examine(tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds no run: there is no emotion_models/<emotion>/training_log\.jsonl"):
        examine(tmp_path)
    folder = write_run(tmp_path, Made(is_evaluated=False))
    with pytest.raises(DataError, match="holds no run of angry: there are happy"):
        examine(tmp_path, ["angry"])
    with pytest.raises(ConfigError, match="is the run of happy, not of sad"):
        examine(folder, ["sad"])
    assert [diagnosis.emotion for diagnosis in examine(tmp_path, ["happy"])] == ["happy"]


def test_a_run_without_evaluation_names_the_command(tmp_path: Path) -> None:
    write_run(tmp_path / "my runs", Made(is_evaluated=False))
    [diagnosis] = examine(tmp_path / "my runs")
    [item] = diagnosis.missing
    assert item.what == "evaluation"
    assert item.command == f"affetto evaluate --emotion happy --config my.yaml --output '{tmp_path / 'my runs'}'"
    assert answers(diagnosis) == {
        "weak expression": "unknown", "lost capabilities": "unknown", "instability": "absent",
        "data trouble": "unknown",
    }  # fmt: skip
    assert diagnosis.is_healthy is None
    write_run(tmp_path / "my runs", Made())
    assert examine(tmp_path / "my runs")[0].missing == ()


def test_forgetting_is_seen_in_validation_before_any_evaluation(tmp_path: Path) -> None:
    write_run(tmp_path / "much", Made(general_kl=(0.05,) * 5, is_evaluated=False))
    write_run(tmp_path / "little", Made(is_evaluated=False))
    write_run(tmp_path / "unmeasured", Made(general_kl=(None,) * 5, frontier_kl=None, is_evaluated=False))
    assert answers(examine(tmp_path / "much")[0])["lost capabilities"] == "shown"
    assert answers(examine(tmp_path / "little")[0])["lost capabilities"] == "unknown"
    unmeasured = examine(tmp_path / "unmeasured")[0]
    assert answers(unmeasured)["lost capabilities"] == "unknown"
    assert answers(unmeasured)["instability"] == "absent", "forgetting that can't be measured is no NaN"


def test_a_run_that_is_still_training(tmp_path: Path) -> None:
    write_run(tmp_path, Made(is_finished=False, is_evaluated=False, losses=(5.0, 4.98)))
    [diagnosis] = examine(tmp_path)
    assert answers(diagnosis)["weak expression"] == "unknown", "it may yet learn"
    assert set(missing(diagnosis)) == {"end of training", "evaluation"}
    command = next(item.command for item in diagnosis.missing if item.what == "end of training")
    assert command is not None
    assert command.startswith("affetto train --emotion happy --config my.yaml --output ")
    assert command.endswith(" --resume")
    write_run(tmp_path, Made(is_evaluated=False, losses=(5.0, 4.98)))
    assert answers(examine(tmp_path)[0])["weak expression"] == "shown"


def test_a_run_before_its_first_epoch_has_a_log_alone(tmp_path: Path) -> None:
    folder = tmp_path / "emotion_models" / "happy"
    jumps: dict[int, dict[str, float | None]] = {60: {"total": None}}
    write_log(folder, Made(jumps=jumps))
    [diagnosis] = examine(tmp_path)
    assert set(missing(diagnosis)) == {"adapter", "end of training", "evaluation"}
    change = next(item.first_change for item in diagnosis.symptoms if item.name == "instability")
    assert change is not None
    assert (change.key, change.old, change.new) == ("learning_rate", 0.006, 0.003), "the log knows the learning rate"
    TrainingLog(folder / "training_log.jsonl", 0, Silent(), 1.25)
    [diagnosis] = examine(tmp_path)
    assert "is empty" in missing(diagnosis)["training log"]
    assert set(answers(diagnosis).values()) == {"unknown"}


def test_an_adapter_without_its_log_still_tells_most(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Made())
    (folder / "training_log.jsonl").unlink()
    [diagnosis] = examine(tmp_path)
    assert "there is no" in missing(diagnosis)["training log"]
    assert answers(diagnosis) == {
        "weak expression": "absent", "lost capabilities": "absent", "instability": "unknown", "data trouble": "unknown"
    }  # fmt: skip


def test_facts_of_an_older_affetto_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Made())
    path = folder / "best" / "affetto.json"
    facts = read_json(path)
    for key in ("validation_clips", "bad_clips", "prepared_clips"):
        del facts["data"][key]
    del facts["base"]["num_codebooks"]
    facts["configuration"] |= {"a_key_of_tomorrow": 1}
    del facts["configuration"]["adapted_parts"]
    write_json(path, facts)
    [diagnosis] = examine(tmp_path)
    checks = {check.name: check for item in diagnosis.symptoms for check in item.checks}
    assert checks["clips that had to be left out"].answer == "unknown"
    assert checks["validation clips unlike the training clips"].answer == "absent", "the evaluation counts codebooks"
    assert diagnosis.missing == ()


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value) + "\n")


BREAKS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "log, no JSON": (
        "training log", "jsonl can't be read: line 2 isn't JSON",
        lambda f: (f / "training_log.jsonl").write_text((f / "training_log.jsonl").read_text() + "{\n{}\n"),
    ),
    "log, other rows": ("training log", "line 1 is no row", lambda f: (f / "training_log.jsonl").write_text("[1]\n")),
    "log, a word for a number": (
        "training log", "line 1 is no row",
        lambda f: _edit(f / "training_log.jsonl", lambda row: row["terms"].update(total="x")),
    ),
    "log, bytes": (
        "training log", "jsonl can't be read: it isn't UTF-8",
        lambda f: (f / "training_log.jsonl").write_bytes(b"\xff\n"),
    ),
    "facts, cut": (
        "adapter", "can't be read: it isn't JSON: Expecting ':' delimiter, line 1",
        lambda f: (f / "best/affetto.json").write_text('{"a"'),
    ),
    "facts, a list": (
        "adapter", "affetto.json can't be read: it holds no JSON object",
        lambda f: (f / "best/affetto.json").write_text("[]"),
    ),
    "facts, no configuration": (
        "adapter", "configuration: Field required", lambda f: (f / "best/affetto.json").write_text("{}")
    ),
    "facts, a wrong setting": (
        "adapter", "adapter_r",
        lambda f: _edit(f / "best/affetto.json", lambda facts: facts["configuration"].update(adapter_r="many")),
    ),
    "facts, a wrong frontier": (
        "adapter", r"frontier.0.intensity",
        lambda f: _edit(f / "best/affetto.json", lambda facts: facts["frontier"][0].pop("intensity")),
    ),
    "results, cut": ("evaluation", "can't read the results", lambda f: _results(f).write_text("{")),
    "results, of files alone": (
        "evaluation", "isn't of base and adapter", lambda f: _edit(_results(f), lambda found: found["systems"].pop(1))
    ),
}  # fmt: skip


def _results(folder: Path) -> Path:
    return folder.parent.parent / "evaluation_results" / "happy_results.json"


def _only_one_row(folder: Path) -> None:
    path = folder / "training_log.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_file_is_named_and_the_others_count(tmp_path: Path, name: str) -> None:
    what, why, damage = BREAKS[name]
    folder = write_run(tmp_path, Made())
    if name.startswith("log"):
        _only_one_row(folder)
    damage(folder)
    [diagnosis] = examine(tmp_path)
    assert why in missing(diagnosis)[what]
    known = {check.name for item in diagnosis.symptoms for check in item.checks if check.answer != "unknown"}
    assert known, "nothing else was read"


def test_a_run_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Made())
    (folder / "training_log.jsonl").write_text("{\n")
    assert examine(tmp_path)
    (folder / "best" / "affetto.json").write_text("{")
    with pytest.raises(DataError, match=r"(?s)training log: .*adapter: "):
        examine(tmp_path)


def test_numbers_that_json_does_not_know_count_as_not_finite(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Made(is_evaluated=False))
    path = folder / "training_log.jsonl"
    assert answers(examine(tmp_path)[0])["instability"] == "absent"
    path.write_text(path.read_text().replace('"total": 3.0', '"total": NaN', 1))
    assert answers(examine(tmp_path)[0])["instability"] == "shown"


def test_options_of_the_training_that_an_evaluation_needs(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Made(is_evaluated=False))
    _edit(
        folder / "best/affetto.json", lambda facts: facts.update(command="affetto run -c 'a b.yaml' --data d --resume")
    )
    [item] = examine(tmp_path)[0].missing
    assert item.command is not None
    assert item.command.startswith("affetto evaluate --emotion happy -c 'a b.yaml' --data d --output ")
    assert "resume" not in item.command
