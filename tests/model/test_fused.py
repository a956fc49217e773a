"""CSM's fused steps against transformers' own: the switch anywhere, the kernels by Triton's interpreter or a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.csm import modeling_csm

from affetto.model import fused, native_layers
from affetto.model.base import Base
from affetto.model.batch import Row, collate
from affetto.model.spans import one_sequence_a_row
from affetto.preserve.forecast import forecast, logit_changes
from banks import trained_bank

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture
def _kernels() -> None:
    """Skips where they can't run."""
    pytest.importorskip("triton", reason="Triton isn't installed")
    if not HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is no GPU, and TRITON_INTERPRET=1 isn't set")


def _random(*sizes: int, seed: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def test_modules_keep_their_weights_names_and_answers(tiny_base: Base) -> None:
    """On a CPU none of them changes anything."""
    norms = [module for module in tiny_base.model.modules() if isinstance(module, modeling_csm.CsmRMSNorm)]
    mlps = [module for module in tiny_base.model.modules() if isinstance(module, modeling_csm.CsmMLP)]
    assert {type(norm) for norm in norms} == {fused.FusedNorm}
    assert {type(mlp) for mlp in mlps} == {fused.FusedMlp}
    x = torch.randn(2, 3, norms[0].weight.shape[0])
    assert torch.equal(norms[0](x), modeling_csm.CsmRMSNorm.forward(norms[0], x))
    assert torch.equal(mlps[0](x), modeling_csm.CsmMLP.forward(mlps[0], x))
    q, angles = torch.randn(2, 4, 3, 8), torch.randn(2, 3, 8)
    turned = fused.turned_pair(q, q[:, :1], angles.cos(), angles.sin())
    plain = fused.PLAIN_TURN(q, q[:, :1], angles.cos(), angles.sin())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(turned, plain, strict=True))


@pytest.fixture
def _gpu_roads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The roads that a GPU takes, on any machine: what the kernels do is done by torch."""

    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return functional.silu(gate) * up

    def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.sigmoid(gate)
        return grad * up * share * (1 + gate * (1 - share)), grad * gate * share

    def turn(x: Tensor, cos: Tensor, sin: Tensor, *, is_back: bool) -> Tensor:
        return fused.PLAIN_TURN(x, x, cos, -sin if is_back else sin)[0]

    kernels = {"swiglu": swiglu, "swiglu_backward": swiglu_backward, "turn": turn}
    monkeypatch.setitem(sys.modules, "affetto.model.fused_kernels", SimpleNamespace(**kernels))
    monkeypatch.setattr(fused, "_has_kernels", lambda _: True)
    monkeypatch.setattr(native_layers, "library", lambda _: None)


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("has_adapters", [False, True])
def test_a_whole_pass_by_the_roads_of_a_gpu_is_transformers_own(
    tiny_base: Base, make_row: Callable[..., Row], has_adapters: bool, is_checkpointed: bool,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Answers and gradients, with activations kept and computed again."""
    bank = trained_bank(tiny_base) if has_adapters else None
    gate = (1.0,) if has_adapters else ()
    batch = collate([make_row(seed, frames=(length,), gate=gate) for seed, length in enumerate((3, 7))], 8)
    table = tiny_base.network.backbone.embed_tokens.embed_audio_tokens.weight
    inputs = [*(bank.parameters("happy").values() if bank else ()), table.requires_grad_()]

    def told() -> list[Tensor]:
        logits = tiny_base.network(batch)
        total = (logits.c0_NV**2).sum() + (logits.depth_MJV**2).sum()
        return [logits.c0_NV.detach(), logits.depth_MJV.detach(), *torch.autograd.grad(total, inputs)]

    monkeypatch.setattr(native_layers, "library", lambda _: None)
    wanted = told()
    request.getfixturevalue("_gpu_roads")
    asked: list[int] = []
    together = fused._together
    monkeypatch.setattr(fused, "_together", lambda layers, x: (asked.append(len(layers)), together(layers, x))[1])
    if is_checkpointed:
        tiny_base.network.enable_checkpointing()
        tiny_base.network.train()
    for mine, theirs in zip(told(), wanted, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-4)
    assert sorted(set(asked)) == [2, 3], "queries, keys and values; gate and up"
    assert len(asked) == (4 if is_checkpointed else 2) * 4, "of four layers, again in the backward pass"


def test_a_forecast_takes_no_kernel_and_no_kernel_is_differentiated_twice(
    tiny_base: Base, make_row: Callable[..., Row], request: pytest.FixtureRequest
) -> None:
    """Autograd knows no second derivative through them: cut off there without a word, a forecast would be too low."""
    trained_bank(tiny_base)
    rows = [make_row(seed, frames=(length,)) for seed, length in enumerate((3, 7))]
    wanted = forecast(tiny_base, rows, 1).forms_CE
    request.getfixturevalue("_gpu_roads")
    np.testing.assert_allclose(forecast(tiny_base, rows, 1).forms_CE, wanted, rtol=1e-5)
    gate_BE = torch.zeros(2, 1, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        logits = tiny_base.network(collate(rows, 8).with_gate(gate_BE))
        with pytest.raises(RuntimeError, match="no second derivative"):
            logit_changes(logits, gate_BE, 0)


def test_whole_rows_need_no_mask_and_others_get_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own says the same of them, after it has looked at the positions."""
    config = SimpleNamespace(_attn_implementation="sdpa")
    rows = torch.zeros(2, 3, 4)
    monkeypatch.setattr(fused, "PLAIN_MASK", lambda *_, **__: "transformers")
    assert fused.causal_mask(config, rows, None, position_ids=None) == "transformers"
    with one_sequence_a_row():
        assert fused.causal_mask(config, rows, None, position_ids=None) is None
        assert fused.causal_mask(config, rows, attention_mask=None) is None
        assert fused.causal_mask(config, rows, torch.ones(2, 3)) == "transformers"
        assert fused.causal_mask(SimpleNamespace(_attn_implementation="eager"), rows, None) == "transformers"
    assert fused.causal_mask(config, rows, None) == "transformers"


def test_another_activation_is_left_alone() -> None:
    mlp = modeling_csm.CsmMLP(SimpleNamespace(hidden_size=8, intermediate_size=16, mlp_bias=False, hidden_act="gelu"))
    fused.fuse(mlp)
    assert type(mlp) is modeling_csm.CsmMLP


@pytest.mark.usefixtures("_kernels")
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # infinite, which makes SiLU zero
def test_swiglu_and_its_gradient() -> None:
    gate, up, out = (_random(3, 5, 17, seed=seed) for seed in range(3))
    for values in (gate, up):
        values.requires_grad_()
    found = fused._SwiGlu.apply(gate, up)  # type: ignore[no-untyped-call]
    mine = torch.autograd.grad(found, (gate, up), out)
    wanted = functional.silu(gate) * up
    theirs = torch.autograd.grad(wanted, (gate, up), out)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("is_shared", [False, True])
def test_turning_by_positions_and_its_gradient(is_shared: bool) -> None:
    """Heads in any place in memory; angles by row or for all."""
    x = _random(2, 3, 5, 8, seed=0).transpose(1, 2).requires_grad_()
    angles = _random(1 if is_shared else 2, 3, 4, seed=1).repeat(1, 1, 2)
    out = _random(2, 5, 3, 8, seed=2)
    one = _random(2, 3, 1, 8, seed=3).transpose(1, 2).requires_grad_()
    outs = (out, out[:, :1])
    found = fused._Turn.apply(x, one, angles.cos(), angles.sin())  # type: ignore[no-untyped-call]
    wanted = fused.PLAIN_TURN(x, one, angles.cos(), angles.sin())
    torch.testing.assert_close(found, wanted)
    mine, theirs = (torch.autograd.grad(pair, (x, one), outs) for pair in (found, wanted))
    torch.testing.assert_close(mine, theirs)
