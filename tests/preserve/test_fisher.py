"""The Fisher pass against autograd on dense weights, against measured KL, and the ways to get it wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from affetto.adapters.bank import AdapterBank
from affetto.files import hash_text
from affetto.model import rows_at_once
from affetto.model.base import Base
from affetto.model.batch import Batch, Logits, Row, collate
from affetto.model.losses import code_losses, cross_entropy
from affetto.preserve import fisher as module
from affetto.preserve.curvature import CURVATURES, Diagonal
from affetto.preserve.distillation import distillation_kl
from affetto.preserve.fisher import DrawnLabels, FisherKind, estimate_fisher, first


@pytest.fixture
def bank(tiny_base: Base) -> AdapterBank:
    return AdapterBank(tiny_base.model, tiny_base.network.gates)


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> list[Row]:
    """Seven clips of unequal length; one hears an earlier turn."""
    lengths: list[tuple[int, ...]] = [(3,), (6,), (2,), (4, 5), (1,), (8,), (4,)]
    return [make_row(seed, frames=frames) for seed, frames in enumerate(lengths)]


class Gradients:
    """A curvature that keeps every clip's whole gradient of some layers: the Fisher itself, as a list."""

    def __init__(self) -> None:
        self.gradients_OI: dict[str, list[Tensor]] = {}
        self.num_codes = 0
        self.num_clips = 0

    def update(
        self, site: str, _clip_ids: Sequence[str], inputs_CPI: Sequence[Tensor], gradients_CPO: Sequence[Tensor]
    ) -> None:
        products = [g.T @ a for a, g in zip(inputs_CPI, gradients_CPO, strict=True)]
        self.gradients_OI.setdefault(site, []).extend(products)

    def quadratic(self, site: str, change_OI: Tensor) -> float:
        """dW^T F dW, nats per code."""
        squares = [(gradient * change_OI).sum().item() ** 2 for gradient in self.gradients_OI[site]]
        return sum(squares) / self.num_codes


def drawn_labels(logits: Logits, clip_id: str, seed: int) -> tuple[Tensor, Tensor]:
    """One clip's labels by the stated convention: its own generator, codebook zero first."""
    generator = torch.Generator().manual_seed(int(hash_text(str(seed), clip_id)[:15], 16))
    c0 = [torch.multinomial(logits.c0_NV.double().softmax(-1), 1, generator=generator)[:, 0]]
    num_frames, num_rest, _ = logits.depth_MJV.shape
    flat = torch.multinomial(logits.depth_MJV.double().softmax(-1).flatten(0, 1), 1, generator=generator)
    return c0[0], flat.reshape(num_frames, num_rest)


def all_labels(logits: Logits, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    """What the pass draws, in its order."""
    labels = DrawnLabels(batch, seed)
    return labels.c0(logits.c0_NV), labels.depth(logits.depth_MJV, slice(None))


def dense_gradients(base: Base, bank: AdapterBank, row: Row, kind: FisherKind, seed: int = 0) -> dict[str, Tensor]:
    """Autograd's gradient of one clip's summed loss at every adapted weight."""
    weights = {site: module.layer.weight.requires_grad_() for site, module in bank.sites.items()}
    batch = collate([row], base.num_codebooks)
    logits = base.network(batch)
    if kind == "empirical":
        c0, depth = code_losses(logits, batch)
    else:
        c0_N, depth_MJ = drawn_labels(Logits(logits.c0_NV.detach(), logits.depth_MJV.detach()), row.clip_id, seed)
        c0, depth = cross_entropy(logits.c0_NV, c0_N), cross_entropy(logits.depth_MJV, depth_MJ)
    found = torch.autograd.grad(c0.total + depth.total, list(weights.values()))
    for weight in weights.values():
        weight.requires_grad_(False)
    return dict(zip(weights, found, strict=True))


def assert_close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-4) -> None:
    assert expected.abs().max() > 0, f"{what}: the expectation is nothing but zeros"
    worst = ((found - expected).abs().max() / expected.abs().max()).item()
    assert worst < tolerance, f"{what} is off by {worst:.1e} of its largest value"


@pytest.mark.parametrize("kind", ["true", "empirical"])
def test_diagonal_is_autograds_squared_gradient_of_every_dense_weight_clip_by_clip(
    tiny_base: Base, bank: AdapterBank, rows: list[Row], kind: FisherKind
) -> None:
    expected: dict[str, Tensor] = {}
    for row in rows:
        for site, gradient in dense_gradients(tiny_base, bank, row, kind).items():
            expected[site] = expected.get(site, torch.zeros_like(gradient)) + gradient**2
    found = estimate_fisher(tiny_base.network, bank.sites, rows, Diagonal(), kind=kind, rows_per_batch=3)
    assert found.tensors["sums"].keys() == expected.keys() == bank.sites.keys()
    assert any(site.startswith("backbone_model.") for site in expected)
    assert any(site.startswith("depth_decoder.") for site in expected)
    for site, sums in expected.items():
        assert_close(found.tensors["sums"][site], sums, site)
    assert found.num_codes == sum(row.num_frames for row in rows) * tiny_base.num_codebooks
    assert found.num_clips == len(rows)


def test_pitfall_16_a_fisher_over_the_loras_own_factors_protects_nothing_and_ours_protects_every_layer(
    tiny_base: Base, bank: AdapterBank, rows: list[Row]
) -> None:
    fisher = estimate_fisher(tiny_base.network, bank.sites, rows, Diagonal())
    bank.add("happy", rank=4, alpha=8.0, seed=0)
    batch = collate([Row(row.clip_id, row.turns, (1.0,)) for row in rows], tiny_base.num_codebooks)
    c0, depth = code_losses(tiny_base.network(batch), batch)
    (c0.total + depth.total).backward()
    for site, a_RI, b_OR, _ in bank.factors("happy"):
        assert a_RI.grad is not None, site
        assert torch.equal(a_RI.grad, torch.zeros_like(a_RI)), f"{site}: B is 0, so A has no gradient"
        assert b_OR.grad is not None, site
        assert b_OR.grad.abs().max() > 0, site
        assert fisher.tensors["sums"][site].mean() > 1e-6, f"{site} is not protected"


@pytest.mark.parametrize("rows_per_batch", [1, 3, 7])
def test_pitfall_17_importance_does_not_depend_on_the_batch_size(
    tiny_base: Base, bank: AdapterBank, rows: list[Row], rows_per_batch: int
) -> None:
    expected = estimate_fisher(tiny_base.network, bank.sites, rows, Diagonal(), rows_per_batch=2)
    found = estimate_fisher(tiny_base.network, bank.sites, rows, Diagonal(), rows_per_batch=rows_per_batch)
    for site, sums in expected.tensors["sums"].items():
        assert_close(found.tensors["sums"][site], sums, site, tolerance=1e-3)
    assert found.num_codes == expected.num_codes


def test_pitfall_18_labels_are_drawn_from_the_softmax() -> None:
    logits_V = torch.tensor([1.0, 0.0, -1.0, 2.0, -30.0])
    generator = torch.Generator().manual_seed(0)
    times = torch.empty(2000, 2, 5, dtype=torch.float64).exponential_(generator=generator)
    drawn = first(logits_V.expand(2000, 2, 5), times)
    assert drawn.shape == (2000, 2)
    counts = torch.bincount(drawn.flatten(), minlength=5).numpy()
    expected = logits_V.double().softmax(-1).numpy() * 4000
    assert counts[4] == 0
    assert stats.chisquare(counts[:4], expected[:4] * counts[:4].sum() / expected[:4].sum()).pvalue > 0.001
    assert counts[0] > 500, "the most likely label alone is no draw"


def test_pitfall_18_labels_belong_to_the_clip_and_not_to_its_place_in_the_batch(
    tiny_base: Base, rows: list[Row]
) -> None:
    def labels(order: Sequence[Row], seed: int = 0) -> dict[str, tuple[list[int], list[int]]]:
        batch = collate(order, tiny_base.num_codebooks)
        with torch.no_grad():
            c0_N, depth_MJ = all_labels(tiny_base.network(batch), batch, seed)
        owner_N = batch.frames_N2[:, 0]
        return {
            row.clip_id: (c0_N[owner_N == b].tolist(), depth_MJ[owner_N == b].flatten().tolist())
            for b, row in enumerate(order)
        }

    forwards = labels(rows)
    assert labels(rows[::-1]) == forwards
    assert labels(rows, seed=1) != forwards
    twin = Row("another-id", rows[5].turns)
    assert labels([rows[5], twin])["another-id"] != forwards[rows[5].clip_id], "equal clips must not share their draws"


def test_pitfall_18_labels_that_equal_the_predictions_have_no_gradient_and_drawn_ones_do(
    tiny_base: Base, bank: AdapterBank, rows: list[Row]
) -> None:
    batch = collate(rows, tiny_base.num_codebooks)
    for layer in bank.sites.values():
        layer.layer.weight.requires_grad_()
    logits = tiny_base.network(batch)
    weight = next(iter(bank.sites.values())).layer.weight

    def gradient(label_c0_NV: Tensor, label_depth_MJV: Tensor) -> float:
        loss = (
            -(label_c0_NV * logits.c0_NV.log_softmax(-1)).sum()
            - (label_depth_MJV * logits.depth_MJV.log_softmax(-1)).sum()
        )
        return float(torch.autograd.grad(loss, weight, retain_graph=True)[0].norm())

    predicted = gradient(logits.c0_NV.detach().softmax(-1), logits.depth_MJV.detach().softmax(-1))
    c0_N, depth_MJ = all_labels(logits, batch, seed=0)
    size = logits.c0_NV.shape[-1]
    drawn = gradient(nn.functional.one_hot(c0_N, size).float(), nn.functional.one_hot(depth_MJ, size).float())
    residual = (nn.functional.one_hot(c0_N, size) - logits.c0_NV.softmax(-1)).abs().sum(-1).mean()
    assert residual > 0.5, "the fixture is too sure of itself to tell"
    assert predicted < 1e-3 * drawn


def test_fisher_of_two_halves_adds_up(tiny_base: Base, bank: AdapterBank, rows: list[Row]) -> None:
    whole = estimate_fisher(tiny_base.network, bank.sites, rows, Diagonal())
    parts = Diagonal()
    for part in (rows[:3], rows[3:]):
        estimate_fisher(tiny_base.network, bank.sites, part, parts)
    for site, sums in whole.tensors["sums"].items():
        assert_close(parts.tensors["sums"][site], sums, site)
    assert (parts.num_codes, parts.num_clips) == (whole.num_codes, whole.num_clips)


@pytest.mark.parametrize("name", ["rank1", "kfac", "diagonal", "sketch", "full"])
def test_a_decoder_looked_at_in_parts_gives_the_same_curvature(
    tiny_base: Base, bank: AdapterBank, rows: list[Row], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = estimate_fisher(tiny_base.network, bank.sites, rows, CURVATURES[name](), rows_per_batch=3)
    calls = []
    depth_logits = tiny_base.network.depth_logits

    def counted(states_MD: Tensor, codes_MK: Tensor) -> Tensor:
        calls.append(len(states_MD))
        return depth_logits(states_MD, codes_MK)

    monkeypatch.setattr(tiny_base.network, "depth_logits", counted)
    # Five frames are less than most clips have, and no batch is a multiple of it.
    monkeypatch.setattr(rows_at_once, "MOST_PART_BYTES", 5 * tiny_base.network.frame_bytes(with_gradient=True))
    parts = estimate_fisher(tiny_base.network, bank.sites, rows, CURVATURES[name](), rows_per_batch=3)
    assert max(calls) == 5
    assert sum(calls) == sum(row.num_frames for row in rows)
    assert (parts.num_codes, parts.num_clips) == (whole.num_codes, whole.num_clips)
    if name in ("sketch", "full"):
        # Kept in float16 and up to a sign: what they say of a change is what counts.
        bank.add("happy", 4, 8.0, 0)
        factors = [(site, a_RI, torch.ones_like(b_OR), scale) for site, a_RI, b_OR, scale in bank.factors("happy")]
        assert whole.form(factors) > 0
        torch.testing.assert_close(parts.form(factors), whole.form(factors), rtol=2e-3, atol=0.0)
        return
    for kind, by_site in whole.tensors.items():
        for site, value in by_site.items():
            assert_close(parts.tensors[kind][site], value, f"{kind} of {site}", tolerance=1e-3)


@pytest.mark.parametrize("part", ["backbone", "depth"])
def test_parts_with_adapters_on_one_part_of_the_network(
    tiny_base: Base, rows: list[Row], part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, ("q_proj", "down_proj"), part)
    expected: dict[str, Tensor] = {}
    for row in rows:
        for site, gradient in dense_gradients(tiny_base, bank, row, "empirical").items():
            expected[site] = expected.get(site, torch.zeros_like(gradient)) + gradient**2
    monkeypatch.setattr(rows_at_once, "MOST_PART_BYTES", 4 * tiny_base.network.frame_bytes(with_gradient=True))
    found = estimate_fisher(tiny_base.network, bank.sites, rows, Diagonal(), kind="empirical")
    assert found.tensors["sums"].keys() == expected.keys()
    for site, sums in expected.items():
        assert_close(found.tensors["sums"][site], sums, site)


def test_what_waits_for_other_parts_waits_on_the_host(
    tiny_base: Base, bank: AdapterBank, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    monkeypatch.setattr(module, "to_host", lambda tensor: moved.append(tensor.numel()) or tensor)
    estimate_fisher(tiny_base.network, bank.sites, rows, Diagonal())
    assert not moved, "one part has nothing to wait for"
    monkeypatch.setattr(rows_at_once, "MOST_PART_BYTES", 1)
    estimate_fisher(tiny_base.network, bank.sites, rows[:1], Diagonal())
    backbone = sum(site.startswith("backbone_model.") for site in bank.sites)
    assert len(moved) == 2 * (backbone + (len(bank.sites) - backbone) * rows[0].num_frames)


def test_progress_counts_clips_and_gates_are_ignored(tiny_base: Base, bank: AdapterBank, rows: list[Row]) -> None:
    seen: list[int] = []
    before = estimate_fisher(tiny_base.network, bank.sites, rows, Diagonal(), rows_per_batch=3, on_progress=seen.append)
    assert seen == [3, 3, 1]
    gated = [Row(row.clip_id, row.turns, (1.0,)) for row in rows]
    after = estimate_fisher(tiny_base.network, bank.sites, gated, Diagonal(), rows_per_batch=3)
    assert all(torch.equal(after.tensors["sums"][site], sums) for site, sums in before.tensors["sums"].items())


def test_data_labels_and_drawn_labels_give_different_fishers(
    tiny_base: Base, bank: AdapterBank, rows: list[Row]
) -> None:
    one = estimate_fisher(tiny_base.network, bank.sites, rows, Diagonal(), kind="true")
    other = estimate_fisher(tiny_base.network, bank.sites, rows, Diagonal(), kind="empirical")
    site = next(iter(bank.sites))
    assert not torch.allclose(one.tensors["sums"][site], other.tensors["sums"][site], rtol=0.05)


def test_pitfall_15_a_layer_that_runs_twice_in_a_pass_is_noticed(
    tiny_base: Base, bank: AdapterBank, rows: list[Row]
) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_base.network
            self.num_codebooks = tiny_base.num_codebooks

        def forward(self, batch: Any) -> Logits:
            self.inner(batch)
            return self.inner(batch)  # type: ignore[no-any-return]

    with pytest.raises(AssertionError, match="ran twice"):
        estimate_fisher(Twice(), bank.sites, rows[:2], Diagonal())
    # The hooks are gone although the pass failed.
    estimate_fisher(tiny_base.network, bank.sites, rows[:2], Diagonal())


def test_a_layer_without_gradient_is_noticed(tiny_base: Base, bank: AdapterBank, rows: list[Row]) -> None:
    sites = {**bank.sites, "backbone_model.layers.9.idle": nn.Linear(2, 2)}
    with pytest.raises(AssertionError, match=r"no gradient at \['backbone_model.layers.9.idle'\]"):
        estimate_fisher(tiny_base.network, sites, rows[:2], Diagonal())


@pytest.mark.parametrize("part", ["backbone_model", "depth_decoder"])
def test_half_of_the_quadratic_form_is_the_kl_in_nats_per_code(
    tiny_base: Base, bank: AdapterBank, rows: list[Row], part: str
) -> None:
    """With the full Fisher of a layer and many label draws: the unit in which a natural weight of 1 means something."""
    site = next(site for site in bank.sites if site.startswith(part) and site.endswith("v_proj"))
    fisher = Gradients()
    for seed in range(40):
        estimate_fisher(tiny_base.network, {site: bank.sites[site]}, rows, fisher, seed=seed)  # type: ignore[arg-type]
    weight_OI = bank.sites[site].layer.weight
    generator = torch.Generator().manual_seed(0)
    predicted, measured = [], []
    for _ in range(8):
        change_OI = torch.randn(weight_OI.shape[0], 1, generator=generator) @ torch.randn(
            1, weight_OI.shape[1], generator=generator
        )
        change_OI *= 0.05 * weight_OI.norm() / change_OI.norm()
        predicted.append(0.5 * fisher.quadratic(site, change_OI))
        measured.append(kl_of_change(tiny_base, weight_OI, change_OI, rows))
    assert 1e-5 < np.mean(measured) < 1e-2, "not a small change, or none"
    # Seven clips, 40 draws: each prediction has a relative standard error of about sqrt(2 / 280) = 8 %.
    assert np.sum(predicted) / np.sum(measured) == pytest.approx(1.0, abs=0.12)


@torch.no_grad()
def kl_of_change(base: Base, weight_OI: Tensor, change_OI: Tensor, rows: list[Row]) -> float:
    """KL(base || changed) per code, in float64 over all codes."""
    batch = collate(rows, base.num_codebooks)
    before = base.network(batch)
    kept = weight_OI.clone()
    weight_OI.add_(change_OI)
    after = base.network(batch)
    weight_OI.copy_(kept)
    terms = [
        distillation_kl(before.c0_NV, after.c0_NV),
        distillation_kl(before.depth_MJV, after.depth_MJV),
    ]
    return (terms[0] + terms[1]).mean.item()
