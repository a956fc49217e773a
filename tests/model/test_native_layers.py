"""Layers in C against transformers' own: answers, gradients, what is read of a row, and when they stand back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from affetto.adapters.bank import AdapterBank
from affetto.model import native_layers
from affetto.model.base import Base
from affetto.model.batch import Batch, Row, collate
from affetto.model.csm import CsmNetwork
from affetto.model.fused import composed
from affetto.model.spans import Spans, one_sequence_a_row, read_before
from affetto.preserve.forecast import logit_changes
from banks import trained_bank
from native_tools import required, threads

LENGTHS = (3, 7, 1, 12)


@pytest.fixture(autouse=True)
def _has_compiler() -> None:
    required()


@dataclass
class Passes:
    """What the C was asked for."""

    kept: list[bool] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    firsts: list[list[int]] = field(default_factory=list)
    backwards: list[bool] = field(default_factory=list)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    told, forward, backward = Passes(), native_layers.layer_forward, native_layers.layer_backward

    def watched(layer: Any, x: Tensor, factors: Sequence[Tensor], kept: Tensor | None = None) -> Tensor:
        told.kept.append(kept is not None)
        told.lengths.append(layer.sequences_B4[:, 0].tolist())
        told.firsts.append(layer.sequences_B4[:, 1].tolist())
        return forward(layer, x, factors, kept)

    def watched_backward(*given: Any, needs_x: bool, **options: Any) -> Any:
        told.backwards.append(needs_x)
        return backward(*given, needs_x=needs_x, **options)

    monkeypatch.setattr(native_layers, "layer_forward", watched)
    monkeypatch.setattr(native_layers, "layer_backward", watched_backward)
    return told


def batch_of(
    make_row: Callable[..., Row], gates: Sequence[tuple[float, ...]], lengths: Sequence[int] = LENGTHS
) -> Batch:
    return collate([make_row(seed, frames=(n,), gate=gates[seed % len(gates)]) for seed, n in enumerate(lengths)], 8)


def told(base: Base, batch: Batch, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Logits, and the gradients of a sum that every one of them counts in."""
    logits = base.network(batch)
    total = logits.c0_NV.logsumexp(-1).sum() + logits.depth_MJV.logsumexp(-1).sum()
    grads = torch.autograd.grad(total, inputs) if inputs else ()
    return [logits.c0_NV.detach(), logits.depth_MJV.detach(), *grads]


def assert_near(found: Sequence[Tensor], wanted: Sequence[Tensor], share: float = 2e-5) -> None:
    """Up to a share of the largest number."""
    for mine, theirs in zip(found, wanted, strict=True):
        largest = float(theirs.abs().max())
        assert largest > 0
        torch.testing.assert_close(mine, theirs.to(mine.dtype), atol=share * largest, rtol=0)


def in_float64(base: Base, bank_of: Callable[[Base], AdapterBank], batch: Batch) -> list[Tensor]:
    """What transformers' own steps say in float64."""
    model = copy.deepcopy(base.model).double()
    double = replace(base, model=model, network=CsmNetwork(model).eval())
    parameters = list(bank_of(double).parameters("happy").values())
    for parameter in parameters:
        parameter.data = parameter.data.double()
    return told(double, batch, parameters)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("targets", [("both",), ("q_proj", "v_proj", "down_proj"), ("mlp",)])
def test_answers_and_gradients_are_those_of_float64(
    tiny_base: Base, make_row: Callable[..., Row], passes: Passes, targets: tuple[str, ...], num_threads: int
) -> None:
    """Rows of unlike length and gate, and layers of which some are adapted."""

    def bank_of(base: Base) -> AdapterBank:
        return trained_bank(base, targets=targets)

    batch = batch_of(make_row, [(1.0,), (0.4,)])
    wanted = in_float64(tiny_base, bank_of, batch)
    assert not passes.kept, "float64 is not for it"
    bank = bank_of(tiny_base)
    with threads(num_threads):
        assert_near(told(tiny_base, batch, list(bank.parameters("happy").values())), wanted)
    assert passes.kept == [True] * 4, "every layer of both decoders"
    # Nothing before the first backbone layer learns.
    assert passes.backwards == [True, True, True, False]


def test_only_what_is_read_is_computed(tiny_base: Base, make_row: Callable[..., Row], passes: Passes) -> None:
    """Neither padding nor, behind the last layer, texts and the depth decoder's first positions."""
    rows = [make_row(seed, frames=(n,)) for seed, n in enumerate(LENGTHS)]
    tiny_base.network(collate(rows, 8))
    lengths = [row.num_positions - 1 for row in rows]
    firsts = [length - row.num_frames for row, length in zip(rows, lengths, strict=True)]
    num_frames = sum(row.num_frames for row in rows)
    assert passes.lengths == [lengths, lengths, [8] * num_frames, [8] * num_frames]
    assert passes.firsts == [[0] * 4, firsts, [0] * num_frames, [1] * num_frames]
    assert passes.kept == [False] * 4, "nobody asks for a gradient"


def test_what_nobody_reads_is_zero_and_what_is_read_does_not_depend_on_it(tiny_base: Base) -> None:
    layers = tiny_base.model.backbone_model.layers
    generator = torch.Generator().manual_seed(0)
    x_BSD = torch.randn(3, 21, 128, generator=generator)
    angles = tiny_base.model.backbone_model.rotary_emb(x_BSD, torch.arange(21)[None])
    everything = layers[1](layers[0](x_BSD, position_embeddings=angles), position_embeddings=angles)
    spans = read_before(torch.tensor([[0, 9], [0, 20], [2, 4], [2, 5]]), 3)
    assert spans is not None
    assert spans.length_B.tolist() == [20, 1, 5]
    assert spans.first_B.tolist() == [8, 0, 3]
    with one_sequence_a_row(spans):
        mid = layers[0](x_BSD, position_embeddings=angles)
        found = layers[1](mid, position_embeddings=angles)
    assert not mid[1, 1:].any()
    for row, (first, length) in enumerate(zip(spans.first_B, spans.length_B, strict=True)):
        torch.testing.assert_close(found[row, first:length], everything[row, first:length], rtol=1e-5, atol=1e-5)
        assert not found[row, :first].any()
        assert not found[row, length:].any()


@pytest.mark.parametrize("length", [1, 31, 33, 64, 150])
def test_rows_of_any_length(tiny_base: Base, make_row: Callable[..., Row], passes: Passes, length: int) -> None:
    """Queries go through attention 32 at a time, and a group of sequences has 128 positions, or one of them more."""

    def bank_of(base: Base) -> AdapterBank:
        return trained_bank(base)

    batch = batch_of(make_row, [(1.0,)], (length, 2, 1))
    wanted = in_float64(tiny_base, bank_of, batch)
    bank = bank_of(tiny_base)
    assert_near(told(tiny_base, batch, list(bank.parameters("happy").values())), wanted, 5e-5)
    assert passes.kept


def test_several_adapters_and_rows_without_any(tiny_base: Base, make_row: Callable[..., Row], passes: Passes) -> None:
    bank = trained_bank(tiny_base)
    bank.add("sad", rank=5, alpha=10.0, seed=1)
    for _, _, b_OR, _ in bank.factors("sad"):
        assert b_OR is not None
        b_OR.data.normal_(std=0.05)
    inputs = [*bank.parameters("happy").values(), *bank.parameters("sad").values()]
    batch = batch_of(make_row, [(1.0, 0.0), (0.3, 0.7), (0.0, 0.0), (-0.5, 2.0)])
    with composed():
        wanted = told(tiny_base, batch, inputs)
    assert not passes.kept
    assert_near(told(tiny_base, batch, inputs), wanted)
    assert passes.kept == [True] * 4
    # Without a row that has it on, an adapter is left out, and learns nothing.
    told_of = torch.autograd.grad(
        tiny_base.network(batch_of(make_row, [(1.0, 0.0)])).c0_NV.sum(), inputs, allow_unused=True
    )
    assert {grad is None for grad in told_of[len(inputs) // 2 :]} == {True}


def test_the_base_and_its_inputs_gradients(tiny_base: Base, make_row: Callable[..., Row], passes: Passes) -> None:
    table = tiny_base.network.backbone.embed_tokens.embed_audio_tokens.weight.requires_grad_()
    batch = batch_of(make_row, [()])
    with composed():
        wanted = told(tiny_base, batch, [table])
    assert_near(told(tiny_base, batch, [table]), wanted)
    assert passes.backwards == [True] * 4


def test_activations_computed_again_are_the_same(tiny_base: Base, make_row: Callable[..., Row], passes: Passes) -> None:
    """In the backward pass, where nobody promises anything any more, the promises of before hold."""
    bank = trained_bank(tiny_base)
    batch, inputs = batch_of(make_row, [(1.0,)]), list(bank.parameters("happy").values())
    wanted = told(tiny_base, batch, inputs)
    num, lengths = len(passes.kept), list(passes.lengths)
    tiny_base.network.enable_checkpointing()
    tiny_base.network.train()
    found = told(tiny_base, batch, inputs)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))
    assert len(passes.kept) == 3 * num
    assert sorted(passes.lengths[num:]) == sorted(2 * lengths)


def test_the_same_numbers_give_the_same_bits(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    """Wherever they lie in memory; with as many threads."""
    bank = trained_bank(tiny_base)
    batch, inputs = batch_of(make_row, [(1.0,)]), list(bank.parameters("happy").values())
    for num in (1, 2):
        with threads(num):
            first = told(tiny_base, batch, inputs)
            held = []
            for size in range(5):
                held.append(torch.empty(1000 + 7919 * size))
                assert all(torch.equal(a, b) for a, b in zip(told(tiny_base, batch, inputs), first, strict=True))


def test_changed_weights_are_seen(tiny_base: Base, make_row: Callable[..., Row], passes: Passes) -> None:
    batch, layer = batch_of(make_row, [()]), tiny_base.model.backbone_model.layers[0]
    before = tiny_base.network(batch).c0_NV
    with torch.no_grad():
        layer.mlp.up_proj.weight.mul_(0.5)
    changed = tiny_base.network(batch).c0_NV
    assert not torch.allclose(changed, before)
    layer.mlp.up_proj.weight.data = 2.0 * layer.mlp.up_proj.weight.data
    torch.testing.assert_close(tiny_base.network(batch).c0_NV, before)
    assert len(passes.kept) == 12


@pytest.mark.parametrize(
    "reason",
    ["hook", "backward hook", "global hook", "another forward", "trained weights", "trained norm", "another norm",
     "bias", "no compiler", "eager", "not causal", "another scale"],
)  # fmt: skip
def test_it_stands_back_where_a_layer_is_something_else(
    tiny_base: Base, make_row: Callable[..., Row], passes: Passes, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    heard: list[Any] = []
    handles: list[Any] = []
    for layer in (*tiny_base.model.backbone_model.layers, *tiny_base.model.depth_decoder.model.layers):
        change: dict[str, Callable[[], Any]] = {
            "hook": partial(layer.mlp.down_proj.register_forward_hook, lambda *told: heard.append(told[1])),
            "trained weights": layer.self_attn.k_proj.weight.requires_grad_,
            "trained norm": layer.input_layernorm.weight.requires_grad_,
            "bias": partial(setattr, layer.mlp.down_proj, "bias", torch.nn.Parameter(torch.zeros(layer.hidden_size))),
            "backward hook": partial(layer.mlp.register_full_backward_hook, lambda *_: None),
            "global hook": lambda: handles.append(register_module_forward_hook(lambda *_: None)),
            "another forward": partial(setattr, layer.mlp, "forward", layer.mlp.forward),
            "another norm": partial(setattr, layer, "input_layernorm", torch.nn.RMSNorm(layer.hidden_size, 1e-5)),
            "eager": partial(setattr, layer.self_attn.config, "_attn_implementation", "eager"),
            "not causal": partial(setattr, layer.self_attn, "is_causal", False),
            "another scale": partial(setattr, layer.self_attn, "scaling", 0.5),
            "no compiler": partial(monkeypatch.setattr, native_layers, "library", lambda _: None),
        }
        change[reason]()
    tiny_base.network(batch_of(make_row, [()]))
    for handle in handles:
        handle.remove()
    assert not passes.kept
    assert len(heard) == (4 if reason == "hook" else 0)


@pytest.mark.parametrize("reason", ["full rank", "dropout", "autocast", "counted"])
def test_it_stands_back_where_it_does_not_know_how(
    tiny_base: Base, make_row: Callable[..., Row], passes: Passes, reason: str
) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    if reason == "full rank":
        bank.add_full("happy")
    else:
        bank.add("happy", rank=2, alpha=2.0, seed=0)
    counter = FlopCounterMode(display=False)
    blocks: dict[str, AbstractContextManager[Any]] = {
        "dropout": tiny_base.network.gates.dropout(0.5, 0),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "counted": counter,
    }
    with blocks.get(reason, nullcontext()):
        tiny_base.network(batch_of(make_row, [(1.0,)]))
    assert not passes.kept
    assert (counter.get_total_flops() > 0) is (reason == "counted")


def test_who_differentiates_by_gates_does_it_twice(
    tiny_base: Base, make_row: Callable[..., Row], passes: Passes
) -> None:
    trained_bank(tiny_base)
    gate_BE = torch.zeros(len(LENGTHS), 1, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        logits = tiny_base.network(batch_of(make_row, [(1.0,)]).with_gate(gate_BE))
        changes = logit_changes(logits, gate_BE, 0)
    assert not passes.kept
    assert changes.c0_NV.abs().max() > 0
    assert changes.depth_MJV.abs().max() > 0


def test_masks_and_other_angles_are_transformers(tiny_base: Base, passes: Passes) -> None:
    layer, rotary = tiny_base.model.backbone_model.layers[0], tiny_base.model.backbone_model.rotary_emb
    x_BSD = torch.randn(2, 5, 128)
    angles = rotary(x_BSD, torch.arange(5)[None])
    layer(x_BSD, position_embeddings=angles)
    assert len(passes.kept) == 1
    layer(x_BSD, position_embeddings=angles, attention_mask=torch.ones(2, 1, 5, 5, dtype=torch.bool))
    layer(x_BSD, position_embeddings=rotary(x_BSD, torch.arange(5).expand(2, 5)))
    layer(x_BSD, position_embeddings=tuple(angle[:, :1] for angle in angles))
    layer(x_BSD, position_embeddings=angles, output_attentions=False)
    layer.self_attn.attention_dropout = 0.5
    layer.train()
    layer(x_BSD, position_embeddings=angles)
    assert len(passes.kept) == 1
    layer.eval()
    layer(x_BSD, position_embeddings=angles)
    assert len(passes.kept) == 2


@pytest.mark.parametrize("num_threads", [1, 2])
def test_matrices_that_are_too_large_for_a_cache_are_packed(
    tiny_base: Base, make_row: Callable[..., Row], passes: Passes, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    """The other way round they aren't kept: that would be all weights once more."""
    monkeypatch.setattr(native_layers, "MOST_MATRIX_BYTES", 1)
    monkeypatch.setattr(native_layers, "mkl_is_slow", lambda: False)
    batch = batch_of(make_row, [(1.0,), (0.4,)], (*LENGTHS, 60, 41))
    wanted = in_float64(tiny_base, trained_bank, batch)
    bank = trained_bank(tiny_base)
    inputs = list(bank.parameters("happy").values())
    told(tiny_base, batch, inputs)
    assert not passes.kept, "where MKL is quick it multiplies what is large"
    monkeypatch.setattr(native_layers, "mkl_is_slow", lambda: True)
    with threads(num_threads):
        assert_near(told(tiny_base, batch, inputs), wanted, 5e-5)
    assert passes.kept == [True] * 4
    assert all(layer._turned is None for layer in tiny_base.model.backbone_model.layers)


def test_gates_and_spans_that_do_not_fit_are_refused(tiny_base: Base) -> None:
    trained_bank(tiny_base)
    layer = tiny_base.model.backbone_model.layers[1]
    x_BSD = torch.randn(2, 5, 128)
    angles = tiny_base.model.backbone_model.rotary_emb(x_BSD, torch.arange(5)[None])
    with tiny_base.network.gates.set(torch.ones(1, 1)), pytest.raises(AssertionError, match="a gate for each row"):
        layer(x_BSD, position_embeddings=angles)
    for lengths, firsts in (([5, 6], [0, 0]), ([5, 5], [-1, 0]), ([5, 2], [0, 3])):
        with one_sequence_a_row(Spans(np.array(lengths), np.array(firsts))), pytest.raises(AssertionError):
            layer(x_BSD, position_embeddings=angles)


def test_a_weight_that_changes_before_the_backward_pass_is_told_of(
    tiny_base: Base, make_row: Callable[..., Row]
) -> None:
    bank = trained_bank(tiny_base)
    total = tiny_base.network(batch_of(make_row, [(1.0,)])).c0_NV.sum()
    with torch.no_grad():
        tiny_base.model.backbone_model.layers[1].mlp.down_proj.layer.weight.mul_(3.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, list(bank.parameters("happy").values()), allow_unused=True)


def test_what_is_made_of_weights_is_not_copied(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    layer = tiny_base.model.backbone_model.layers[0]
    before = len(pickle.dumps(layer))
    tiny_base.network(batch_of(make_row, [()]))
    assert layer._turned is not None
    assert len(pickle.dumps(layer)) == before
    assert copy.deepcopy(layer)._turned is None


def test_no_second_derivative_without_a_word(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    bank = trained_bank(tiny_base)
    logits = tiny_base.network(batch_of(make_row, [(1.0,)]))
    scale = torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(
            scale * logits.c0_NV.sum(), list(bank.parameters("happy").values()), create_graph=True,
        )  # fmt: skip


def test_spans_of_rows_without_frames() -> None:
    spans = read_before(torch.zeros(0, 2, dtype=torch.long), 2)
    assert spans is not None
    assert (spans.length_B.tolist(), spans.first_B.tolist()) == ([1, 1], [0, 0])
    assert isinstance(spans, Spans)
