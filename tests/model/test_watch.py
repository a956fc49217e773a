"""What layers in C tell a watch, against what hooks see of transformers' own, and against autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from affetto.adapters.bank import AdapterBank
from affetto.model import native_layers
from affetto.model.base import Base
from affetto.model.batch import Row, collate
from affetto.model.fused import composed
from affetto.model.watch import Watch, watch_of
from banks import trained_bank
from native_tools import required, threads

LENGTHS = (3, 7, 1, 12)

Told = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _has_compiler() -> None:
    required()


@pytest.fixture
def bank(tiny_base: Base) -> AdapterBank:
    return trained_bank(tiny_base)


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each backward pass in C, whether it was asked to tell."""
    told: list[bool] = []
    backward = native_layers.layer_backward

    def watched(*given: object, **options: object) -> object:
        told.append(options["records"] is not None)
        return backward(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(native_layers, "layer_backward", watched)
    return told


def watched(base: Base, sites: Sequence[str], make_row: Callable[..., Row], gate: tuple[float, ...]) -> Told:
    """Inputs and gradients of the sites, of a sum that every logit counts in."""
    told: Told = {}

    def watch(site: str) -> Watch:
        return Watch(site, lambda *pair: told.__setitem__(site, pair))  # type: ignore[arg-type]

    handles = [base.model.get_submodule(site).register_forward_hook(watch(site)) for site in sites]
    logits = base.network(collate([make_row(seed, frames=(n,), gate=gate) for seed, n in enumerate(LENGTHS)], 8))
    (logits.c0_NV.logsumexp(-1).sum() + logits.depth_MJV.logsumexp(-1).sum()).backward()
    for handle in handles:
        handle.remove()
    return told


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("gate", [(), (0.7,)])
@pytest.mark.parametrize("part", ["", "v_proj", "down_proj", "backbone"])
def test_layers_in_c_tell_what_hooks_see(
    tiny_base: Base, bank: AdapterBank, make_row: Callable[..., Row], records: list[bool], part: str,
    gate: tuple[float, ...], num_threads: int,
) -> None:  # fmt: skip
    """Wherever there is a gradient; elsewhere the C tells zeros, since nothing was computed."""
    sites = [site for site in bank.sites if part in site and "layers" in site]
    with composed():
        wanted = watched(tiny_base, sites, make_row, gate)
    assert not records
    with threads(num_threads):
        found = watched(tiny_base, sites, make_row, gate)
    assert any(records)
    assert found.keys() == wanted.keys() == set(sites)
    for site, (x, slope) in wanted.items():
        mine_x, mine_slope = found[site]
        assert mine_slope.shape == slope.shape
        is_told = slope.abs().amax(dim=-1) > 0
        assert is_told.any()
        largest = float(slope.abs().max())
        torch.testing.assert_close(mine_slope, slope, atol=2e-5 * largest, rtol=0)
        torch.testing.assert_close(mine_x[is_told], x[is_told], atol=2e-5 * float(x.abs().max()), rtol=0)
        assert torch.isfinite(mine_x).all()


def test_weights_gradients_are_made_of_it(tiny_base: Base, make_row: Callable[..., Row], records: list[bool]) -> None:
    """Sum over positions of g a^T, against autograd's for a weight that learns."""
    site = "backbone_model.layers.0.self_attn.k_proj"
    inputs, slopes = watched(tiny_base, [site], make_row, ())[site]
    assert records == [False, False, False, True], "the first layer of the backbone is the last one backward"
    layer = tiny_base.model.get_submodule(site)
    layer.weight.requires_grad_()
    watched(tiny_base, [], make_row, ())
    wanted_OI = layer.weight.grad
    assert wanted_OI is not None
    found_OI = slopes.flatten(0, 1).T @ inputs.flatten(0, 1)
    torch.testing.assert_close(found_OI, wanted_OI, atol=2e-5 * float(wanted_OI.abs().max()), rtol=0)


def test_a_pass_that_nobody_watches_tells_nothing(
    tiny_base: Base, bank: AdapterBank, make_row: Callable[..., Row], records: list[bool]
) -> None:
    assert watched(tiny_base, [], make_row, (1.0,)) == {}
    assert bank.parameters("happy")
    assert records
    assert not any(records)


@pytest.mark.parametrize("other", ["two", "on the whole", "a hook beside it", "of a norm"])
def test_what_the_c_cannot_tell_is_left_to_hooks(
    tiny_base: Base, bank: AdapterBank, make_row: Callable[..., Row], records: list[bool], other: str
) -> None:
    """Two watches of a layer, one of a whole MLP, hooks beside it, or one of a norm."""
    heard: list[str] = []
    for layer in (*tiny_base.model.backbone_model.layers, *tiny_base.model.depth_decoder.model.layers):
        down: nn.Module = layer.mlp.down_proj
        hooked, times = {
            "two": (down, 2), "on the whole": (layer.mlp, 1), "a hook beside it": (down, 1),
            "of a norm": (layer.post_attention_layernorm, 1),
        }[other]  # fmt: skip
        for _ in range(times):
            hooked.register_forward_hook(Watch("one", lambda *_: heard.append("told")))
        if other == "a hook beside it":
            down.register_forward_hook(lambda *_: heard.append("seen"))
    watched(tiny_base, [], make_row, (1.0,))
    assert not records
    assert heard.count("told") == (8 if other == "two" else 4)
    assert heard.count("seen") == (4 if other == "a hook beside it" else 0)
    assert bank.sites


def test_who_runs_twice_is_named(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    site = "depth_decoder.model.layers.1.mlp.up_proj"
    layer = tiny_base.model.get_submodule(site)
    watch = Watch(site, lambda *_: None)
    assert watch_of(layer) is None
    layer.register_forward_hook(watch)
    assert watch_of(layer) is watch
    batch = collate([make_row(0, frames=(3,))], 8)
    tiny_base.network(batch)
    with pytest.raises(AssertionError, match=rf"{site} ran twice"):
        tiny_base.network(batch)
