"""Judges that are TorchScript files: finding the file in a folder, and reading the JSON beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from affetto.errors import JudgeError
from affetto.files import read_json
from affetto.judges.known import KnownJudge

SUFFIXES = (".jit", ".pt", ".ts", ".torchscript")
FOLDER_FACTS = "judge.json"
"""The JSON about the one judge of a folder or hub repository, if none has the judge's own name."""
_KEYS = ("name", "sample_rate", "input", "outputs", "scale", "licence")
_INPUTS = ("float32", "int16")


def find_script(folder: Path, name: str) -> Path | None:
    """The TorchScript file of a folder: the only one, or the only one with a JSON beside it; None if there is none.

    Raises JudgeError, with `name`, if there are several.
    """
    scripts = sorted(entry for entry in folder.glob("*") if entry.suffix in SUFFIXES)
    described = [script for script in scripts if script.with_suffix(".json").is_file()]
    if len(scripts) > 1 and len(described) != 1:
        raise JudgeError(f"{name} holds {len(scripts)} TorchScript files: name one of them")
    return next(iter(described or scripts), None)


def is_script_folder(path: Path) -> bool:
    """Whether a folder holds TorchScript files, and not a transformers model."""
    is_folder = path.is_dir() and not (path / "config.json").is_file()
    return is_folder and any(entry.suffix in SUFFIXES for entry in path.glob("*"))


def script_facts(path: Path, known: KnownJudge | None, *, is_in_folder: bool) -> dict[str, Any]:
    """The facts about a TorchScript file: those of `known`, overridden by the JSON of its name, else its folder's."""
    beside = path.with_suffix(".json")
    if is_in_folder and not beside.is_file():
        beside = path.parent / FOLDER_FACTS
    return {**_facts(known), **read_facts(beside)}


def read_facts(path: Path, *, is_script: bool = True) -> dict[str, Any]:
    """The checked facts in a JSON file; empty without the file.

    A transformers model (`is_script` false) gets its rate and input from its feature extractor. Raises JudgeError.
    """
    if not path.is_file():
        return {}
    try:
        facts = read_json(path)
    except (OSError, ValueError) as error:
        raise JudgeError(f"can't read {path}: {error}") from error
    keys = [key for key in _KEYS if is_script or key not in ("sample_rate", "input")]
    if not isinstance(facts, dict) or set(facts) - set(keys):
        raise JudgeError(f"{path} must be a JSON object with keys from {', '.join(keys)}")
    if facts.get("input", "float32") not in _INPUTS:
        raise JudgeError(f"{path}: input is {facts['input']!r}, but must be one of {', '.join(_INPUTS)}")
    rate, outputs = facts.get("sample_rate", 16_000), facts.get("outputs", ["mos"])
    if not isinstance(rate, int) or rate <= 0 or not isinstance(outputs, list) or not outputs:
        raise JudgeError(f"{path}: sample_rate must be a whole number above 0, outputs a list of names")
    return facts


def _facts(known: KnownJudge | None) -> dict[str, Any]:
    if known is None or known.script is None:
        return {}
    script = known.script
    return {
        "name": script.name, "sample_rate": known.sample_rate, "input": script.input, "outputs": list(script.outputs),
        "scale": known.scale, "licence": known.licence,
    }  # fmt: skip
