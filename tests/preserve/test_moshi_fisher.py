"""The Fisher of Moshi: every matrix of a stack, every step, and the text beside the codes; against an explicit loop."""

from __future__ import annotations

import torch

from affetto.adapters.bank import AdapterBank
from affetto.model.base import Base
from affetto.model.batch import collate
from affetto.model.losses import cross_entropy, text_loss
from affetto.preserve.curvature import CURVATURES
from affetto.preserve.fisher import estimate_fisher
from moshi_checkpoint import moshi_row

SITES = (
    "decoder.model.layers.0.self_attn.q_proj.linear", "decoder.model.layers.1.mlp.fc2",
    "depth_decoder.layers.0.self_attn.v_proj.linear.0", "depth_decoder.layers.1.mlp.fc1.3",
)  # fmt: skip


def test_pitfall_17_the_fisher_is_that_of_an_explicit_loop_whatever_the_batches(tiny_moshi: Base) -> None:
    """With the data's labels: per clip the gradient of all its codes and its text, squared; from autograd's own."""
    bank = AdapterBank(tiny_moshi.model, tiny_moshi.network.gates)
    rows = [moshi_row(n, frames=4 + n) for n in range(3)]
    diagonal = CURVATURES["diagonal"]
    found = [
        estimate_fisher(
            tiny_moshi.network, bank.sites, rows, diagonal(), kind="empirical", rows_per_batch=size
        ).tensors["sums"]
        for size in (1, 3)
    ]  # fmt: skip
    weights = {site: bank.sites[site].layer.weight.requires_grad_(True) for site in SITES}
    expected = {site: torch.zeros_like(weight) for site, weight in weights.items()}
    for row in rows:
        batch = collate([row], 4)
        said = tiny_moshi.network(batch)
        assert said.text_NW is not None
        loss = cross_entropy(said.text_NW, batch.text_targets_N).total
        loss = loss + cross_entropy(said.c0_NV, batch.c0_targets_N).total
        loss = loss + cross_entropy(said.depth_MJV, batch.depth_targets_MJ).total
        for site, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            expected[site] += gradient.square()
    for sums in found:
        for site in SITES:
            assert expected[site].max() > 0
            torch.testing.assert_close(sums[site], expected[site], rtol=1e-3, atol=1e-5)


def test_the_true_fisher_samples_the_text_too(tiny_moshi: Base) -> None:
    bank = AdapterBank(tiny_moshi.model, tiny_moshi.network.gates, ("q_proj",))
    rows = [moshi_row(n, frames=5) for n in range(2)]
    once, again, other = (
        estimate_fisher(tiny_moshi.network, bank.sites, rows, CURVATURES["kfac"](), seed=seed, rows_per_batch=size)
        for seed, size in ((0, 1), (0, 2), (1, 2))
    )
    assert once.num_codes == again.num_codes == 2 * 4 * 4
    for kind, by_site in once.tensors.items():
        for site, value in by_site.items():
            torch.testing.assert_close(value, again.tensors[kind][site], rtol=1e-3, atol=1e-4)
    assert any(
        not torch.allclose(value, other.tensors[kind][site], rtol=1e-2)
        for kind, by_site in once.tensors.items() for site, value in by_site.items()
    )  # fmt: skip


@torch.no_grad()
def test_the_texts_loss_weighs_each_token(tiny_moshi: Base) -> None:
    """By hand: padding counts half; a term's mean is over the weights, as in moshi-finetune's loss."""
    batch = collate([moshi_row(0, frames=9), moshi_row(1, frames=5)], 4)
    said = tiny_moshi.network(batch)
    assert said.text_NW is not None
    total = weight = 0.0
    for n, (row, place) in enumerate(batch.frames_N2.tolist()):
        token = int(batch.text_BS[row, place])
        share = 0.5 if token == 3 else 1.0
        total -= share * float(said.text_NW[n].double().log_softmax(dim=-1)[token])
        weight += share
    term = text_loss(said, batch)
    assert abs(term.total.item() - total) < 1e-3
    assert term.count == weight
    assert 0 < weight < 12
    is_first_N = batch.frames_N2[:, 0] == 0
    first, second = (text_loss(said, batch, mine_N.nonzero().squeeze(1)) for mine_N in (is_first_N, ~is_first_N))
    parts = first + second
    assert abs(parts.total.item() - total) < 1e-3
    assert parts.count == weight
