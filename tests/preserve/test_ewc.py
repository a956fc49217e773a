"""The guide's lambda and ours: the same penalty, proven with the guide's own Fisher."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from affetto.adapters.bank import AdapterBank
from affetto.model.base import Base
from affetto.model.batch import Row, collate
from affetto.model.losses import code_losses
from affetto.preserve.curvature import Diagonal
from affetto.preserve.ewc import ewc_penalty, mean_codes, natural_weight
from affetto.preserve.fisher import estimate_fisher


def test_lambda_keeps_the_guides_meaning(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    """lambda / 2 · sum F dW² with F the mean over clips of the squared gradient of a clip's *mean* loss."""
    rows = [make_row(seed, frames=(5,)) for seed in range(4)]
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    fisher = estimate_fisher(tiny_base.network, bank.sites, rows, Diagonal(), kind="empirical")
    bank.add("happy", rank=2, alpha=4.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    for site in bank.sites.values():
        site.B["happy"].data.normal_(generator=generator)
    weights = {path: site.layer.weight.requires_grad_() for path, site in bank.sites.items()}
    guide = 0.0
    for row in rows:
        batch = collate([row], tiny_base.num_codebooks)
        c0, depth = code_losses(tiny_base.network(batch), batch)
        mean_loss = (c0 + depth).mean
        gradients = torch.autograd.grad(mean_loss, list(weights.values()))
        for gradient, (_, a_RI, b_OR, scale) in zip(gradients, bank.factors("happy"), strict=True):
            guide += 0.5 * 5000 * (gradient**2 * (scale * b_OR @ a_RI) ** 2).sum().item() / len(rows)
    natural = natural_weight(5000, mean_codes(rows, tiny_base.num_codebooks))
    ours = natural * ewc_penalty(fisher, bank.factors("happy")).item()
    assert guide > 0
    assert ours == pytest.approx(guide, rel=1e-4)


def test_5000_is_1_25_for_ten_seconds_of_csm_1b(make_row: Callable[..., Row]) -> None:
    assert natural_weight(5000, 125 * 32) == 1.25
    # Every codebook of every predicted frame, the end-of-audio frame included.
    rows = [make_row(0, frames=(3,)), make_row(1, frames=(6,)), make_row(2, frames=(9, 6))]
    assert mean_codes(rows, 32) == (4 + 7 + 7) * 32 / 3
