"""EWC on A and B, the negative control: what it computes, and why it protects nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from affetto.preserve.curvature import CONTROLS, CURVATURES, Diagonal
from affetto.preserve.ewc import ewc_penalty

OUT, IN, RANK, SCALE = 5, 4, 2, 1.5
POSITIONS = {"a": 2, "b": 3, "c": 4}
NUM_CODES = 18


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLIPS = {
    name: (draw(count, IN, seed=number), draw(count, OUT, seed=10 + number))
    for number, (name, count) in enumerate(POSITIONS.items())
}
A0 = draw(RANK, IN, seed=20)


def fed(name: str) -> Diagonal:
    curvature = CONTROLS[name]({"one": (A0, SCALE)}) if name in CONTROLS else CURVATURES[name]()
    curvature.update("one", list(CLIPS), [a for a, _ in CLIPS.values()], [g for _, g in CLIPS.values()])
    curvature.num_codes, curvature.num_clips = NUM_CODES, len(CLIPS)
    return curvature


def gradients_of_b() -> list[Tensor]:
    """By autograd: each clip's loss is linear in the layer's output, with the recorded gradients as its slope."""
    found = []
    for inputs_PI, gradients_PO in CLIPS.values():
        b_OR = torch.zeros(OUT, RANK, dtype=torch.float64, requires_grad=True)
        loss = (SCALE * (inputs_PI @ A0.T) @ b_OR.T * gradients_PO).sum()
        found.append(torch.autograd.grad(loss, b_OR)[0])
    return found


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_importance_of_b_is_its_squared_gradient_at_the_fresh_adapter(name: str) -> None:
    by_clip = gradients_of_b()
    expected = sum(gradient.square() for gradient in by_clip)
    if name == "factors_batch":
        expected = sum(by_clip).square() / len(by_clip)
    torch.testing.assert_close(fed(name).tensors["sums"]["one"].double(), expected, rtol=1e-5, atol=1e-6)
    b_OR = draw(OUT, RANK, seed=30)
    penalty = ewc_penalty(fed(name), [("one", A0, b_OR, SCALE)])
    assert penalty.item() == pytest.approx(0.5 * (expected * b_OR.square()).sum().item() / NUM_CODES, rel=1e-5)


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_pitfall_16_turning_a_away_is_free_on_the_factors_and_not_on_their_product(name: str) -> None:
    b_OR, turned = draw(OUT, RANK, seed=31), 10 * draw(RANK, IN, seed=32)
    before, after = (ewc_penalty(fed(name), [("one", a_RI, b_OR, SCALE)]) for a_RI in (A0, turned))
    assert after == before, "A's Fisher at B = 0 is zero, so this EWC never sees A"
    before, after = (ewc_penalty(fed("diagonal"), [("one", a_RI, b_OR, SCALE)]) for a_RI in (A0, turned))
    assert after > 5 * before


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_saved_controls_are_used_without_their_anchors(name: str, tmp_path: Path) -> None:
    curvature, factor = fed(name), ("one", A0, draw(OUT, RANK, seed=33), SCALE)
    curvature.save(tmp_path / "control.safetensors", "key")
    loaded = CONTROLS[name].load(tmp_path / "control.safetensors", "key")
    assert ewc_penalty(loaded, [factor]) == ewc_penalty(curvature, [factor])
