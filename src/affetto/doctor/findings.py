"""The doctor's findings: numbers, checks, the change to try first, and symptoms made of checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA = "affetto.doctor/1"

Answer = Literal["shown", "absent", "unknown"]
Setting = float | int | str | None


@dataclass(frozen=True)
class Number:
    """A measured number, with its 95 % interval if there is one."""

    name: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @classmethod
    def of(cls, name: str, metric: Mapping[str, Any]) -> Number:
        """From a METRIC of docs/results.md or a comparison's; its value must be known."""
        value = metric["value"] if "value" in metric else metric["difference"]
        return cls(name, value, metric.get("unit", ""), metric["low"], metric["high"], metric["n"])


@dataclass(frozen=True)
class Change:
    """One thing to change. `key` is a configuration key, or None if the data or the command must change."""

    why: str
    key: str | None = None
    old: Setting = None
    new: Setting = None
    """None if only the direction is known."""

    def __post_init__(self) -> None:
        assert self.why
        assert self.key is not None or (self.old is None and self.new is None)


@dataclass(frozen=True)
class Check:
    """One question about a run.

    A *sign* decides whether its symptom is present; a *cause* only explains it, so its change is tried before the
    sign's own.
    """

    name: str
    answer: Answer
    numbers: tuple[Number, ...] = ()
    reason: str | None = None
    """Why it is unknown, or another remark."""
    change: Change | None = None
    is_sign: bool = True

    def __post_init__(self) -> None:
        assert self.answer != "unknown" or self.reason, f"{self.name} is unknown without a reason"


@dataclass(frozen=True)
class Symptom:
    """One of the guide's symptoms."""

    name: str
    checks: tuple[Check, ...]

    @property
    def answer(self) -> Answer:
        """`shown` if any sign is shown, `absent` if all are absent, else `unknown`."""
        answers = {check.answer for check in self.checks if check.is_sign}
        if "shown" in answers:
            return "shown"
        return "unknown" if "unknown" in answers or not answers else "absent"

    @property
    def first_change(self) -> Change | None:
        """What to try first: the first cause's remedy, else the first sign's; None if the symptom isn't shown."""
        if self.answer != "shown":
            return None
        shown = [check for check in self.checks if check.answer == "shown" and check.change]
        return next((check.change for check in sorted(shown, key=lambda check: check.is_sign)), None)


@dataclass(frozen=True)
class Missing:
    """Something that could not be read, and the command that makes it."""

    what: str
    why: str
    command: str | None


@dataclass(frozen=True)
class Diagnosis:
    """All findings about one run."""

    emotion: str
    folder: str
    symptoms: tuple[Symptom, ...]
    missing: tuple[Missing, ...]

    @property
    def is_healthy(self) -> bool | None:
        """True if every symptom is absent, False if any is shown, else None."""
        answers = {symptom.answer for symptom in self.symptoms}
        return False if "shown" in answers else None if "unknown" in answers else True

    def document(self) -> dict[str, Any]:
        """The DIAGNOSIS of docs/doctor.md."""
        return {
            "emotion": self.emotion,
            "folder": self.folder,
            "is_healthy": self.is_healthy,
            "symptoms": [_symptom(symptom) for symptom in self.symptoms],
            "missing": [asdict(item) for item in self.missing],
        }


def to_document(diagnoses: Sequence[Diagnosis]) -> dict[str, Any]:
    """The document that `affetto doctor --json` prints."""
    return {"schema": SCHEMA, "runs": [diagnosis.document() for diagnosis in diagnoses]}


def _symptom(symptom: Symptom) -> dict[str, Any]:
    change = symptom.first_change
    return {
        "name": symptom.name,
        "answer": symptom.answer,
        "first_change": asdict(change) if change else None,
        "checks": [asdict(check) for check in symptom.checks],
    }
