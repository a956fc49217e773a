"""JSON Schema read by hand: the keywords that affetto's schema has, and an error at any other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_TYPES = {"object": dict, "array": list, "string": str, "null": type(None), "integer": int, "number": (int, float)}
_SAYS_NOTHING = {"$schema", "$id", "$defs", "title", "description", "then"}


def problems(value: Any, schema: dict[str, Any]) -> list[str]:
    """Where `value` breaks `schema`."""
    return list(_Checker(schema).check(value, schema, "$"))


@dataclass(frozen=True)
class _Checker:
    root: dict[str, Any]

    def check(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        for keyword in schema.keys() - _SAYS_NOTHING:
            check = getattr(self, f"_{keyword.removeprefix('$')}", None)
            assert check, f"the check doesn't know the keyword {keyword}"
            yield from check(value, schema, at)

    def _ref(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        yield from self.check(value, self.root["$defs"][schema["$ref"].removeprefix("#/$defs/")], at)

    def _type(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        if not isinstance(value, _TYPES[schema["type"]]) or isinstance(value, bool):
            yield f"{at} is no {schema['type']}: {value!r}"

    def _const(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        if value != schema["const"]:
            yield f"{at} isn't {schema['const']!r}"

    def _enum(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        if value not in schema["enum"]:
            yield f"{at} isn't among {schema['enum']}"

    def _minimum(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        if isinstance(value, int | float) and value < schema["minimum"]:
            yield f"{at} is under {schema['minimum']}"

    def _minLength(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        if isinstance(value, str) and len(value) < schema["minLength"]:
            yield f"{at} is too short"

    def _anyOf(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        if all(list(self.check(value, option, at)) for option in schema["anyOf"]):
            yield f"{at} fits none of {schema['anyOf']}"

    def _allOf(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        for option in schema["allOf"]:
            yield from self.check(value, option, at)

    def _if(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        if not list(self.check(value, schema["if"], at)):
            yield from self.check(value, schema["then"], at)

    def _items(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        for index, item in enumerate(value if isinstance(value, list) else []):
            yield from self.check(item, schema["items"], f"{at}[{index}]")

    def _required(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        yield from (
            f"{at} lacks {name}" for name in schema["required"] if isinstance(value, dict) and name not in value
        )

    def _properties(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        for name in schema["properties"].keys() & (value.keys() if isinstance(value, dict) else set()):
            yield from self.check(value[name], schema["properties"][name], f"{at}.{name}")

    def _patternProperties(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        for pattern, wanted in schema["patternProperties"].items():
            for name in value if isinstance(value, dict) else ():
                if re.search(pattern, name):
                    yield from self.check(value[name], wanted, f"{at}.{name}")

    def _additionalProperties(self, value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
        patterns = schema.get("patternProperties", {})
        rest = value.keys() - schema.get("properties", {}).keys() if isinstance(value, dict) else set()
        rest = {name for name in rest if not any(re.search(pattern, name) for pattern in patterns)}
        for name in rest:
            if schema["additionalProperties"] is False:
                yield f"{at} has {name}, which isn't in the schema"
            else:
                yield from self.check(value[name], schema["additionalProperties"], f"{at}.{name}")
