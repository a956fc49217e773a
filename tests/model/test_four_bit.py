"""Layers in four bits against NormalFloat-4 as its paper defines it, and against dense layers of the same values."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from affetto.adapters.bank import AdapterBank
from affetto.errors import BaseModelError, MissingDependencyError
from affetto.model import four_bit
from affetto.model.base import Base, load_base
from affetto.model.batch import Row, collate
from affetto.model.four_bit import BLOCK, FourBitLinear, frozen_linear, packed_linear, packed_sizes, replace_linears
from affetto.model.losses import code_losses
from affetto.planning.plan import base_config
from affetto.planning.storage import weight_bytes
from affetto.planning.tracing import shape_only, training_cost
from affetto.preserve.curvature import Diagonal
from affetto.preserve.fisher import estimate_fisher


@pytest.fixture
def bitsandbytes() -> Iterator[Any]:
    """The optional package; without it what needs it is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("bitsandbytes", reason="the extra four-bit (bitsandbytes) is not installed")


@pytest.fixture
def packed(tiny_base: Base, bitsandbytes: Any) -> Base:  # noqa: ARG001
    """The tiny base with its layers in four bits, still computing in float32."""
    assert replace_linears(tiny_base.model, lambda layer: packed_linear(layer, "cpu")) == 7 * 4
    return tiny_base


@pytest.fixture
def dense(packed: Base, _loaded: Base) -> Base:
    """The same values in ordinary layers."""
    other = copy.deepcopy(_loaded)
    for path, module in packed.model.named_modules():
        if isinstance(module, FourBitLinear):
            other.model.get_submodule(path).weight.data.copy_(module.weight)
    return other


def normal_float_4() -> np.ndarray:
    """The sixteen values of Dettmers et al. 2023, section 3: quantiles of the normal distribution and an exact zero."""
    most = 1 - (1 / 30 + 1 / 32) / 2
    above = norm.ppf(np.linspace(most, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(most, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([above, below, [0.0]]))
    return values / np.abs(values).max()


def test_values_are_the_nearest_of_the_papers_sixteen_times_the_blocks_largest(bitsandbytes: Any) -> None:  # noqa: ARG001
    layer = nn.Linear(48, 20, bias=False)
    found = packed_linear(layer, "cpu")
    assert (found.packed.nbytes, len(found.scales)) == packed_sizes((20, 48))
    blocks = layer.weight.detach().numpy().reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    table = normal_float_4()
    nearest = np.abs((blocks / scale)[..., None] - table).argmin(axis=-1)
    expected = torch.from_numpy((table[nearest] * scale).reshape(20, 48)).float()
    torch.testing.assert_close(found.weight, expected, rtol=1e-4, atol=1e-6)
    assert (found.weight - layer.weight).abs().max() > 1e-4, "four bits lose something"


@pytest.mark.parametrize("is_autocast", [False, True])
def test_the_product_and_its_gradient_are_those_of_the_dense_layer_and_keep_nothing_dense(
    bitsandbytes: Any, is_autocast: bool  # noqa: ARG001
) -> None:  # fmt: skip
    layer = packed_linear(nn.Linear(64, 96), "cpu")
    plain = nn.Linear(64, 96)
    plain.weight.data.copy_(layer.weight)
    plain.bias.data.copy_(layer.bias)
    results, kept = [], []
    for one in (layer, plain.requires_grad_(False)):
        x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        saved: list[Tensor] = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=is_autocast),
        ):
            y = frozen_linear(x, one)
        y.float().sin().sum().backward()
        results.append((y, x.grad))
        kept.append(max((t.numel() for t in saved), default=0))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert kept == [0, 64 * 96], "only the plain way keeps the whole weight"


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_adapters_learn_upon_it_as_upon_the_dense_layers(
    packed: Base, dense: Base, make_row: Callable[..., Row], is_checkpointed: bool
) -> None:
    rows = [Row(row.clip_id, row.turns, (0.7,)) for row in (make_row(n, frames=(4 + n,)) for n in range(3))]
    found = []
    for base in (packed, dense):
        bank = AdapterBank(base.model, base.network.gates)
        bank.add("happy", 4, 8.0, 0)
        for site in bank.sites.values():
            nn.init.normal_(site.B["happy"], std=0.05, generator=torch.Generator().manual_seed(1))
        if is_checkpointed:
            base.network.enable_checkpointing()
            base.network.train()
        batch = collate(rows, base.num_codebooks)
        logits = base.network(batch)
        c0, depth = code_losses(logits, batch)
        torch.autograd.backward(c0.mean + depth.mean)
        base.network.eval()
        found.append([logits.depth_MJV.detach(), *(p.grad for p in bank.parameters("happy").values())])
    assert all(gradient.abs().max() > 0 for gradient in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_fisher_is_that_of_the_dense_layers(packed: Base, dense: Base, make_row: Callable[..., Row]) -> None:
    rows = [make_row(n, frames=(3 + n,)) for n in range(2)]
    sums = []
    for base in (packed, dense):
        bank = AdapterBank(base.model, base.network.gates)
        sums.append(estimate_fisher(base.network, bank.sites, rows, Diagonal()).tensors["sums"])
    for site, value in sums[1].items():
        torch.testing.assert_close(sums[0][site], value, rtol=1e-3, atol=1e-4 * value.max().item())


def test_a_packed_base_is_loaded_by_its_precision(tiny_base_folder: Path, bitsandbytes: Any) -> None:  # noqa: ARG001
    plain = load_base(str(tiny_base_folder), precision="bf16")
    packed = load_base(str(tiny_base_folder), precision="nf4")
    assert packed.model.dtype == torch.bfloat16
    assert packed.hash == plain.hash, "an adapter belongs to the same weights"
    assert packed.answers_hash not in (plain.answers_hash, packed.hash), "but the answers are others"
    layer = packed.model.get_submodule("backbone_model.layers.0.mlp.up_proj")
    assert isinstance(layer, FourBitLinear)
    assert layer.weight.dtype == torch.bfloat16
    told = shape_only(
        base_config(str(tiny_base_folder)), torch.bfloat16, ("both",), "both", 4, checkpointing=False, is_packed=True
    )

    def layers(model: nn.Module) -> int:
        return sum(weight_bytes(module) for module in model.modules() if isinstance(module, FourBitLinear))

    assert layers(told.model) == layers(packed.model) > 0
    assert weight_bytes(packed.model) < weight_bytes(plain.model)


def test_a_plan_knows_that_weights_are_unpacked_one_at_a_time(tiny_base_folder: Path) -> None:
    config = base_config(str(tiny_base_folder))
    plain, packed = (
        shape_only(config, torch.bfloat16, ("both",), "both", 4, checkpointing=True, is_packed=is_packed)
        for is_packed in (False, True)
    )
    largest = max(site.shape[0] * site.shape[1] for site in packed.bank.sites.values())
    costs = [training_cost(made, made.batch(2, 9, 6, 18), [(1.0, False)], autocast=None) for made in (plain, packed)]
    assert weight_bytes(packed.model) < weight_bytes(plain.model)
    assert costs[0].peak_bytes <= costs[1].peak_bytes <= costs[0].peak_bytes + 2 * 2 * largest
    assert costs[0].flops == costs[1].flops


def test_without_the_extra_the_remedy_is_told(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'affetto\[four-bit\]'.*bf16"):
        load_base(str(tiny_base_folder), precision="nf4")


def test_a_base_without_such_layers_is_refused(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bit, "PACKED_PARTS", ("nowhere.",))
    monkeypatch.setattr("affetto.model.base.require_four_bit", lambda: None)
    with pytest.raises(BaseModelError, match="no layers that base_precision: nf4 packs"):
        load_base(str(tiny_base_folder), precision="nf4")
