"""Adapters that change something, for tests of what a changed base does."""

from __future__ import annotations

import torch

from affetto.adapters.bank import AdapterBank
from affetto.model.base import Base


def trained_bank(base: Base, *, part: str = "both", targets: tuple[str, ...] = ("both",), seed: int = 0) -> AdapterBank:
    """A bank with one adapter that changes something everywhere."""
    bank = AdapterBank(base.model, base.network.gates, targets, part)  # type: ignore[arg-type]
    bank.add("happy", rank=3, alpha=6.0, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, _, b_OR, _ in bank.factors("happy"):
            assert b_OR is not None
            b_OR.normal_(std=0.05)
    return bank
