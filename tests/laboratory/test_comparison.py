"""Methods at matched expressivity, on frontiers whose answers are known by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from affetto.config import Config
from affetto.errors import ConfigError
from affetto.laboratory.ablation import cells
from affetto.laboratory.comparison import (
    MARK,
    acted_markdown,
    compare_as_acted,
    compare_methods,
    gains,
    interval,
    kl_at,
    markdown,
)
from affetto.laboratory.methods import METHODS, PLAIN
from affetto.laboratory.picture import ablation_picture, mean_curve

HEARD = {
    "base": {"recall": 0.0, "posterior": 0.1, "wer": 0.05},
    "emotional": {"recall": 0.8, "posterior": 0.7, "wer": 0.1},
    "plain": {"recall": 0.1, "posterior": 0.2, "wer": 0.06},
}


def row(method: str, gain: float, kl: float, *, seed: int = 0, emotion: str = "happy") -> dict[str, Any]:
    """A run that learns `gain` and forgets `kl` at intensity 1: gain linear in the intensity, KL its square."""
    points = [
        {"intensity": x, "emotion_nll": 5.0 - gain * x, "general_nll": 2.0 + kl * x / 2, "kl": kl * x * x}
        for x in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    ]
    return {"method": method, "emotion": emotion, "seed": seed, "points": points, "heard": HEARD}


def test_gains_are_falls_from_the_base() -> None:
    assert gains(row(PLAIN, 2.0, 0.4))[0] == (0.0, 0.0, 0.0)
    assert gains(row(PLAIN, 2.0, 0.4))[4] == pytest.approx((1.0, 2.0, 0.4))


def test_forgetting_at_a_gain_is_read_between_intensities() -> None:
    # Gain 0.75 lies half-way between intensities 0.25 (KL 0.025) and 0.5 (KL 0.1).
    assert kl_at(row(PLAIN, 2.0, 0.4), 0.75) == pytest.approx((0.025 + 0.1) / 2)
    assert kl_at(row(PLAIN, 2.0, 0.4), 3.1) is None


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(0.5, 3.0), st.floats(0.01, 1.0), st.floats(0.05, 1.4))
def test_a_run_matched_with_itself_forgets_what_it_forgets(gain: float, kl: float, intensity: float) -> None:
    found = kl_at(row(PLAIN, gain, kl), gain * intensity)
    assert found is not None
    assert kl * intensity**2 <= found + 1e-12, "straight between points lies above a square"
    assert found <= kl * (intensity**2 + 0.25**2 / 4) + 1e-12


def test_the_weakest_intensity_that_reaches_the_gain_counts() -> None:
    made = row(PLAIN, 2.0, 0.4)
    made["points"][-1]["emotion_nll"] = 4.9  # falls apart at the strongest
    assert kl_at(made, 1.0) == pytest.approx(0.1)


def test_methods_are_compared_with_plain_lora_of_the_same_seed_and_emotion() -> None:
    rows = [row(PLAIN, 2.0, 0.4, seed=0), row(PLAIN, 1.0, 0.2, seed=1), row("all", 2.0, 0.04, seed=0)]
    rows += [row("all", 1.0, 0.02, seed=1), row("rate_tenth", 0.5, 0.01, seed=0)]
    lines = {line.method: line for line in compare_methods(rows)}
    everything = lines["all"]
    assert everything.num_runs == everything.num_matched == 2
    assert everything.gain.mean == pytest.approx(1.5)
    assert everything.delta_nll.mean == pytest.approx(0.015)
    # Both runs need 0.9 of their own full gain, and forget a tenth of their own plain run wherever they stand.
    at_mark = np.interp(MARK, [0.75, 1.0], [0.75**2, 1.0])
    assert everything.share is not None
    assert everything.share.mean == pytest.approx(0.1 * at_mark)
    assert lines[PLAIN].share is not None
    assert lines[PLAIN].share.mean == pytest.approx(at_mark), "plain LoRA scaled down is its own baseline"
    assert lines["rate_tenth"].num_matched == 0
    assert lines["rate_tenth"].matched_kl is None
    assert list(lines) == [name for name in METHODS if name in lines]


def test_intervals_are_students() -> None:
    values = [0.4, 0.7, 0.5, 0.9]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = interval(values)
    assert (found.low, found.high) == pytest.approx(expected)
    assert interval([0.3]).low is None
    assert interval([0.3, 0.4]).low is None, "two runs tell nothing of their spread"


def test_what_was_not_heard_is_not_averaged() -> None:
    deaf = row(PLAIN, 2.0, 0.4, seed=1)
    deaf["heard"] = {kind: {**values, "wer": None} for kind, values in HEARD.items()}
    (line,) = compare_methods([row(PLAIN, 2.0, 0.4), deaf])
    assert line.heard["wer"] is None
    assert line.heard["recall"] is not None
    assert line.heard["recall"].mean == pytest.approx(0.8)


def test_table_and_picture_show_every_method_that_ran() -> None:
    rows = [row(PLAIN, 2.0, 0.4), row("all", 1.9, 0.03), row("ewc_kfac_3000", 1.0, 0.1)]
    table = markdown(rows).splitlines()
    assert len(table) == 2 + 3
    assert len({line.count("|") for line in table}) == 1
    assert "not reached" in next(line for line in table if "EWC kfac" in line)
    svg = ablation_picture(rows).svg
    assert all(METHODS[name].title in svg for name in (PLAIN, "all", "ewc_kfac_3000"))
    assert METHODS["decay"].title not in svg
    assert "mathdefault" not in svg
    assert mean_curve(rows, PLAIN)[3] == pytest.approx((1.0, 0.4))
    assert mean_curve(rows, "all")[3] == pytest.approx((0.95, 0.03))
    assert mean_curve(rows[1:], "all") == [], "nothing to count in"


def test_the_picture_shows_a_familys_best_alone() -> None:
    rows = [row(PLAIN, 2.0, 0.4), row("ewc_kfac_3000", 2.0, 0.2), row("ewc_kfac_30000", 2.0, 0.1)]
    svg = ablation_picture(rows).svg
    assert METHODS["ewc_kfac_30000"].title in svg
    assert METHODS["ewc_kfac_3000"].title + "<" not in svg


def test_cells_come_seed_by_seed_and_unknown_methods_are_named() -> None:
    made = cells([PLAIN, "all"], ["happy", "sad"], 2)
    assert [cell.name for cell in made[:4]] == ["plain-happy-0", "all-happy-0", "plain-sad-0", "all-sad-0"]
    assert len({cell.name for cell in made}) == 8
    with pytest.raises(ConfigError, match="unknown method 'nothing'"):
        cells(["nothing"], ["happy"], 1)


def test_methods_differ_in_what_they_say() -> None:
    said = {tuple(sorted((key, str(value)) for key, value in method.changes.items())) for method in METHODS.values()}
    assert len(said) == len(METHODS)
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_configuration(name: str) -> None:
    assert Config(**METHODS[name].changes).emotions == Config().emotions


def test_runs_are_compared_where_each_is_as_strong_as_its_clips() -> None:
    made = [row(PLAIN, 2.0, 0.4, seed=seed) for seed in range(3)] + [row("replay_kl", 2.0, 0.1)]
    for number, one in enumerate(made):
        heard = {**HEARD, "emotional": {"recall": 0.7 + 0.1 * number, "posterior": 0.7, "wer": 0.1}}
        one["as_acted"] = {
            "intensity": 0.9 + 0.1 * number, "emotion_nll": 3.0, "general_nll": 2.3, "kl": 0.2 * number, "heard": heard,
            "strengths": [{"intensity": 1.0, "strength": 0.2}, {"intensity": 1.25, "strength": (1.2, 0.3)[number % 2]}],
        }  # fmt: skip
    made[2]["as_acted"] = {"intensity": None, "reason": "too few clips"}
    plain, replay = compare_as_acted(made)
    assert (plain.num_runs, plain.num_matched, replay.num_runs) == (3, 2, 1)
    assert plain.intensity.mean == pytest.approx(0.95)
    assert plain.strength.mean == pytest.approx((1.0 + 0.3) / 2), "the second never came as far as its clips"
    assert plain.delta_nll.mean == pytest.approx(0.3), "2.3 where the base has 2.0"
    assert plain.heard["recall"] is not None
    assert plain.heard["recall"].mean == pytest.approx(0.75)
    table = acted_markdown(made).splitlines()
    assert len(table) == 4
    assert table[2].startswith(
        f"| {METHODS[PLAIN].title} | 2 of 3 | 0.95 | 0.65 | 75.0% | 10.0% | 10.0% | 6.0% | 0.1000 |"
    )
    assert {line.count("|") for line in table} == {11}
    assert acted_markdown([row(PLAIN, 2.0, 0.4)]) == "No run was matched to the strength of its clips."
