"""The README keeps its word: its tree is the real one, and what it names exists."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tree_is_the_real_one() -> None:
    assert script("readme_tree").tree() in README, "run scripts/readme_tree.py and put its output into README.md"


def test_scripts_and_pictures_that_it_names_exist() -> None:
    named = re.findall(r"(?:\./)?((?:scripts|docs|configs)/[\w./-]+\.\w+)", README)
    assert len(named) >= 5
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_it_counts_the_published_layouts_that_are_known() -> None:
    from affetto.audio.corpora import CORPORA

    numbers = dict(zip(("seven", "eight", "nine", "ten", "eleven", "twelve"), range(7, 13), strict=True))
    found = re.search(r"published layout \(([\w, -]+) and (\w+) more\)", README)
    assert found
    named = found[1].lower().split(", ")
    assert set(named) < set(CORPORA)
    assert len(named) + numbers[found[2]] == len(CORPORA.keys() - {"folder"})


def test_commands_that_it_shows_are_verbs() -> None:
    from typer.main import get_command

    from affetto.cli import app

    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    shown = set(re.findall(r"^affetto (\w+)", README, flags=re.MULTILINE))
    assert shown
    assert shown <= verbs


def test_the_ablations_tables_are_those_of_the_runs() -> None:
    module = script("ablation_tables")
    rows = json.loads(module.RUNS.read_text(encoding="utf-8"))["rows"]
    for path, tables in module.pages(rows).items():
        text = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in text, f"run scripts/ablation_tables.py: {path.name}"
