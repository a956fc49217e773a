"""The JSON Schema of a results document, made from the types of `results.py`, which are its one source.

`affetto schema` prints it, docs/results.schema.json is that print, and a test holds them together. What JSON Schema
can't say is checked by `results.validate_results` alone: that a system's counts fit its files.
"""

from __future__ import annotations

from typing import Any

import pydantic

from affetto.evaluate.results import PREDICTED, SCHEMA, VALUE_NAMES, Results

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_COUNTS = ("n", "num_files", "num_failed", "num_clips", "num_codes", "num_tokens")
_REASON = {"properties": {"reason": {"type": "string", "minLength": 1}}}


def results_schema() -> dict[str, Any]:
    """The schema as JSON values: objects are closed, and a null number must have its reason."""
    found: dict[str, Any] = pydantic.TypeAdapter(Results).json_schema(by_alias=True)
    parts = found["$defs"]
    for part in (found, *parts.values()):
        part.pop("title", None)
        for name, property_ in part["properties"].items():
            property_.pop("title", None)
            if name in _COUNTS:
                property_["minimum"] = 0
    found["properties"]["schema"] = {"const": SCHEMA}
    value = parts["FileRow"]["properties"]["values"]["additionalProperties"]
    parts["FileRow"]["properties"]["values"] = {
        "type": "object", "properties": dict.fromkeys(VALUE_NAMES, value),
        "patternProperties": {f"^{PREDICTED}": value}, "additionalProperties": False,
    }  # fmt: skip
    parts["Metric"]["allOf"] = [_unless_known("value")]
    parts["ComparedMetric"]["allOf"] = [_unless_known("difference"), _unless_known("verdict")]
    description = f"{found.pop('description')} {' '.join((__doc__ or '').split(chr(10) * 2)[1].split())}"
    about = {"$schema": DIALECT, "$id": f"urn:{SCHEMA.replace('/', ':')}", "title": SCHEMA}
    return {**about, "description": description, **found}


def _unless_known(name: str) -> dict[str, Any]:
    """If `name` is null, there must be a reason."""
    return {"if": {"properties": {name: {"type": "null"}}}, "then": _REASON}
