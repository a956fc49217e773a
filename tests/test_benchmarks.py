"""Benchmarks are run by hand; that they still import is held here."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from affetto.codes.codec import load_codec
from affetto.model.base import Base, load_base
from affetto.model.batch import Row, Turn, collate
from affetto.model.losses import code_losses

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_benchmark_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    assert hasattr(module, "main") or name in {"facts", "held_out", "six_emotions"}


def test_every_benchmark_has_a_row_in_the_readme() -> None:
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    scripts = [path for path in (*FOLDER.glob("*.py"), *FOLDER.glob("parity/*.py")) if "def main(" in path.read_text()]
    assert len(scripts) > 20
    missing = [name for path in scripts if f"`{(name := path.relative_to(FOLDER).as_posix())}`" not in told]
    assert not missing
    rows = [line.split("`")[1] for line in told.splitlines() if line.startswith("| `")]
    assert [name for name in rows if not (FOLDER / name).is_file()] == []


def test_rows_with_sound_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs a GPU, so that nothing else would notice here that it no longer runs."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    benchmark = importlib.import_module("speaking_on_gpu")
    timed = benchmark._rows_with_sound(load_base("miniature"), [1, 2], 5)
    assert set(timed) == {"1", "2"}
    assert all(row["ms_per_frame"] >= row["of_that_codes_ms"] > 0 for row in timed.values())


@pytest.mark.parametrize(
    ("call", "status", "told"),
    [(("memory.py", "csm-1b-guide"), 1, "csm-1b-guide: for a GPU, and torch finds none here"),
     (("parity/csm.py", "--help"), 0, "usage: csm.py [-h] [base]")],
)  # fmt: skip
def test_what_a_benchmark_cannot_do_or_is_asked_of_is_told_in_words(
    call: tuple[str, str], status: int, told: str
) -> None:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(
        [sys.executable, FOLDER / call[0], call[1]], capture_output=True, text=True, env=env, check=False
    )
    assert (found.returncode, "Traceback" in found.stderr) == (status, False)
    assert told in found.stdout + found.stderr


def test_the_documented_recipe_does_the_same_work(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own loss of the same clips, coded in the loop or before it, is ours; padding changes nothing."""
    monkeypatch.syspath_prepend(str(FOLDER))
    recipes = importlib.import_module("opponents.csm_documentation")
    codec = load_codec(tiny_base.folder)
    rng = np.random.default_rng(0)
    examples, rows = [], []
    for number, length in enumerate((4_000, 9_500)):
        samples = (0.1 * rng.standard_normal(length)).astype(np.float32)
        codes = codec.encode(samples)
        examples.append(recipes.Example(f"take {number}", number, samples, codes))
        rows.append(Row(str(number), (Turn(tiny_base.prompt_ids(f"take {number}", number), codes),)))
    batch = collate(rows, tiny_base.num_codebooks)
    c0, depth = code_losses(tiny_base.network(batch), batch)
    wanted = float(c0.mean + depth.mean)
    recipe = recipes.DocumentedRecipe(tiny_base, r"backbone_model\..*\.q_proj", 2, 4.0, codec=codec)
    in_loop = recipe.loss(recipe.batch(examples), is_coded=False)
    before = recipe.loss(recipe.padded([recipe.prepared(example) for example in examples]), is_coded=True)
    assert in_loop.item() == pytest.approx(wanted, abs=1e-4)
    assert before.item() == pytest.approx(wanted, abs=1e-4)
    recipe.step(recipe.batch(examples), is_coded=False)
    moved = [value for name, value in recipe.model.named_parameters() if "lora_B" in name]
    assert moved
    assert all(value.abs().max() > 0 for value in moved), "the opponent learns, too"


def test_the_sampler_tells_who_took_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    stacks = importlib.import_module("profiling.stacks")
    monkeypatch.setattr(stacks, "_kind", lambda frame: "affetto" if "spin" in frame.f_code.co_name else "other")
    with stacks.sampled("all") as top:
        _spin_outer(0.6, _spin_long)
        _spin_outer(0.2, _spin_short)
    outer = top.below["_spin_outer"]
    long, short = outer.below["_spin_long"].spent_s, outer.below["_spin_short"].spent_s
    assert long / short == pytest.approx(3.0, rel=0.25)
    assert top.spent_s == pytest.approx(0.8, rel=0.25)
    picture = ElementTree.fromstring(stacks.icicle(top, "A <title>"))
    titles = [element.text or "" for element in picture.iter() if element.tag.endswith("title")]
    assert any(title.startswith("_spin_long: 7") for title in titles), titles


def _spin_outer(duration_s: float, spin: Callable[[float], Any]) -> None:
    spin(duration_s)


def _spin_long(duration_s: float) -> None:
    start_s = time.process_time()
    while time.process_time() - start_s < duration_s:
        pass


def _spin_short(duration_s: float) -> None:
    # A long call into a library counts as what it took, though no sample can fall inside.
    start_s = time.process_time()
    values = torch.ones(200, 200)
    while time.process_time() - start_s < duration_s:
        torch.linalg.svd(values)
