"""What an adapter's two JSON files must hold, checked before anything else is done with them.

A missing key has its default, so that PEFT adapters made elsewhere can be read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from affetto.errors import AdapterError

TEMPLATE_RULE = "{text} once and no other braces"
"""What a prompt template must hold, the configuration's or an adapter's."""


def is_template(value: object) -> bool:
    """Whether `value` is a prompt template by `TEMPLATE_RULE`."""
    return isinstance(value, str) and value.count("{text}") == 1 and "{" not in value.replace("{text}", "")


def is_name(value: object) -> bool:
    """Whether an adapter may be named so: without dots, which torch keeps no parameter under, and so that a blend
    (happy=0.6,sad=0.4) can say it."""
    return isinstance(value, str) and value == value.strip() != "" and not {*".,="} & {*value}


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """AdapterError for a value of `adapter_config.json` that the bank can't use, naming file, key and what it must be.
    Whether the bank supports the method is checked by `read_adapter`."""
    _check(path, config, _CONFIG)


def check_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """AdapterError for a value of `affetto.json` that speaking can't use, as in `check_config`."""
    _check(path, facts, _FACTS)


def _check(path: Path, values: Mapping[str, Any], rules: Mapping[str, tuple[str, Callable[[Any], bool]]]) -> None:
    for key, (expected, fits) in rules.items():
        if key in values and not fits(values[key]):
            raise AdapterError(
                f"{path}: {key} must be {expected}, not {values[key]!r}. Copy or train the adapter again"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_strength(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_whole(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_rank(value: object) -> bool:
    return _is_whole(value, least=1)


def _is_regex(value: str) -> bool:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _are_names(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _are_layers(value: object) -> bool:
    return _is_regex(value) if isinstance(value, str) else _are_names(value)


def _are_patterns(value: object) -> bool:
    patterns = [value] if isinstance(value, str) else value or []
    return isinstance(patterns, list) and all(isinstance(one, str) and _is_regex(one) for one in patterns)


def _are_places(value: object) -> bool:
    return value is None or all(map(_is_whole, value if isinstance(value, list) else [value]))


def _by_pattern(value: object, fits: Callable[[object], bool]) -> bool:
    # As PEFT uses them: in a group, after any path.
    return value is None or (
        isinstance(value, dict) and all(_is_regex(rf"(.*\.)?({key})") and fits(one) for key, one in value.items())
    )


def _are_speakers(value: object) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_whole, value.values())))


def _is_frontier(value: object) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(isinstance(point, dict) and _is_strength(point.get("intensity")) for point in value)
    )


_LAYERS = "a regular expression, or a list of layers' names"
_CONFIG: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("a whole number above 0", _is_rank),
    "lora_alpha": ("a number", _is_number),
    "rank_pattern": (
        "regular expressions, each with a whole number above 0", lambda value: _by_pattern(value, _is_rank)
    ),
    "alpha_pattern": ("regular expressions, each with a number", lambda value: _by_pattern(value, _is_number)),
    "target_modules": (_LAYERS, _are_layers),
    "exclude_modules": (_LAYERS, _are_layers),
    "layers_pattern": ("a regular expression, or a list of them", _are_patterns),
    "layers_to_transform": ("a layer's number, or a list of them", _are_places),
    "target_parameters": ("a list of parameters' names", _are_names),
}  # fmt: skip
_FACTS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "prompt_template": (f"a text with {TEMPLATE_RULE}", is_template),
    "recommended_intensity": ("a number, 0 or more", lambda value: value is None or _is_strength(value)),
    "speakers": ("names of speakers, each with its number, 0 or more", _are_speakers),
    "frontier": ("a list of points, each with its intensity, a number of 0 or more", _is_frontier),
}
