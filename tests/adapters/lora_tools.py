"""Adapters with something in them, and the dense change of the weights that they stand for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from affetto.adapters.bank import AdapterBank
from affetto.model.base import Base
from affetto.model.batch import Logits


def random_adapter(bank: AdapterBank, name: str, *, rank: int = 3, alpha: float = 6.0, seed: int = 0) -> None:
    """A fresh adapter whose B is drawn too, large enough to change the logits visibly."""
    bank.add(name, rank, alpha, seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        for _, _, b_OR, _ in bank.factors(name):
            b_OR.copy_(0.1 * torch.randn(b_OR.shape, generator=generator))


def dense_deltas(bank: AdapterBank, gate: Mapping[str, float]) -> dict[str, Tensor]:
    """Sum of gate · scale · B A by layer."""
    deltas: dict[str, Tensor] = {}
    for name, strength in gate.items():
        for site, a_RI, b_OR, scale in bank.factors(name):
            delta = strength * scale * (b_OR @ a_RI).detach()
            deltas[site] = deltas[site] + delta if site in deltas else delta
    return deltas


def add_dense(base: Base, deltas: Mapping[str, Tensor]) -> None:
    """Put the change into the weights of a base without a bank."""
    with torch.no_grad():
        for site, delta in deltas.items():
            base.model.get_submodule(site).weight.add_(delta)


def assert_same(first: Logits, second: Logits, *, atol: float = 5e-5) -> None:
    torch.testing.assert_close(first.c0_NV, second.c0_NV, rtol=0, atol=atol)
    torch.testing.assert_close(first.depth_MJV, second.depth_MJV, rtol=0, atol=atol)


def assert_differ(first: Logits, second: Logits) -> None:
    assert (first.c0_NV - second.c0_NV).abs().max() > 1e-2
    assert (first.depth_MJV - second.depth_MJV).abs().max() > 1e-2
