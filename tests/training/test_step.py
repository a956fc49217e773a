"""One optimizer step against loops, splits of the same rows, and formulas written out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_helpers import Alone, Group, InBfloat16, Member

from affetto.adapters.bank import AdapterBank
from affetto.errors import NonFiniteLossError
from affetto.model.base import Base, load_base
from affetto.model.batch import Row, collate
from affetto.preserve.curvature import Diagonal
from affetto.preserve.ewc import ewc_penalty
from affetto.preserve.teacher import TeacherCache, teacher_cache
from affetto.training.batches import TrainBatch, assemble
from affetto.training.step import (
    STREAMS,
    TERMS,
    LossWeights,
    accumulate_gradients,
    agreed,
    finish_gradients,
    rehearsal_kl,
    term_counts,
)
from batch_masks import masks

WEIGHTS = LossWeights(replay=0.4, alpha=0.3, temperature=2.0, first_codebook=0.6, ewc=1.5, distill_on="both")


@pytest.fixture
def bank(tiny_base: Base) -> AdapterBank:
    return adapted(tiny_base)


def adapted(base: Base) -> AdapterBank:
    """An adapter that has learned something, so that KL and EWC are not zero."""
    bank = AdapterBank(base.model, base.network.gates)
    bank.add("happy", 4, 8.0, 0)
    generator = torch.Generator().manual_seed(0)
    for _, _, b_OR, _ in bank.factors("happy"):
        b_OR.data.normal_(std=0.02, generator=generator)
    return bank


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> tuple[list[Row], list[Row]]:
    """Four emotional and four general clips of unequal lengths."""
    lengths = (5, 9, 3, 6, 4, 8, 2, 5)
    made = [make_row(seed, frames=(frames,), gate=(1.0,)) for seed, frames in enumerate(lengths)]
    return made[:4], made[4:]


@pytest.fixture
def teacher(tiny_base: Base, rows: tuple[list[Row], list[Row]], tmp_path: Path) -> TeacherCache:
    return teacher_cache(tmp_path, tiny_base.network, tiny_base.hash, [*rows[0], *rows[1]], depth_share=0.5)


def batch_of(emotional: Sequence[Row], general: Sequence[Row], teacher: TeacherCache | None) -> TrainBatch:
    """All depth frames, so that the same rows make the same loss however they are split."""
    taught = {"emotion": teacher is not None, "rehearsal": teacher is not None}
    return assemble(emotional, general, teacher, taught, 8, 1.0, np.random.default_rng(0))


def splits(rows: tuple[list[Row], list[Row]], teacher: TeacherCache, num: int) -> list[TrainBatch]:
    """The eight rows in `num` micro-batches: 1 x 8, 2 x 4 or 8 x 1."""
    emotional, general = rows
    if num == 8:
        return [batch_of([row], [], teacher) for row in emotional] + [batch_of([], [row], teacher) for row in general]
    size = 4 // num
    return [
        batch_of(emotional[start : start + size], general[start : start + size], teacher) for start in range(0, 4, size)
    ]


def gradients(bank: AdapterBank) -> dict[str, Tensor]:
    found = {}
    for name, parameter in bank.parameters("happy").items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
        parameter.grad = None
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        worst = (found[name] - gradient).abs().max() / gradient.abs().max()
        assert worst < tolerance, f"{name} is off by {worst:.1e}"


def a_diagonal(bank: AdapterBank) -> Diagonal:
    curvature = Diagonal()
    for number, (site, a_RI, b_OR, _) in enumerate(bank.factors("happy")):
        generator = torch.Generator().manual_seed(number)
        curvature.tensors.setdefault("sums", {})[site] = torch.rand(b_OR.shape[0], a_RI.shape[1], generator=generator)
    curvature.num_codes = 10
    return curvature


def test_pitfall_21_two_by_four_is_eight_by_one_is_one_by_eight(
    tiny_base: Base, bank: AdapterBank, rows: tuple[list[Row], list[Row]], teacher: TeacherCache
) -> None:
    curvature = a_diagonal(bank)

    def step(num: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        micro = splits(rows, teacher, num)
        values = accumulate_gradients(
            tiny_base.network, micro, WEIGHTS, lambda: ewc_penalty(curvature, bank.factors("happy")), Alone()
        )
        return values, gradients(bank)

    values, expected = step(1)
    assert set(values) == {*TERMS, "ewc", "total"}
    assert all(value > 0 for value in values.values())
    for num in (2, 8):
        others, found = step(num)
        assert others == pytest.approx(values, rel=1e-4)
        assert_same(found, expected)


@pytest.mark.usefixtures("bank")
def test_terms_equal_a_loop_over_codes(
    tiny_base: Base, rows: tuple[list[Row], list[Row]], teacher: TeacherCache
) -> None:
    """Cross-entropy of drawn depth frames only, KL of the teacher's frames only, each stream by itself."""
    taught = {"emotion": True, "rehearsal": True}
    made = assemble(*rows, teacher, taught, 8, 0.4, np.random.default_rng(1))
    values = accumulate_gradients(tiny_base.network, [made], WEIGHTS, None, Alone())
    with torch.no_grad():
        logits = tiny_base.network(made.batch)
    sums: dict[str, list[float]] = {name: [] for name in TERMS}

    def kl(answer: Tensor, logits_V: Tensor) -> float:
        p, q = (answer.double() / 2.0).softmax(-1), (logits_V.double() / 2.0).softmax(-1)
        return float((p * (p / q).log()).sum())

    places = [tuple(place) for place in made.batch.frames_N2.tolist()]
    all_rows = [*rows[0], *rows[1]]
    for n, (r, p) in enumerate(places):
        stream = "emotion" if r < 4 else "rehearsal"
        frame = p - len(all_rows[r].turns[-1].text_ids)
        target = int(made.batch.codes_BSK[r, p, 0])
        sums[f"{stream}_ce_c0"].append(-logits.c0_NV[n].double().log_softmax(-1)[target].item())
        sums[f"{stream}_kl_c0"].append(kl(teacher[all_rows[r].clip_id].c0_TV[frame], logits.c0_NV[n]))
    for m, n in enumerate(made.batch.depth_M.tolist()):
        r, p = places[n]
        stream = "emotion" if r < 4 else "rehearsal"
        frame, answer = p - len(all_rows[r].turns[-1].text_ids), teacher[all_rows[r].clip_id]
        for j in range(7):
            if masks(made).ce_M[m]:
                target = int(made.batch.codes_BSK[r, p, j + 1])
                nll = -logits.depth_MJV[m, j].double().log_softmax(-1)[target].item()
                sums[f"{stream}_ce_depth"].append(nll)
            if frame in answer.depth_frames:
                place = answer.depth_frames.tolist().index(frame)
                sums[f"{stream}_kl_depth"].append(kl(answer.depth_FJV[place, j], logits.depth_MJV[m, j]))
    for name, each in sums.items():
        assert values[name] == pytest.approx(np.mean(each), rel=1e-4), name
    assert term_counts(made, 8) == {name: len(each) for name, each in sums.items()}


@pytest.mark.parametrize("distill_on", ["rehearsal", "both"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_on_the_bases_own_samples_the_loss_is_the_kl_alone(distill_on: Any, alpha: float) -> None:
    weights = LossWeights(0.25, alpha, 2.0, 0.6, 1.5, distill_on, is_self_speech=True)
    assert weights.taught == {"emotion": alpha > 0 and distill_on == "both", "rehearsal": True}
    assert (weights.of("rehearsal_ce_c0"), weights.of("rehearsal_ce_depth")) == (0, 0)
    assert weights.of("rehearsal_kl_c0") == pytest.approx(0.25 * 0.6 * 2.0**2)
    assert weights.of("rehearsal_kl_depth") == pytest.approx(0.25 * 0.4 * 2.0**2)
    usual = LossWeights(0.25, alpha, 2.0, 0.6, 1.5, distill_on)
    for name in TERMS:
        if name.startswith("emotion"):
            assert weights.of(name) == usual.of(name), name
    assert not LossWeights(0.0, 1.0, 1.0, 0.6, 1.5, distill_on, is_self_speech=True).taught["rehearsal"]


@pytest.mark.parametrize("distill_on", ["rehearsal", "emotion", "both"])
@pytest.mark.parametrize(("replay", "alpha"), [(0.3, 0.5), (0.0, 0.5), (0.3, 0.0), (0.3, 1.0)])
def test_weights_equal_the_written_formula(distill_on: Any, replay: float, alpha: float) -> None:
    weights = LossWeights(replay, alpha, 2.0, 0.6, 1.5, distill_on)
    term = {name: float(number + 1) for number, name in enumerate(TERMS)}

    def mixed(name: str) -> float:
        return 0.6 * term[f"{name}_c0"] + 0.4 * term[f"{name}_depth"]

    def stream(name: str, is_taught: bool) -> float:
        if not is_taught:
            return mixed(f"{name}_ce")
        return (1 - alpha) * mixed(f"{name}_ce") + alpha * 2.0**2 * mixed(f"{name}_kl")

    on_emotion = distill_on in ("emotion", "both") and alpha > 0
    on_rehearsal = distill_on in ("rehearsal", "both") and alpha > 0 and replay > 0
    expected = (1 - replay) * stream("emotion", on_emotion) + replay * stream("rehearsal", on_rehearsal)
    assert sum(weights.of(name) * value for name, value in term.items()) == pytest.approx(expected)
    assert weights.taught == {"emotion": on_emotion, "rehearsal": on_rehearsal}


@pytest.mark.parametrize("multiplier", [0.0, 0.5, 1.0, 40.0])
def test_a_multiplier_weighs_all_that_preserves_and_one_is_the_recipe(multiplier: float) -> None:
    recipe = LossWeights(0.25, 0.7, 1.0, 0.6, 1.5, "rehearsal")
    weights = replace(recipe, multiplier=multiplier)
    scale = 2 / (1 + multiplier)
    for name in TERMS:
        kept = multiplier if "_kl_" in name else 1.0
        assert weights.of(name) == pytest.approx(scale * kept * recipe.of(name)), name
    assert weights.ewc_weight == pytest.approx(scale * multiplier * 1.5)
    assert weights.taught == recipe.taught
    assert replace(recipe, multiplier=1.0) == recipe


def test_rehearsal_kl_is_the_mean_over_codes_of_a_step(
    tiny_base: Base, bank: AdapterBank, rows: tuple[list[Row], list[Row]], teacher: TeacherCache
) -> None:
    """Against the live base, all codebooks of the frames that the teacher answered; split as you like."""
    weights, live = LossWeights(0.4, 1.0, 1.0, 0.6, 0.0, "rehearsal", multiplier=2.0), []
    for row in rows[1]:
        batch = collate([row], 8)
        with torch.no_grad():
            before, after = tiny_base.network(batch.with_gate(batch.gate_BE[:, :0])), tiny_base.network(batch)
        for n in range(row.num_frames):
            logits = [(before.c0_NV[n], after.c0_NV[n])]
            if n in teacher[row.clip_id].depth_frames:
                logits += list(zip(before.depth_MJV[n], after.depth_MJV[n], strict=True))
            kls = [float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum()) for p, q in logits]
            live.append((kls[0], kls[1:]))
    c0, depth = np.mean([first for first, _ in live]), np.mean([kl for _, others in live for kl in others])
    for num in (1, 2, 8):
        terms = accumulate_gradients(tiny_base.network, splits(rows, teacher, num), weights, None, Alone())
        gradients(bank)
        assert rehearsal_kl(terms, 8) == pytest.approx((c0 + 7 * depth) / 8, rel=1e-3)
    only_emotional = accumulate_gradients(tiny_base.network, [batch_of(rows[0], [], None)], weights, None, Alone())
    assert rehearsal_kl(only_emotional, 8) is None


def test_processes_agree_on_a_mean() -> None:
    group = Group(3)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda index: agreed(float(index), Member(group, index)), range(3)))
    assert found == [1.0, 1.0, 1.0]
    assert agreed(0.3, Alone()) == 0.3


@pytest.mark.parametrize(
    "weights",
    [
        LossWeights(0.4, 1.0, 1.5, 0.4, 0.0, "rehearsal"),
        LossWeights(0.4, 1.0, 1.0, 0.4, 0.0, "both"),
        LossWeights(0.4, 0.5, 1.0, 0.4, 0.0, "rehearsal", is_self_speech=True),
        LossWeights(0.4, 1.0, 1.0, 0.4, 0.0, "rehearsal", multiplier=3.0),
        LossWeights(0.4, 0.5, 1.0, 0.4, 0.0, "both"),
    ],
)
def test_frames_without_a_loss_are_left_out_and_change_nothing(
    tiny_base: Base, bank: AdapterBank, rows: tuple[list[Row], list[Row]], teacher: TeacherCache, weights: Any
) -> None:
    """Where the KL alone counts, frames drawn for the cross-entropy would go through the depth decoder in vain."""

    def made(learned: dict[str, bool] | None) -> TrainBatch:
        return assemble(*rows, teacher, weights.taught, 8, 0.4, np.random.default_rng(1), learned)

    full, lean = made(None), made(weights.learned)
    told, found = {}, {}
    for name, batch in (("full", full), ("lean", lean)):
        told[name] = accumulate_gradients(tiny_base.network, [batch], weights, None, Alone())
        found[name] = gradients(bank)
    assert told["lean"]["total"] == pytest.approx(told["full"]["total"], rel=1e-5)
    assert found["lean"].keys() == found["full"].keys()
    for name, value in found["full"].items():
        torch.testing.assert_close(found["lean"][name], value, rtol=1e-4, atol=1e-6 * float(value.abs().max()))
    free = [stream for stream in STREAMS if weights.taught[stream] and not weights.of(f"{stream}_ce_depth")]
    assert all(f"{stream}_ce_depth" in told["lean"] for stream in STREAMS), "the log still has its loss"
    assert (len(lean.batch.depth_M) < len(full.batch.depth_M)) == bool(free)
    for stream in STREAMS:
        in_full, in_lean = (
            masks(one).general_M if stream == "rehearsal" else ~masks(one).general_M for one in (full, lean)
        )
        if stream in free:
            assert masks(lean).kl_M[in_lean].all(), "only the teacher's frames are left"
        else:
            drawn = lean.batch.depth_frames_M2[in_lean & masks(lean).ce_M]
            assert torch.equal(full.batch.depth_frames_M2[in_full & masks(full).ce_M], drawn)


def test_total_is_the_weighted_sum_and_its_gradient_is_what_is_left(
    tiny_base: Base, bank: AdapterBank, rows: tuple[list[Row], list[Row]], teacher: TeacherCache
) -> None:
    curvature = a_diagonal(bank)

    def penalty() -> Tensor:
        return ewc_penalty(curvature, bank.factors("happy"))

    made = batch_of(*rows, teacher)
    values = accumulate_gradients(tiny_base.network, [made], WEIGHTS, penalty, Alone())
    found = gradients(bank)
    assert values["total"] == pytest.approx(
        sum(WEIGHTS.of(name) * values[name] for name in TERMS) + 1.5 * penalty().item()
    )
    # The slope of the total along a random direction, by central differences.
    generator = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(g.shape, generator=generator) * g.abs().mean() for name, g in found.items()}
    totals = []
    for sign in (1.0, -2.0):
        for name, parameter in bank.parameters("happy").items():
            parameter.data.add_(direction[name], alpha=sign * 0.02)
        totals.append(accumulate_gradients(tiny_base.network, [made], WEIGHTS, penalty, Alone())["total"])
        gradients(bank)
    slope = sum((found[name] * direction[name]).sum().item() for name in found)
    assert (totals[0] - totals[1]) / 0.04 == pytest.approx(slope, rel=0.05)


def test_ewc_is_computed_in_float32_under_bfloat16_autocast(
    tiny_base: Base, bank: AdapterBank, rows: tuple[list[Row], list[Row]]
) -> None:
    curvature, made = a_diagonal(bank), batch_of(*rows, None)
    mild = LossWeights(0.4, 0.0, 1.0, 0.6, 1.5, "rehearsal")

    def step(accelerator: Alone, do_penalise: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
        def penalty() -> Tensor:
            value = ewc_penalty(curvature, bank.factors("happy"))
            assert value.dtype == torch.float32
            return value

        values = accumulate_gradients(tiny_base.network, [made], mild, penalty if do_penalise else None, accelerator)
        return values, gradients(bank)

    exact = ewc_penalty(curvature, bank.factors("happy"))
    exact_gradients = torch.autograd.grad(1.5 * exact, list(bank.parameters("happy").values()))
    values, with_penalty = step(InBfloat16(), True)
    rough, without = step(InBfloat16(), False)
    assert values["ewc"] == exact.item()
    assert rough["emotion_ce_c0"] != step(Alone(), False)[0]["emotion_ce_c0"], "autocast did nothing"
    difference = {name: with_penalty[name] - without[name] for name in without}
    assert_same(difference, dict(zip(without, exact_gradients, strict=True)), tolerance=1e-3)


def test_processes_sum_to_what_one_process_computes(
    tiny_base: Base, tiny_base_folder: Path, bank: AdapterBank, rows: tuple[list[Row], list[Row]], teacher: TeacherCache
) -> None:
    """Two threads play two processes; a third has no batch in this step and must not be waited for in vain."""
    curvature = a_diagonal(bank)
    micro = splits(rows, teacher, 2)
    values = accumulate_gradients(
        tiny_base.network, micro, WEIGHTS, lambda: ewc_penalty(curvature, bank.factors("happy")), Alone()
    )
    norm = finish_gradients(list(bank.parameters("happy").values()), 1e-3, Alone())
    expected = gradients(bank)
    group = Group(3)
    lock = threading.Lock()

    def process(index: int) -> tuple[dict[str, float], float, dict[str, Tensor]]:
        with lock:
            base = load_base(str(tiny_base_folder))
            own = adapted(base)
        accelerator = Member(group, index)
        found = accumulate_gradients(
            base.network, micro[index : index + 1], WEIGHTS, lambda: ewc_penalty(curvature, own.factors("happy")),
            accelerator,
        )  # fmt: skip
        return found, finish_gradients(list(own.parameters("happy").values()), 1e-3, accelerator), gradients(own)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(process, range(3)))
    for others, other_norm, summed in found:
        assert others == pytest.approx(values, rel=1e-4)
        assert other_norm == pytest.approx(norm, rel=1e-4)
        assert_same(summed, expected)


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_told(bank: AdapterBank) -> None:
    parameters = list(bank.parameters("happy").values())
    for parameter in parameters[1:]:
        parameter.grad = torch.ones_like(parameter)
    size = sum(parameter.numel() for parameter in parameters[1:])
    assert finish_gradients(parameters, 0.5, Alone()) == pytest.approx(size**0.5)
    assert torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm() == pytest.approx(
        0.5, rel=1e-4
    )
    assert parameters[0].grad is not None
    assert not parameters[0].grad.any(), "a parameter without gradient has zeros"
    assert finish_gradients(parameters, 2.0, Alone()) == pytest.approx(0.5, rel=1e-4)
    assert torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm() == pytest.approx(
        0.5, rel=1e-4
    )


def test_a_loss_that_is_not_finite_names_its_clips(
    tiny_base: Base, bank: AdapterBank, rows: tuple[list[Row], list[Row]], teacher: TeacherCache
) -> None:
    class Broken(torch.nn.Module):
        num_codebooks, gates = 8, tiny_base.network.gates

        def forward(self, batch: Any) -> Any:
            logits = tiny_base.network(batch)
            if "clip-6" in batch.clip_ids:
                place = int((batch.frames_N2[:, 0] == batch.clip_ids.index("clip-6")).nonzero()[0])
                logits.c0_NV[place] = torch.nan
            return logits

    micro = [batch_of(rows[0][:2], rows[1][:2], teacher), batch_of(rows[0][2:], rows[1][2:], teacher)]
    before = {name: parameter.detach().clone() for name, parameter in bank.parameters("happy").items()}
    with pytest.raises(NonFiniteLossError, match="clip-2, clip-3, clip-6, clip-7") as caught:
        accumulate_gradients(Broken(), micro, WEIGHTS, None, Alone())
    assert "rehearsal_ce_c0, rehearsal_kl_c0" in str(caught.value)
    assert "clip-0" not in str(caught.value)
    assert all(torch.equal(before[name], p) for name, p in bank.parameters("happy").items())


def test_a_penalty_or_gradient_that_is_not_finite_is_an_error_too(
    tiny_base: Base, bank: AdapterBank, rows: tuple[list[Row], list[Row]]
) -> None:
    micro = [batch_of(*rows, None)]
    with pytest.raises(NonFiniteLossError, match="EWC penalty is inf on clips clip-0"):
        accumulate_gradients(
            tiny_base.network, micro, WEIGHTS, lambda: torch.tensor(torch.inf, requires_grad=True), Alone()
        )
    parameters = list(bank.parameters("happy").values())
    parameters[0].grad = torch.full_like(parameters[0], torch.nan)
    with pytest.raises(NonFiniteLossError, match="gradient is not finite on clips clip-0, clip-1"):
        finish_gradients(parameters, 1.0, Alone(), micro)


def test_fp16s_scaler_may_skip_a_step_that_overflows(bank: AdapterBank) -> None:
    class Scaled(Alone):
        scaler: Any = object()

    parameters = list(bank.parameters("happy").values())
    parameters[0].grad = torch.full_like(parameters[0], torch.inf)
    assert not np.isfinite(finish_gradients(parameters, 1.0, Scaled()))


def test_losses_go_through_accelerates_backward(
    tiny_base: Base, bank: AdapterBank, rows: tuple[list[Row], list[Row]]
) -> None:
    """Which scales them for fp16; the values that are told are not scaled."""

    class Scaling(Alone):
        def backward(self, loss: Tensor) -> None:
            (1024.0 * loss).backward()

    curvature, micro = a_diagonal(bank), [batch_of(*rows, None)]
    results = []
    for accelerator in (Alone(), Scaling()):
        values = accumulate_gradients(
            tiny_base.network, micro, WEIGHTS, lambda: ewc_penalty(curvature, bank.factors("happy")), accelerator
        )
        results.append((values, gradients(bank)))
    assert results[0][0] == results[1][0]
    assert_same(results[1][1], {name: 1024 * gradient for name, gradient in results[0][1].items()})
