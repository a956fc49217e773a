from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

from affetto.errors import DataError
from affetto.evaluate.folder import evaluate_folder
from affetto.evaluate.results import VALUE_NAMES, validate_results
from affetto.evaluate.results_schema import results_schema
from evaluate_fakes import RATE, fake_judges, voice
from result_samples import result
from schema_check import problems

PUBLISHED = Path(__file__).parents[2] / "docs" / "results.schema.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the evaluation of a folder wrote: one good file, one broken."""
    folder = tmp_path_factory.mktemp("sounds")
    soundfile.write(folder / "a.wav", voice(120), RATE)
    (folder / "b.wav").write_bytes(b"no sound")
    evaluate_folder(folder, "happy", folder / "out" / "r.json", judges=fake_judges())
    document: dict[str, Any] = json.loads((folder / "out" / "r.json").read_text())
    return document


def test_what_is_published_is_what_the_types_say(affetto: Callable[..., tuple[int, str, str]]) -> None:
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == results_schema(), (
        "affetto schema > docs/results.schema.json"
    )
    status, out, _ = affetto("schema")
    assert status == 0
    assert json.loads(out) == results_schema()


def test_a_folders_results_and_a_runs_fit_the_schema(written: dict[str, Any]) -> None:
    assert problems(written, results_schema()) == []
    assert problems(result(), results_schema()) == []
    assert written["systems"][0]["files"][1]["error"] is not None


def test_every_object_is_closed() -> None:
    def objects(schema: Any) -> list[dict[str, Any]]:
        inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
        own = [schema] if isinstance(schema, dict) and schema.get("type") == "object" else []
        return [*own, *(found for part in inner for found in objects(part))]

    found = objects(results_schema())
    assert len(found) > 10
    assert all("additionalProperties" in part for part in found)


_FILE = ["systems", 0, "files", 0]
_METRIC = ["systems", 0, "metrics", "recall"]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["schema"], "affetto.results/0"),
        (["extra"], 1),
        (["emotion"], None),
        ([*_FILE, "values", "charm"], 1.0),
        ([*_FILE, "duration_s"], "1 s"),
        ([*_METRIC, "value"], None),
        ([*_METRIC, "n"], -1),
        (["systems", 0, "role"], "boss"),
        (["systems", 0, "num_files"], 1.5),
        (["judges", "emotion", "tier"], "rumour"),
    ],
)
def test_schema_and_reader_refuse_the_same(written: dict[str, Any], where: list[Any], value: Any) -> None:
    broken = copy.deepcopy(written)
    inner = broken
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    assert problems(broken, results_schema())
    if where[-1] != "n":
        with pytest.raises(DataError):
            validate_results(broken)


def test_every_value_has_its_name_in_the_schema() -> None:
    values = results_schema()["$defs"]["FileRow"]["properties"]["values"]
    assert tuple(values["properties"]) == VALUE_NAMES
    assert values["additionalProperties"] is False


def test_the_pages_about_results_name_every_key() -> None:
    def keys(schema: Any) -> set[str]:
        inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
        own = set(schema.get("properties", ())) if isinstance(schema, dict) else set()
        return own.union(*map(keys, inner))

    # Metrics are told of in the other page.
    page = "".join((PUBLISHED.parent / name).read_text(encoding="utf-8") for name in ("results.md", "evaluation.md"))
    found = keys(results_schema())
    assert {"ceiling", "p_holm", "num_tokens"} <= found
    assert [key for key in sorted(found) if not re.search(rf"\b{key}\b", page)] == []
