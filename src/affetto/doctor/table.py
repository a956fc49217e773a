"""A diagnosis as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from affetto.doctor.findings import Change, Check, Diagnosis, Number, Symptom
from affetto.report.measures import SCALES, Scale, scale_of, write_interval, write_number

_COLOURS = {"shown": "red", "absent": "green", "unknown": "yellow", "cause": "red", "noted": "yellow"}


def render(diagnosis: Diagnosis) -> RenderableType:
    """The verdict, a table of checks, and what is missing, with the commands that make it."""
    table = Table(title=Text(_verdict(diagnosis), "bold"), title_justify="left", expand=False)
    table.add_column("", overflow="fold")
    table.add_column("answer", no_wrap=True)
    table.add_column("evidence", overflow="fold")
    table.add_column("try first", overflow="fold")
    for symptom in diagnosis.symptoms:
        table.add_section()
        change = symptom.first_change
        table.add_row(
            Text(symptom.name, "bold"), _answer(symptom.answer), "", Text(write_change(change) if change else "")
        )
        for checks in _grouped(symptom.checks):
            names = "\n".join(f"  {check.name}" for check in checks)
            table.add_row(Text(names), _answer(_role(checks[0], symptom)), Text(_evidence(checks[0])), "")
    missing = [Text(f"{item.what}: {item.why}{_command(item.command)}") for item in diagnosis.missing]
    return Group(table, *missing)


def write_change(change: Change) -> str:
    """`learning_rate 0.006 → 0.003: why`."""
    if change.key is None:
        return change.why
    if change.new is None:
        return f"{change.key}: {change.why}"
    old = "" if change.old is None else f"{_plain(change.old)} → "
    return f"{change.key} {old}{_plain(change.new)}: {change.why}"


def _verdict(diagnosis: Diagnosis) -> str:
    where = f"{diagnosis.emotion} ({diagnosis.folder})"
    if diagnosis.is_healthy:
        return f"{where}: healthy"
    shown = [symptom.name for symptom in diagnosis.symptoms if symptom.answer == "shown"]
    if shown:
        return f"{where}: {', '.join(shown)}"
    unknown = [symptom.name for symptom in diagnosis.symptoms if symptom.answer == "unknown"]
    return f"{where}: no symptom seen; unknown: {', '.join(unknown)}"


def _grouped(checks: Sequence[Check]) -> list[list[Check]]:
    """Checks in order; those that are unknown for the same reason, and have no number, are grouped."""
    groups: dict[object, list[Check]] = {}
    for index, check in enumerate(checks):
        key = check.reason if check.answer == "unknown" and not check.numbers else index
        groups.setdefault(key, []).append(check)
    return list(groups.values())


def _role(check: Check, symptom: Symptom) -> str:
    """A check's answer; a cause is `noted` if its symptom isn't shown."""
    if check.is_sign or check.answer != "shown":
        return check.answer
    return "cause" if symptom.answer == "shown" else "noted"


def _answer(word: str) -> Text:
    return Text(word, _COLOURS[word])


def _evidence(check: Check) -> str:
    numbers = "; ".join(map(write_number_in_full, check.numbers))
    return ". ".join(part for part in (numbers, check.reason) if part)


def write_number_in_full(number: Number) -> str:
    """`recall 66.7 % [48.8, 80.8] n=30`."""
    if number.unit in SCALES:
        scale = scale_of(number.unit)
        is_difference = number.name == "difference"
        value = write_number(number.value, scale, is_difference=is_difference)
        interval = write_interval(number.low, number.high, scale, is_difference=is_difference)
    else:
        value = f"{_plain(number.value)} {number.unit}".strip()
        interval = write_interval(number.low, number.high, Scale(decimals=3))
    count = "" if number.n is None else f"n={number.n}"
    return " ".join(part for part in (number.name, value, interval, count) if part)


def _plain(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _command(command: str | None) -> str:
    return f". Run: {command}" if command else ""
