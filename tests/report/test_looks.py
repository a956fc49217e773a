"""Every system of a page has a look of its own: colours are told apart, and bases and recordings keep theirs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_report import Page

import affetto.report
from affetto.files import write_json
from affetto.report.canvas import MARKERS, NUM_SYSTEM_COLOURS, look, marker, system_colour, system_numbers
from affetto.report.comparison_page import write_comparison
from affetto.report.run_page import write_report
from affetto.report.systems import read_entries
from result_samples import run_of

CSS = (Path(affetto.report.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
APART = 0.1
"""Of two colours in Oklab, whose black and white are 1 apart."""


def oklab(colour: str) -> NDArray[np.float64]:
    """Björn Ottosson's Oklab (2020) of an sRGB colour."""
    rgb = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = np.array([
        [0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ])  # fmt: skip
    opponents = np.array([
        [0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ])  # fmt: skip
    found: NDArray[np.float64] = opponents @ np.cbrt(cones @ linear)
    return found


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_are_told_apart_in_both_themes(theme: int) -> None:
    found: dict[str, list[str]] = {}
    for number, colour in re.findall(r"--system-(\d): (#\w{6});", CSS):
        found.setdefault(number, []).append(colour)
    assert len(found) == NUM_SYSTEM_COLOURS
    colours = [oklab(own[theme]) for own in found.values()]
    distances = [np.linalg.norm(one - other) for place, one in enumerate(colours) for other in colours[:place]]
    assert min(distances) > APART


def test_the_style_sheet_has_every_colour_and_marker() -> None:
    for number in range(NUM_SYSTEM_COLOURS):
        assert f".s{number} {{ --own: var(--system-{number}); }}" in CSS
    for place in range(len(MARKERS)):
        assert f".swatch.m{place} {{" in CSS


def test_eight_systems_beside_base_and_recordings_differ_in_colour_and_in_marker() -> None:
    roles = {"mine": "files", "base": "base", "real": "real"} | {f"adapter {n}": "adapter" for n in range(7)}
    numbers = system_numbers(roles)
    assert (numbers["base"], numbers["real"]) == (0, 2)
    assert len({system_colour(number) for number in numbers.values()}) == len(roles)
    assert len({marker(number) for number in numbers.values()}) == len(roles)


def test_six_runs_have_six_adapters_and_one_colour_for_bases_and_one_for_recordings() -> None:
    roles = {f"{kind} {run}": kind for run in range(6) for kind in ("base", "adapter", "real")}
    numbers = system_numbers(roles)
    colours = {
        kind: {system_colour(numbers[name]) for name, role in roles.items() if role == kind}
        for kind in ("base", "adapter", "real")
    }
    assert {kind: len(own) for kind, own in colours.items()} == {"base": 1, "adapter": 6, "real": 1}
    assert len(set().union(*colours.values())) == 8
    assert len({(system_colour(number), marker(number)) for number in numbers.values()}) == len(roles)


def test_the_pages_use_them(tmp_path: Path) -> None:
    names = ["happy", "sad", "angry", "fearful", "surprised", "neutral"]
    for name in names:
        write_json(tmp_path / f"{name}_results.json", run_of(name))
    entries = read_entries([str(tmp_path / f"{name}_results.json") for name in names])
    comparison = write_comparison(tmp_path / "page.html", entries).read_text(encoding="utf-8")
    run = write_report(
        tmp_path / "report.html", [run_of(name) for name in names], title="x", audio=[], training_log=None, facts={}
    ).read_text(encoding="utf-8")
    for text in (comparison, run):
        swatches = dict(re.findall(r'<span class="swatch (s\d m\d)" aria-hidden="true"></span>([\w: ]+)', text)[::-1])
        by_name = {name: own for own, name in swatches.items()}
        assert {by_name[name].split()[0] for name in names} == {"s1", "s3", "s4", "s5", "s6", "s7"}
        drawn = set(re.findall(r"var\(--system-(\d)\)", text))
        assert {"0", "1", "2", "3", "4", "5", "6", "7"} <= drawn, "in the pictures"
    assert look(0) == "s0 m0"
    assert Page(run).find("th", scope="col")
