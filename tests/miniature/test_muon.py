"""Muon against the singular value decomposition."""

from __future__ import annotations

import math

import pytest
import torch

from affetto.miniature import muon
from affetto.miniature.muon import Muon, orthogonalise

BAND = (0.65, 1.25)
"""Where five quintic steps with these coefficients leave singular values (Jordan et al. 2024)."""


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 24, 24), (1, 16, 64), (1, 64, 16), (5, 20, 48), (3, 48, 20), (40, 12)])
def test_singular_values_are_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalise(gaussian(*shape)))
    # The smallest singular values of a square Gaussian matrix are too small for five steps.
    values = values[..., : max(1, int(0.8 * values.shape[-1]))]
    assert values.min() > BAND[0]
    assert values.max() < BAND[1]


def test_singular_values_are_near_one_in_bfloat16() -> None:
    values = torch.linalg.svdvals(orthogonalise(gaussian(3, 48, 20).bfloat16()).float())
    assert values.min() > BAND[0] - 0.03
    assert values.max() < BAND[1] + 0.03


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_singular_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape).double()
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalise(matrix) @ vt.T
    off = inner - torch.diag(inner.diagonal())
    assert off.abs().max() < 1e-5
    assert inner.diagonal().min() > 0.5


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_scale_does_not_matter(scale: float) -> None:
    matrix = gaussian(12, 30)
    torch.testing.assert_close(orthogonalise(scale * matrix), orthogonalise(matrix), rtol=1e-3, atol=1e-3)


def test_a_stack_equals_its_matrices() -> None:
    stack = gaussian(4, 10, 25)
    torch.testing.assert_close(orthogonalise(stack), torch.stack([orthogonalise(item) for item in stack]))


def test_zero_stays_zero() -> None:
    assert orthogonalise(torch.zeros(3, 5)).abs().max() == 0


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_steps_equal_the_recipe_by_hand(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "product_dtype", lambda: torch.float32)
    weight = torch.nn.Parameter(gaussian(*shape))
    neighbour = torch.nn.Parameter(gaussian(*shape, seed=9))
    optimizer = Muon([weight, neighbour], lr=0.1, momentum=0.9, weight_decay=0.05)
    wanted, velocity = weight.detach().clone(), torch.zeros(shape)
    for step in range(3):
        gradient = gaussian(*shape, seed=step + 1)
        weight.grad, neighbour.grad = gradient.clone(), gaussian(*shape, seed=20 + step)
        optimizer.step()
        velocity = 0.9 * velocity + 0.1 * gradient
        direction = 0.1 * gradient + 0.9 * velocity
        wanted = wanted * (1 - 0.1 * 0.05) - 0.1 * math.sqrt(max(1, shape[0] / shape[1])) * orthogonalise(direction)
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-4, atol=1e-5)


def test_saved_state_continues_the_same_way() -> None:
    runs = []
    for is_resumed in (False, True):
        weight = torch.nn.Parameter(gaussian(6, 10))
        optimizer = Muon([weight], lr=0.1)
        for step in range(4):
            if is_resumed and step == 2:
                state = optimizer.state_dict()
                optimizer = Muon([weight], lr=0.1)
                optimizer.load_state_dict(state)
            weight.grad = gaussian(6, 10, seed=step)
            optimizer.step()
        runs.append(weight.detach().clone())
    assert torch.equal(*runs)


def test_it_descends() -> None:
    target = gaussian(10, 6, seed=3)
    weight = torch.nn.Parameter(torch.zeros(10, 6))
    optimizer = Muon([weight], lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = ((weight - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
