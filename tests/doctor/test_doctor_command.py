"""`affetto doctor` on the terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from doctor_runs import Made, Spoken, write_run

from affetto.doctor.findings import Change
from affetto.doctor.table import write_change

Called = tuple[int, str, str]


@pytest.fixture
def doctor(affetto: Callable[..., Called], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    """doctor(folder, "--json") gives (exit status, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "220")
    return lambda *arguments: affetto("doctor", *arguments)


def strict(text: str) -> dict[str, object]:
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert isinstance(found, dict)
    return found


def test_a_healthy_run_says_so(doctor: Callable[..., Called], tmp_path: Path) -> None:
    write_run(tmp_path, Made())
    status, out, err = doctor(tmp_path)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].rstrip().endswith(": healthy")
    assert "→" not in out


def test_the_table_tells_symptom_numbers_and_change(doctor: Callable[..., Called], tmp_path: Path) -> None:
    write_run(tmp_path, Made(adapter=Spoken(recall=0.2), jumps={60: {"gradient_norm": 9.0}}))
    status, out, _ = doctor(tmp_path)
    assert status == 0, "an ill run is readable all the same"
    assert "weak expression, instability" in out.splitlines()[0]
    words = " ".join(out.replace("│", " ").split())
    assert "recall 20.0 % [10.5, 34.8] n=40" in words
    assert "learning_rate 0.006 → 0.003: highest gradient norm is 18.0 times the usual" in words
    assert "ewc_lambda 5000 → 2500" in words


def test_what_is_missing_is_told_with_its_command(doctor: Callable[..., Called], tmp_path: Path) -> None:
    write_run(tmp_path, Made(is_evaluated=False))
    status, out, _ = doctor(tmp_path)
    assert status == 0
    assert "no symptom seen; unknown: weak expression, lost capabilities, data trouble" in out
    assert "Run: affetto evaluate --emotion happy --config my.yaml" in " ".join(out.split())


def test_json_is_strict_and_as_documented(doctor: Callable[..., Called], tmp_path: Path) -> None:
    write_run(tmp_path, Made(adapter=Spoken(recall=0.2), is_finished=False))
    write_run(tmp_path, Made(), "sad")
    status, out, _ = doctor(tmp_path, "--json")
    assert status == 0
    document = strict(out)
    assert set(document) == {"schema", "runs"}
    assert document["schema"] == "affetto.doctor/1"
    happy, sad = document["runs"]  # type: ignore[misc]
    assert (happy["emotion"], happy["is_healthy"], sad["emotion"]) == ("happy", False, "sad")
    assert set(happy) == {"emotion", "folder", "is_healthy", "symptoms", "missing"}
    assert set(happy["missing"][0]) == {"what", "why", "command"}
    symptom = happy["symptoms"][0]
    assert set(symptom) == {"name", "answer", "first_change", "checks"}
    assert set(symptom["first_change"]) == {"why", "key", "old", "new"}
    check = symptom["checks"][0]
    assert set(check) == {"name", "answer", "numbers", "reason", "change", "is_sign"}
    assert set(check["numbers"][0]) == {"name", "value", "unit", "low", "high", "n"}
    assert strict(doctor(tmp_path, "--json", "--emotion", "sad")[1])["runs"] == [sad]


def test_the_documentation_names_every_symptom_and_key(doctor: Callable[..., Called], tmp_path: Path) -> None:
    write_run(tmp_path, Made(adapter=Spoken(recall=0.2)))
    text = (Path(__file__).resolve().parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    [run] = strict(doctor(tmp_path, "--json")[1])["runs"]  # type: ignore[misc]
    assert run["symptoms"]
    for symptom in run["symptoms"]:
        assert symptom["name"] in text
        for check in symptom["checks"]:
            assert check["name"] in text, check["name"]
        for key in (*symptom, *symptom["checks"][0]):
            assert f'"{key}"' in text, key


def test_folders_without_a_run_are_errors_without_a_traceback(doctor: Callable[..., Called], tmp_path: Path) -> None:
    status, out, err = doctor(tmp_path)
    assert (status, out) == (1, "")
    assert "holds no run" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (Change("too fast", "learning_rate", 0.006, 0.003), "learning_rate 0.006 → 0.003: too fast"),
        (Change("off", "ewc_lambda", None, 2000.0), "ewc_lambda 2000: off"),
        (Change("deaf", "judges", "ear", None), "judges: deaf"),
        (Change("add clips"), "add clips"),
    ],
)
def test_a_change_is_written_as_it_is_made(change: Change, text: str) -> None:
    assert write_change(change) == text
