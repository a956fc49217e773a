from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from affetto.errors import DataError
from affetto.evaluate import results
from affetto.evaluate.judge_facts import judge_facts
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.summary import build_system, compare
from evaluate_fakes import RATE, fake_judges, silence, voice


def _document() -> results.Results:
    judges = fake_judges()
    rows = {
        name: score_files(
            [
                Item(f"{name}/0.wav", voice(f0), RATE, text='say "hi",\nnow', speaker="a", prompt="emotional", seed=3),
                Item(f"{name}/1.wav", silence(1.0), RATE, text="hello", prompt="plain", hit_cap=True),
            ],
            judges,
            "happy",
        )
        for name, f0 in (("base", 120), ("happy", 240))
    }
    systems = [
        build_system("base", "base", rows["base"], judges),
        build_system("happy", "adapter", rows["happy"], judges, 0.7),
    ]
    comparison = compare(rows["happy"], rows["base"], system="happy", against="base", prompt="emotional")
    return results.build_results("happy", "affetto evaluate", judge_facts(judges), systems, [comparison])


def test_what_is_written_is_read_back_and_is_strict_json(tmp_path: Path) -> None:
    document = _document()
    path = tmp_path / "deep" / "happy_results.json"
    results.write_results(path, document)
    assert results.read_results(path) == document
    text = path.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == document
    first = path.read_bytes()
    results.write_results(path, _document())
    assert path.read_bytes() == first


def test_the_csv_twin_has_one_row_per_file(tmp_path: Path) -> None:
    document = _document()
    results.write_results(tmp_path / "r.json", document)
    with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    files = [(system, row) for system in document["systems"] for row in system["files"]]
    assert len(lines) == len(files) == 4
    for line, (system, row) in zip(lines, files, strict=True):
        assert (line["system"], line["file"], line["text"]) == (system["name"], row["file"], row["text"])
        assert line["error"] == (row["error"] or "")
        for name, value in row["values"].items():
            assert line[name] == ("" if value is None else str(value))


def test_the_document_has_exactly_the_documented_keys() -> None:
    document = _document()
    assert set(document) == {
        "schema", "emotion", "command", "versions", "judges", "systems", "comparisons", "retention",
    }  # fmt: skip
    assert {"affetto", "python", "torch", "transformers", "peft", "numpy"} <= set(document["versions"])
    assert document["judges"]["emotion"] == {
        "id": "fake/pitch", "tier": "local", "labels": ["sad", "happy"], "licence": None, "sample_rate": RATE,
        "ceiling": None,
    }  # fmt: skip


def _break(document: Any, where: list[Any], value: Any) -> Any:
    broken = copy.deepcopy(document)
    inner = broken
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return broken


_FILE = ["systems", 0, "files", 0]


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["schema"], "affetto.results/9", "results/9"),
        (["extra"], 1, "extra"),
        ([*_FILE, "values", "posterior"], float("nan"), "posterior"),
        ([*_FILE, "values", "charm"], 1.0, "charm"),
        (["systems", 0, "metrics", "recall", "value"], float("inf"), "recall"),
        (["systems", 0, "metrics", "recall", "value"], None, "recall is null without a reason"),
        (["systems", 0, "plain_metrics", "wer", "reason"], None, "wer is null without a reason"),
        (["comparisons", 0, "metrics", "wer", "reason"], None, "wer has no verdict and no reason"),
        (["systems", 0, "num_failed"], 0, "num_failed"),
        (["systems", 0, "files"], [], "num_files"),
        (["systems", 0, "role"], "boss", "role"),
        (["judges", "emotion", "tier"], "rumour", "tier"),
        (["comparisons", 0, "metrics", "wer", "verdict"], "fine", "verdict"),
        (["systems", 0, "num_files"], "2", "num_files"),
    ],
)
def test_a_wrong_document_is_neither_written_nor_read(
    tmp_path: Path, where: list[Any], value: Any, message: str
) -> None:
    broken = _break(_document(), where, value)
    with pytest.raises(DataError, match=message):
        results.write_results(tmp_path / "r.json", broken)
    assert not list(tmp_path.iterdir())
    (tmp_path / "r.json").write_text(json.dumps(broken))
    with pytest.raises(DataError, match=message):
        results.read_results(tmp_path / "r.json")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_other_files_are_no_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=r"r\.json"):
        results.read_results(tmp_path / "r.json")


def test_retention_fits_in() -> None:
    metric = {"value": 0.01, "low": 0.0, "high": 0.02, "n": 20, "unit": "nats/code", "reason": None}
    retention = {
        "num_clips": 20, "num_codes": 4000, "delta_nll": metric, "kl": metric,
        "per_codebook": {"delta_nll": [0.1, 0.2], "kl": [0.1, 0.3]},
    }  # fmt: skip
    document = _break(_document(), ["retention"], retention)
    assert results.validate_results(document)["retention"] == retention


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"schema": "affetto.results/1"}', "this is not a results document"),
        ('{"schema": "affetto.results/9"}', "affetto.results/9' can't be read; this affetto reads"),
        ("[]", "holds no results document"),
        ("not", "can't read the results"),
    ],
)
def test_a_file_that_holds_no_results_is_named(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "theirs.json").write_text(content)
    with pytest.raises(DataError, match=told) as caught:
        results.read_results(tmp_path / "theirs.json")
    assert "theirs.json" in str(caught.value)
