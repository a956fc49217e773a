"""Every symptom is seen where it is and only there, and names the change that the run's own numbers call for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doctor_runs import Made, Spoken, write_run
from scipy import stats

from affetto.config import Config
from affetto.doctor.diagnose import examine
from affetto.doctor.findings import Check, Diagnosis, Symptom

Case = tuple[str, str, dict[str, Any], dict[str, Any], tuple[str | None, Any, Any]]
"""Symptom, check, an ill run, its twin that is well, and (key, old, new) of the change."""
EWC = Config().ewc_lambda

LESS_HEARD: dict[str, Any] = {"adapter": Spoken(recall=0.2)}
SHORT: dict[str, Any] = {"emotion_nll": (3.9, 3.89), "general_kl": (0.005,) * 2}
FORGETS: dict[str, Any] = {"delta_nll": (0.03, 0.02, 0.04), "kl": (0.03, 0.02, 0.04)}
CASES: list[Case] = [
    # Recall 20 % [10, 35] of 40 against real recordings' 75 % [60, 86]; at 50 % [35, 65] the intervals overlap.
    ("weak expression", "heard less often than real recordings",
     LESS_HEARD | {"kl": (0.009, 0.008, 0.011)}, {"adapter": Spoken(recall=0.5)}, ("adapter_r", 16, 32)),
    # Not evaluated: what was learned decides. 5.0 to 4.98 is 0.4 %, to 4.4 it is 12 %.
    ("weak expression", "emotional clips hardly better predicted than by the base",
     {"losses": (5.0, 4.98), "is_evaluated": False, "configuration": {"learning_rate": 1e-5}},
     {"losses": (5.0, 4.4), "is_evaluated": False}, ("learning_rate", 1e-5, 1e-4)),
    ("weak expression", "emotional clips hardly better predicted than by the base",
     {"losses": (5.0, 4.7), "is_evaluated": False}, {"losses": (5.0, 4.4), "is_evaluated": False},
     ("learning_rate", 0.006, 0.018)),
    # 40 steps at any learning rate are few.
    ("weak expression", "emotional clips hardly better predicted than by the base",
     {"losses": (5.0, 4.7), "is_evaluated": False, "configuration": {"num_epochs": 2}, **SHORT},
     {"losses": (5.0, 4.4), "is_evaluated": False, **SHORT}, ("num_epochs", 2, 5)),
    ("weak expression", "still learning when it ended",
     LESS_HEARD | {"emotion_nll": (3.9, 3.8, 3.6, 3.5, 3.43)}, LESS_HEARD, ("num_epochs", 5, 8)),
    ("weak expression", "best at the highest intensity measured",
     LESS_HEARD | {"recommended": 1.5}, LESS_HEARD | {"recommended": 1.25}, ("learning_rate", 0.006, 0.009)),
    ("weak expression", "best at the highest intensity measured",
     LESS_HEARD | {"matched": 0.8}, LESS_HEARD | {"matched": 1.0}, ("learning_rate", 0.006, 0.009)),
    ("weak expression", "held back by EWC",
     LESS_HEARD, LESS_HEARD | {"configuration": {"ewc_lambda": 0}}, ("ewc_lambda", EWC, EWC / 2)),
    # A budget sets how much is forgotten, and EWC's weight moves by itself.
    ("weak expression", "held back by the budget",
     LESS_HEARD | {"configuration": {"forgetting_budget": 0.006}},
     LESS_HEARD | {"configuration": {"forgetting_budget": 0.03}}, ("forgetting_budget", 0.006, 0.01)),
    ("weak expression", "heard less often than real recordings",
     LESS_HEARD | {"kl": (0.009, 0.008, 0.011), "configuration": {"use_adapters": False}},
     {"adapter": Spoken(recall=0.5), "configuration": {"use_adapters": False}}, (None, None, None)),
    ("lost capabilities", "a budget that isn't met",
     {"frontier_kl": 0.005, "configuration": {"forgetting_budget": 0.003}},
     {"frontier_kl": 0.005, "configuration": {"forgetting_budget": 0.005}}, ("num_epochs", 5, 8)),
    ("lost capabilities", "general speech forgotten",
     {"kl": (0.06, 0.05, 0.07), "configuration": {"forgetting_budget": 0.03}},
     {"kl": (0.03, 0.028, 0.032), "configuration": {"forgetting_budget": 0.03}}, ("forgetting_budget", 0.03, 0.015)),
    ("instability", "validation that rises after its best",
     {"in_budget": (3.6, 3.4, 3.45, 3.5, 3.6), "configuration": {"forgetting_budget": 0.03}},
     {"emotion_nll": (3.6, 3.4, 3.45, 3.5, 3.6), "configuration": {"forgetting_budget": 0.03}}, ("num_epochs", 5, 2)),
    ("lost capabilities", "general speech forgotten", FORGETS, {}, ("ewc_lambda", EWC, 2 * EWC)),
    ("lost capabilities", "general speech forgotten",
     {"kl": (0.06, 0.05, 0.07)}, {"kl": (0.008, 0.007, 0.009)}, ("ewc_lambda", EWC, 4 * EWC)),
    ("lost capabilities", "general speech forgotten",
     FORGETS | {"configuration": {"ewc_lambda": 0}}, {}, ("ewc_lambda", 0.0, EWC)),
    ("lost capabilities", "words lost when asked for the emotion",
     {"adapter": Spoken(wer=0.7)}, {}, (None, None, None)),
    ("lost capabilities", "words lost on plain prompts",
     {"plain": Spoken(recall=0.0, wer=0.5)}, {}, ("ewc_lambda", EWC, 2 * EWC)),
    ("lost capabilities", "emotion on plain prompts",
     {"plain": Spoken(recall=0.0, posterior=0.3), "configuration": {"replay_ratio": 0.2}},
     {"plain": Spoken(recall=0.0, posterior=0.04)}, ("replay_ratio", 0.2, 0.5)),
    ("lost capabilities", "emotion on plain prompts",
     {"plain": Spoken(recall=0.0, posterior=0.3)}, {}, ("replay_ratio", 0.5, 0.6)),
    ("lost capabilities", "quality lost when asked for the emotion",
     {"adapter": Spoken(mos=2.2)}, {"adapter": Spoken(mos=2.45)}, (None, None, None)),
    ("lost capabilities", "quality lost on plain prompts",
     {"plain": Spoken(recall=0.0, mos=2.2)}, {}, ("ewc_lambda", EWC, 2 * EWC)),
    ("lost capabilities", "speech that doesn't stop",
     {"adapter": Spoken(stop_failures=0.4)}, {"adapter": Spoken(stop_failures=0.025)}, (None, None, None)),
    ("lost capabilities", "a protection that is off",
     FORGETS | {"configuration": {"distillation_alpha": 0, "ewc_lambda": 0}}, FORGETS,
     ("distillation_alpha", 0.0, 1.0)),
    ("instability", "numbers that aren't finite",
     {"jumps": {40: {"total": None}}}, {"jumps": {40: {"total": 1.9}}}, ("learning_rate", 0.006, 0.003)),
    ("instability", "numbers that aren't finite",
     {"jumps": {40: {"total": None}}, "configuration": {"precision": "fp16"}},
     {"jumps": {40: {"gradient_norm": None}}, "configuration": {"precision": "fp16"}}, ("precision", "fp16", "bf16")),
    ("instability", "gradients that spike",
     {"jumps": {60: {"gradient_norm": 9.0}}}, {"jumps": {1: {"gradient_norm": 9.0}}}, ("learning_rate", 0.006, 0.003)),
    ("instability", "losses that spike",
     {"jumps": {60: {"total": 4.0}}}, {"jumps": {60: {"total": 2.5}}}, ("learning_rate", 0.006, 0.003)),
    ("instability", "validation that rises after its best",
     {"emotion_nll": (3.6, 3.4, 3.45, 3.5, 3.6)}, {"emotion_nll": (3.6, 3.4, 3.401, 3.402, 3.41)},
     ("num_epochs", 5, 2)),
    ("data trouble", "few emotional clips",
     {"data": {"emotional_clips": 99}}, {"data": {"emotional_clips": 100}}, (None, None, None)),
    ("data trouble", "few emotional clips to validate on",
     {"data": {"validation_clips": 19}}, {"data": {"validation_clips": 20}}, (None, None, None)),
    ("data trouble", "few emotional clips to validate on",
     {"data": {"validation_clips": 8}, "configuration": {"validation_clips": 8}}, {}, ("validation_clips", 8, 20)),
    ("data trouble", "one voice acts the emotion", {"speakers": ("ann",)}, {}, (None, None, None)),
    ("data trouble", "clips that had to be left out",
     {"data": {"bad_clips": 100}}, {"data": {"bad_clips": 40}}, (None, None, None)),
    ("data trouble", "the judge doesn't hear the emotion on real recordings",
     {"real": Spoken(recall=0.3)}, {"real": Spoken(recall=0.5)}, ("judges", "ear", None)),
    ("data trouble", "files that couldn't be judged",
     {"plain": Spoken(recall=0.0, failed=0.5)}, {"plain": Spoken(recall=0.0, failed=0.1)}, (None, None, None)),
    ("data trouble", "validation clips unlike the training clips",
     {"losses": (5.0, 2.7)}, {"losses": (5.0, 3.2)}, (None, None, None)),
]  # fmt: skip


def diagnose(folder: Path, **changes: Any) -> Diagnosis:
    write_run(folder, Made(**changes))
    [diagnosis] = examine(folder)
    return diagnosis


def symptom(diagnosis: Diagnosis, name: str) -> Symptom:
    [found] = [item for item in diagnosis.symptoms if item.name == name]
    return found


def check(diagnosis: Diagnosis, name: str) -> Check:
    [found] = [check for item in diagnosis.symptoms for check in item.checks if check.name == name]
    return found


def test_a_healthy_run_is_healthy(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path)
    assert {item.name: item.answer for item in diagnosis.symptoms} == dict.fromkeys(
        ("weak expression", "lost capabilities", "instability", "data trouble"), "absent"
    )
    assert diagnosis.is_healthy is True
    assert diagnosis.missing == ()
    assert [item.first_change for item in diagnosis.symptoms] == [None] * 4


@pytest.mark.parametrize(
    ("of", "name", "ill", "well", "change"), CASES, ids=[f"{index}-{case[1]}" for index, case in enumerate(CASES)]
)
def test_a_symptom_is_seen_where_it_is_and_only_there(
    tmp_path: Path, of: str, name: str, ill: dict[str, Any], well: dict[str, Any], change: tuple[str | None, Any, Any]
) -> None:
    sick, twin = diagnose(tmp_path / "ill", **ill), diagnose(tmp_path / "well", **well)
    assert check(sick, name).answer == "shown"
    assert check(twin, name).answer == "absent"
    assert symptom(sick, of).answer == "shown"
    assert sick.is_healthy is False
    assert check(sick, name).numbers, "no number says so"
    told = check(sick, name).change
    assert told is not None
    assert (told.key, told.old, told.new) == change
    assert check(twin, name).change is None


def test_every_check_has_a_case(tmp_path: Path) -> None:
    runs = [diagnose(tmp_path / "plain"), diagnose(tmp_path / "budget", configuration={"forgetting_budget": 0.005})]
    names = {check.name for run in runs for item in run.symptoms for check in item.checks}
    assert {case[1] for case in CASES} == names


def test_numbers_carry_their_intervals(tmp_path: Path) -> None:
    found = {
        number.name: number for number in check(diagnose(tmp_path), "heard less often than real recordings").numbers
    }
    ours = found["recall"]
    assert (ours.value, ours.n) == (0.7, 40)
    theirs = stats.binomtest(28, 40).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert found["recall on the base"].value == 0.0


def test_a_cause_comes_before_the_sign_it_explains(tmp_path: Path) -> None:
    """Recall is low while the validation still fell: more epochs, not more rank."""
    changes = LESS_HEARD | {"emotion_nll": (3.9, 3.8, 3.6, 3.5, 3.43)}
    first = symptom(diagnose(tmp_path, **changes), "weak expression").first_change
    assert first is not None
    assert (first.key, first.new) == ("num_epochs", 8)
    assert "2.0%" in first.why


def test_whole_numbers_are_rounded_away_from_the_old_one(tmp_path: Path) -> None:
    changes = {"configuration": {"num_epochs": 3}, "emotion_nll": (3.9, 3.7, 3.5), "general_kl": (0.005,) * 3}
    change = check(diagnose(tmp_path, **changes), "still learning when it ended").change
    assert change is not None
    assert (change.old, change.new) == (3, 5), "3 epochs times 1.6 are 4.8"


def test_weak_and_forgetting_is_not_told_to_pull_both_ways(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, **LESS_HEARD, **FORGETS, configuration={"distillation_alpha": 0.5})
    weak, lost = (symptom(diagnosis, name).first_change for name in ("weak expression", "lost capabilities"))
    assert weak is not None
    assert lost is not None
    assert weak.key == "adapter_r"
    assert (lost.key, lost.old, lost.new) == ("distillation_alpha", 0.5, 1.0)
    other = diagnose(tmp_path / "full", **LESS_HEARD, **FORGETS, data={"rehearsed_clips": 50})
    change = symptom(other, "lost capabilities").first_change
    assert change is not None
    assert change.key is None
    assert "only 50 general clips" in change.why


def test_a_cause_without_its_symptom_makes_nobody_ill(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, recommended=1.5)
    assert check(diagnosis, "best at the highest intensity measured").answer == "shown"
    assert symptom(diagnosis, "weak expression").answer == "absent"
    assert symptom(diagnosis, "weak expression").first_change is None
    assert diagnosis.is_healthy is True


def test_what_is_heard_outranks_what_was_learned(tmp_path: Path) -> None:
    changes = {"losses": (5.0, 4.7), "emotion_nll": (4.8, 4.75, 4.72, 4.71, 4.71)}
    heard = diagnose(tmp_path / "heard", **changes)
    assert symptom(heard, "weak expression").answer == "absent"
    unheard = diagnose(tmp_path / "unheard", **changes, is_evaluated=False)
    assert symptom(unheard, "weak expression").answer == "shown"


def test_worse_than_the_base_but_as_real_recordings_is_no_loss(tmp_path: Path) -> None:
    """Acted speech is harder to write down than plain speech, whoever says it."""
    name = "words lost when asked for the emotion"
    changes = {"adapter": Spoken(wer=0.4)}
    found = check(diagnose(tmp_path / "acted", **changes, real=Spoken(wer=0.4)), name)
    assert found.answer == "absent"
    assert found.reason == "worse than the base, but no worse than real recordings"
    assert check(diagnose(tmp_path / "lost", **changes, real=Spoken(wer=0.2)), name).answer == "shown"


def test_an_adapter_that_is_always_emotional_is_not_blamed_for_it(tmp_path: Path) -> None:
    leaks = FORGETS | {"plain": Spoken(recall=0.0, posterior=0.5)}
    always = diagnose(tmp_path / "always", **leaks, configuration={"prompt_template": "{text}"})
    assert symptom(always, "lost capabilities").answer == "absent"
    assert symptom(diagnose(tmp_path / "asked", **leaks), "lost capabilities").answer == "shown"


def test_few_files_give_no_verdict(tmp_path: Path) -> None:
    few = {"adapter": Spoken(recall=0.0, n=19), "base": Spoken(recall=0.0, n=19), "plain": Spoken(recall=0.0, n=19)}
    found = check(diagnose(tmp_path / "few", **few), "heard less often than real recordings")
    assert found.answer == "unknown"
    assert found.reason == "19 files are too few for a verdict (at least 20)"
    assert check(diagnose(tmp_path / "few", **few), "speech that doesn't stop").answer == "unknown"
    enough = {name: replace(spoken, n=20) for name, spoken in few.items()}
    found = check(diagnose(tmp_path / "enough", **enough), "heard less often than real recordings")
    assert found.answer == "shown"


def test_a_deaf_judge_says_nothing_about_the_adapter(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, adapter=Spoken(recall=0.0), real=Spoken(recall=0.3))
    assert check(diagnosis, "heard less often than real recordings").answer == "unknown"
    change = symptom(diagnosis, "data trouble").first_change
    assert change is not None
    assert "ear hears happy in 30% of real recordings (mostly sad)" in change.why


def test_an_interval_across_the_margin_is_not_known(tmp_path: Path) -> None:
    found = check(diagnose(tmp_path, delta_nll=(0.01, 0.005, 0.015)), "general speech forgotten")
    assert found.answer == "unknown"
    assert found.reason is not None
    assert "spans the margin of 0.01" in found.reason
