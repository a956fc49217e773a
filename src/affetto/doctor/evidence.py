"""Reads a run's files one by one: missing or broken ones are reported, and the rest is still used."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Required

import pydantic
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from affetto.config import Config
from affetto.doctor.findings import Missing
from affetto.errors import AffettoError, ConfigError, DataError
from affetto.evaluate.results import Results, read_results
from affetto.files import finite_or_none, read_json, why_unreadable
from affetto.training.log import read_log

LOG, FACTS = "training_log.jsonl", "best/affetto.json"
_KEPT_OPTIONS = ("--config", "-c", "--base", "--data")
"""Options that an evaluation must share with the training."""


class Point(TypedDict):
    """One intensity of the frontier."""

    intensity: float
    kl: float | None
    emotion_nll: float


@pydantic.with_config(pydantic.ConfigDict(extra="allow"))
class Facts(TypedDict, total=False):
    """The parts of `affetto.json` that the doctor reads."""

    configuration: Required[dict[str, Any]]
    base: dict[str, Any]
    data: dict[str, Any]
    trained_speakers: list[str]
    validation: dict[str, float | None]
    frontier: list[Point] | None
    recommended_intensity: float
    command: str


@dataclass(frozen=True)
class Evidence:
    """Everything that the checks use."""

    emotion: str
    folder: Path
    """`emotion_models/<emotion>`."""
    log: tuple[Mapping[str, Any], ...] = ()
    """Rows of the training log."""
    facts: Facts | None = None
    """`best/affetto.json`; None if it can't be read."""
    config: Config | None = None
    """The run's configuration, from its facts."""
    results: Results | None = None
    missing: tuple[Missing, ...] = ()

    def setting(self, key: str) -> Any:
        """The run's value of a configuration key; None if its configuration isn't known."""
        return getattr(self.config, key) if self.config else None

    def fact(self, *keys: str) -> Any:
        """The value at a path of keys in the facts; None if it isn't known."""
        value: Any = self.facts
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def is_finished(self) -> bool:
        """Whether training was completed: the frontier is measured after the last step."""
        return bool(self.fact("frontier"))

    def rows(self, split: str) -> list[Mapping[str, Any]]:
        """Rows of the log of one split, `train` or `validation`."""
        return [row for row in self.log if row["split"] == split]

    def validated(self, term: str) -> list[float]:
        """The known values of a validation term, in order."""
        return [row["terms"][term] for row in self.rows("validation") if row["terms"].get(term) is not None]

    def system(self, role: str) -> Mapping[str, Any]:
        """The results' system with that role; {} if there is none."""
        systems = self.results["systems"] if self.results else []
        return next((dict(system) for system in systems if system["role"] == role), {})

    def metric(self, role: str, name: str, *, is_plain: bool = False) -> Mapping[str, Any] | None:
        """A system's METRIC; None if its value isn't known."""
        metrics = self.system(role).get("plain_metrics" if is_plain else "metrics") or {}
        metric: Mapping[str, Any] | None = metrics.get(name)
        return metric if metric is not None and metric["value"] is not None else None

    def compared(self, prompt: str, name: str) -> Mapping[str, Any] | None:
        """The adapter's difference from the base; None if there is no such comparison."""
        ours, base = self.system("adapter").get("name"), self.system("base").get("name")
        for comparison in self.results["comparisons"] if self.results else []:
            if (comparison["system"], comparison["against"], comparison["prompt"]) == (ours, base, prompt):
                return comparison["metrics"].get(name)
        return None

    def why_no_evaluation(self) -> str:
        """The reason why numbers of an evaluation are missing."""
        return next((item.why for item in self.missing if item.what == "evaluation"), "the evaluation doesn't say")


def find_runs(folder: Path, emotions: Sequence[str] | None = None) -> list[Path]:
    """The folders `emotion_models/<emotion>` of `folder`, which is one of them or a run's output folder.

    Raises `DataError` if there is none, or none for one of `emotions`.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} isn't a folder: give a run's output folder, or emotion_models/<emotion> in it")
    if _is_run(folder):
        if emotions and set(emotions) != {folder.resolve().name}:
            raise ConfigError(f"{folder} is the run of {folder.resolve().name}, not of {', '.join(emotions)}")
        return [folder]
    models = folder if folder.resolve().name == "emotion_models" else folder / "emotion_models"
    runs = {path.name: path for path in sorted(models.glob("*")) if _is_run(path)}
    if not runs:
        raise DataError(
            f"{folder} holds no run: there is no emotion_models/<emotion>/{LOG} in it. Give the --output of "
            "`affetto train`, or emotion_models/<emotion>"
        )
    if absent := [name for name in emotions or () if name not in runs]:
        raise DataError(f"{folder} holds no run of {', '.join(absent)}: there are {', '.join(runs)}")
    return [runs[name] for name in emotions or runs]


def read_evidence(folder: Path) -> Evidence:
    """Read `emotion_models/<emotion>` and its evaluation; `DataError` if nothing can be read."""
    emotion, output = folder.resolve().name, folder.resolve().parent.parent
    is_inside = folder.parts[-2:] == ("emotion_models", emotion)
    shown = folder.parent.parent if is_inside else output
    missing: list[Missing] = []
    log, (facts, config) = _log(folder, missing), _facts(folder, missing)
    if log is None and facts is None:
        raise DataError("\n".join(f"{item.what}: {item.why}" for item in missing))
    if log is not None and not log:
        missing.append(Missing("training log", f"{folder / LOG} is empty: no step was logged yet", None))
    options = _options(facts)
    if facts is None or not facts.get("frontier"):
        why = "training isn't complete, so the frontier of intensities wasn't measured"
        if facts is None:
            why += "; give the options that it was started with (--config, --base, --data) again"
        missing.append(Missing("end of training", why, _command("train", emotion, options, shown, "--resume")))
    results = _results(output / "evaluation_results" / f"{emotion}_results.json", missing,
                       _command("evaluate", emotion, options, shown))  # fmt: skip
    return Evidence(emotion, folder, tuple(log or ()), facts, config, results, tuple(missing))


def _is_run(folder: Path) -> bool:
    return (folder / LOG).is_file() or (folder / FACTS).is_file()


def _log(folder: Path, missing: list[Missing]) -> list[dict[str, Any]] | None:
    path = folder / LOG
    if not path.is_file():
        missing.append(Missing("training log", f"there is no {path}", None))
        return None
    try:
        rows = read_log(path)
    except DataError as error:
        missing.append(Missing("training log", str(error), None))
        return None
    return [{**row, "terms": {key: finite_or_none(value) for key, value in row["terms"].items()}} for row in rows]


def _facts(folder: Path, missing: list[Missing]) -> tuple[Facts | None, Config | None]:
    path = folder / FACTS
    if not path.is_file():
        missing.append(Missing("adapter", f"there is no {path}: no epoch has ended yet", None))
        return None, None
    try:
        facts = pydantic.TypeAdapter(Facts).validate_python(read_json(path))
        known = {key: value for key, value in facts["configuration"].items() if key in Config.model_fields}
        return facts, Config(**known)
    except (OSError, ValueError) as error:
        missing.append(Missing("adapter", f"{path} can't be read: {_in_one_line(error)}", None))
        return None, None


def _in_one_line(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        return "; ".join(map(_message, error.errors()[:3]))
    return why_unreadable(error)


def _message(error: Mapping[str, Any]) -> str:
    """The message of one of pydantic's errors; those about the whole file have no key."""
    if not error["loc"] and error["type"] == "dict_type":
        return "it holds no JSON object"
    return ": ".join([*filter(None, [".".join(map(str, error["loc"]))]), error["msg"].removeprefix("Value error, ")])


def _results(path: Path, missing: list[Missing], command: str) -> Results | None:
    if not path.is_file():
        missing.append(Missing("evaluation", f"not evaluated yet: there is no {path.name}", command))
        return None
    try:
        results = read_results(path)
    except AffettoError as error:
        missing.append(Missing("evaluation", str(error), command))
        return None
    if not {"base", "adapter"} <= {system["role"] for system in results["systems"]}:
        missing.append(Missing("evaluation", f"{path} isn't of base and adapter", command))
        return None
    return results


def _options(facts: Mapping[str, Any] | None) -> list[str]:
    """The options of the training command that an evaluation needs."""
    try:
        words = shlex.split(str((facts or {}).get("command") or ""))
    except ValueError:
        return []
    return [word for pair in pairwise(words) if pair[0] in _KEPT_OPTIONS for word in pair]


def _command(verb: str, emotion: str, options: Sequence[str], output: Path, *more: str) -> str:
    return shlex.join(["affetto", verb, "--emotion", emotion, *options, "--output", str(output), *more])
