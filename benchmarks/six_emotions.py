"""Six adapters of random weights, for benchmarks of speaking."""

from __future__ import annotations

import torch

from affetto.adapters.bank import AdapterBank
from affetto.model.base import Base
from affetto.types import EMOTIONS

RANK = 16


def six_gates(base: Base) -> list[tuple[float, ...]]:
    """Each emotion's gate, after adapters on every layer that training would adapt; small, so that speech goes on."""
    bank = AdapterBank(base.model, base.network.gates)
    for seed, name in enumerate(EMOTIONS):
        bank.add(name, RANK, 2.0 * RANK, seed)
        for _, _, b_OR, _ in bank.factors(name):
            assert b_OR is not None
            with torch.no_grad():
                drawn = torch.randn(b_OR.shape, generator=torch.Generator().manual_seed(seed))
                b_OR.copy_(1e-3 * drawn)
    return [tuple(bank.gate({name: 1.0}).tolist()) for name in EMOTIONS]
