"""The distillation KL against torch, loops and float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from affetto.preserve.distillation import distillation_kl

SHAPE = (3, 7, 11)


def draw(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def teacher() -> Tensor:
    return draw(0, *SHAPE).log_softmax(-1)


@pytest.fixture
def student() -> Tensor:
    return draw(1, *SHAPE)


def test_pitfall_19_equal_distributions_have_no_kl(teacher: Tensor) -> None:
    shifted = teacher + 5.0
    assert distillation_kl(teacher, shifted).total.item() == pytest.approx(0.0, abs=1e-5)
    # A cross-entropy would be the entropy here.
    assert -(teacher.exp() * teacher).sum() > 1


def test_pitfall_19_mean_is_per_code_as_a_loop_finds_it(teacher: Tensor, student: Tensor) -> None:
    per_code = []
    for t, s in zip(teacher.flatten(0, 1).double(), student.flatten(0, 1).double(), strict=True):
        p, q = t.exp().tolist(), s.softmax(-1).tolist()
        per_code.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    term = distillation_kl(teacher, student)
    assert term.count == len(per_code) == 21
    assert term.mean.item() == pytest.approx(sum(per_code) / 21, rel=1e-5)


def test_pitfall_19_sum_equals_torchs_and_its_batchmean_would_be_seven_times_the_mean(
    teacher: Tensor, student: Tensor
) -> None:
    log_q = student.log_softmax(-1)
    expected = functional.kl_div(log_q, teacher, reduction="sum", log_target=True)
    term = distillation_kl(teacher, student)
    assert term.total.item() == pytest.approx(expected.item(), rel=1e-5)
    batchmean = functional.kl_div(log_q, teacher, reduction="batchmean", log_target=True)
    assert batchmean.item() == pytest.approx(7 * term.mean.item(), rel=1e-5)


def test_pitfall_19_float32_is_as_good_as_float64_for_close_distributions() -> None:
    teacher = draw(0, 200, 500).log_softmax(-1)
    student = teacher + draw(1, 200, 500, scale=0.03)
    exact = (teacher.double().exp() * (teacher.double().log_softmax(-1) - student.double().log_softmax(-1))).sum()
    exact = (exact / 200).item()
    assert 1e-4 < exact < 1e-3
    assert distillation_kl(teacher, student).mean.item() == pytest.approx(exact, rel=2e-3)


def test_pitfall_19_bfloat16_inputs_are_computed_in_float32(teacher: Tensor, student: Tensor) -> None:
    rounded_teacher, rounded_student = teacher.bfloat16(), student.bfloat16()
    term = distillation_kl(rounded_teacher, rounded_student)
    assert term.total.dtype == torch.float32
    assert term.total.item() == distillation_kl(rounded_teacher.float(), rounded_student.float()).total.item()


def test_temperature_softens_both_sides(teacher: Tensor, student: Tensor) -> None:
    soft_p, log_q = (teacher / 2.5).softmax(-1), (student / 2.5).log_softmax(-1)
    expected = functional.kl_div(log_q, soft_p, reduction="sum").item()
    assert distillation_kl(teacher, student, 2.5).total.item() == pytest.approx(expected, rel=1e-5)
    assert expected < distillation_kl(teacher, student).total.item()


def test_temperature_takes_logits_and_log_probabilities_alike(student: Tensor) -> None:
    logits = draw(2, *SHAPE)
    one, other = distillation_kl(logits, student, 3.0), distillation_kl(logits.log_softmax(-1), student, 3.0)
    assert one.total.item() == pytest.approx(other.total.item(), rel=1e-5)


def test_gradient_is_the_difference_of_the_distributions(teacher: Tensor, student: Tensor) -> None:
    """d KL / d student = (q - p) / T, and T² · KL keeps its size as T grows (Hinton et al. 2015)."""
    student.requires_grad_()
    for temperature in (1.0, 4.0):
        (gradient,) = torch.autograd.grad(distillation_kl(teacher, student, temperature).total, student)
        p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
        torch.testing.assert_close(gradient, (q - p) / temperature, rtol=1e-4, atol=1e-6)
