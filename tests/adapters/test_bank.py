"""The bank against dense matrices, single rows, and a base that never had one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_tools import add_dense, assert_differ, assert_same, dense_deltas, random_adapter
from transformers import CsmForConditionalGeneration

from affetto.adapters.bank import AdapterBank, all_targets
from affetto.adapters.targets import ATTENTION, MLP
from affetto.errors import AdapterError
from affetto.model.base import Base, load_base
from affetto.model.batch import Batch, Logits, Row, collate
from affetto.model.gated import gated_linears
from affetto.model.gated_lora import GatedLora
from affetto.model.gates import GateSwitch
from affetto.model.losses import code_losses

PARTS = ("backbone_model", "depth_decoder")


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> list[Row]:
    return [make_row(0, frames=(5,)), make_row(1, frames=(2, 3)), make_row(2, frames=(7,))]


def _bank(base: Base, *names: str) -> AdapterBank:
    bank = AdapterBank(base.model, base.network.gates)
    for index, name in enumerate(names):
        random_adapter(bank, name, rank=2 + index, alpha=4.0, seed=index)
    return bank


def _batch(rows: list[Row], *gates: tuple[float, ...]) -> Batch:
    return collate([replace(row, gate=gate) for row, gate in zip(rows, gates, strict=True)], 8)


def _backward(base: Base, batch: Batch) -> None:
    c0, depth = code_losses(base.network(batch), batch)
    (c0.total + depth.total).backward()


@torch.no_grad()
def test_gate_zero_is_the_base_bit_for_bit(tiny_base: Base, rows: list[Row]) -> None:
    before = tiny_base.network(collate(rows, 8))
    _bank(tiny_base, "happy", "sad")
    for gates in ([()] * 3, [(0.0, 0.0)] * 3):
        after = tiny_base.network(_batch(rows, *gates))
        assert torch.equal(after.c0_NV, before.c0_NV)
        assert torch.equal(after.depth_MJV, before.depth_MJV)
    assert_differ(tiny_base.network(_batch(rows, *[(1.0, 0.0)] * 3)), before)


@torch.no_grad()
def test_dropout_is_torch_s_in_distribution_drawn_by_its_seed_and_only_inside_the_block(tiny_base: Base) -> None:
    bank = _bank(tiny_base, "happy")
    gates = tiny_base.network.gates
    site = next(iter(bank.sites.values()))
    x = torch.randn(1, 3, site.layer.weight.shape[1])
    clean = site.layer(x)
    with gates.set(torch.tensor([[1.0]])):
        whole = site(x)
        draws = []
        for seed in range(4000):
            with gates.dropout(0.25, seed):
                draws.append(site(x) - clean)
        with gates.dropout(0.25, 7):
            first, second = site(x) - clean, site(x) - clean
        assert torch.equal(first, draws[7])
        assert not torch.equal(first, second), "every layer draws a mask of its own"
        assert torch.equal(site(x), whole)
    torch.testing.assert_close(torch.stack(draws).mean(0), whole - clean, atol=0.02, rtol=0.05)
    # One input element at a time: its contribution is there, scaled by 1 / 0.75, or gone.
    low = site.A["happy"].T * site.scale["happy"]
    alone = torch.zeros_like(x)
    alone[..., 0] = 1.0
    with gates.set(torch.tensor([[1.0]])), gates.dropout(0.25, 3):
        got = site(alone) - site.layer(alone)
    kept = low[0] @ site.B["happy"].T / 0.75
    for row in got[0]:
        assert torch.allclose(row, kept, atol=1e-5) or torch.allclose(row, torch.zeros_like(row), atol=1e-6)


@torch.no_grad()
def test_a_fresh_adapter_starts_as_the_base(tiny_base: Base, rows: list[Row]) -> None:
    before = tiny_base.network(collate(rows, 8))
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    bank.add("happy", rank=4, alpha=8.0, seed=0)
    assert_same(tiny_base.network(_batch(rows, *[(1.0,)] * 3)), before, atol=0.0)
    assert bank.delta_norm("happy") == 0.0
    for _, a_RI, b_OR, scale in bank.factors("happy"):
        assert scale == 2.0
        assert not b_OR.any()
        # Kaiming uniform with a = sqrt(5) is uniform in ±1/sqrt(in).
        bound = a_RI.shape[1] ** -0.5
        assert 0.8 * bound < a_RI.abs().max() <= bound


def test_the_draw_of_an_adapter_follows_its_seed(tiny_base: Base) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        bank.add(name, rank=2, alpha=4.0, seed=seed)
    drawn = {name: [a_RI for _, a_RI, _, _ in bank.factors(name)] for name in bank.names}
    assert all(torch.equal(a, b) for a, b in zip(drawn["one"], drawn["same"], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn["one"], drawn["other"], strict=True))
    assert not torch.equal(drawn["one"][0], drawn["one"][1]), "layers of one shape share their draw"


@torch.no_grad()
@pytest.mark.parametrize("blend", [{"happy": 0.6, "sad": 0.4}, {"happy": 1.0}, {"sad": -0.5, "happy": 1.5}])
def test_pitfall_14_a_blend_is_the_dense_sum_of_the_changes(
    tiny_base: Base, tiny_base_folder: Path, rows: list[Row], blend: dict[str, float]
) -> None:
    bank = _bank(tiny_base, "happy", "sad")
    gate = tuple(bank.gate(blend).tolist())
    blended = tiny_base.network(_batch(rows, *[gate] * 3))
    dense = load_base(str(tiny_base_folder))
    untouched = dense.network(collate(rows, 8))
    add_dense(dense, dense_deltas(bank, blend))
    expected = dense.network(collate(rows, 8))
    assert_same(blended, expected)
    assert_differ(expected, untouched)


@torch.no_grad()
def test_pitfall_14_the_sum_of_adapters_of_unlike_rank_and_scale_is_the_dense_sum(tiny_base: Base) -> None:
    bank = _bank(tiny_base, "happy", "sad")
    summed = {site: (a_RI, b_OR, scale) for site, a_RI, b_OR, scale in bank.summed(["happy", "sad"])}
    for site, change_OI in dense_deltas(bank, {"happy": 1.0, "sad": 1.0}).items():
        a_RI, b_OR, scale = summed[site]
        assert b_OR is not None
        assert scale == bank.sites[site].scale["happy"] != bank.sites[site].scale["sad"]
        assert torch.allclose(scale * b_OR @ a_RI, change_OI, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("part", PARTS)
def test_pitfall_14_both_halves_of_the_network_carry_the_blend(
    tiny_base: Base, tiny_base_folder: Path, rows: list[Row], part: str
) -> None:
    """With the other half's adapters at zero; rows of different gates, so depth rows must find their own."""
    bank = _bank(tiny_base, "happy", "sad")
    for name in bank.names:
        for site, _, b_OR, _ in bank.factors(name):
            if not site.startswith(part):
                b_OR.zero_()
    batch = _batch(rows, (1.0, 0.0), (0.0, 0.0), (0.3, 0.7))
    mixed = tiny_base.network(batch)
    for b, blend in enumerate(({"happy": 1.0}, {}, {"happy": 0.3, "sad": 0.7})):
        dense = load_base(str(tiny_base_folder))
        add_dense(dense, dense_deltas(bank, blend))
        assert_same(_of_row(mixed, batch, b), dense.network(collate([rows[b]], 8)))


def _of_row(logits: Logits, batch: Batch, b: int) -> Logits:
    return Logits(logits.c0_NV[batch.frames_N2[:, 0] == b], logits.depth_MJV[batch.depth_frames_M2[:, 0] == b])


@torch.no_grad()
def test_rows_of_different_gates_in_one_batch_are_the_single_rows(tiny_base: Base, rows: list[Row]) -> None:
    _bank(tiny_base, "happy", "sad", "angry")
    gates = [(1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.2, 0.5, 0.3)]
    choice = [[0, 2], [1], [6, 3]]
    batch = collate([replace(row, gate=gate) for row, gate in zip(rows, gates, strict=True)], 8, choice)
    together = tiny_base.network(batch)
    for b in range(3):
        alone = tiny_base.network(collate([replace(rows[b], gate=gates[b])], 8, [choice[b]]))
        assert_same(_of_row(together, batch, b), alone)


@pytest.mark.parametrize("is_left_out", [True, False])
def test_a_zero_gate_gives_exactly_zero_gradient(
    tiny_base: Base, rows: list[Row], monkeypatch: pytest.MonkeyPatch, is_left_out: bool
) -> None:
    """Left out of the products, as on a CPU, or in them with a gate of zero, as on a GPU."""
    if not is_left_out:
        monkeypatch.setattr(GateSwitch, "is_on", lambda _self, _place: True)
    bank = _bank(tiny_base, "happy", "sad")
    _backward(tiny_base, _batch(rows, (1.0, 0.0), (0.0, 0.0), (0.7, 0.0)))
    for name, parameter in bank.parameters("happy").items():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 1e-6, name
    idle = [parameter.grad for parameter in bank.parameters("sad").values()]
    assert all(grad is None for grad in idle) if is_left_out else not any(grad.any() for grad in idle)
    assert all(parameter.grad is None for parameter in tiny_base.model.parameters() if not parameter.requires_grad)


def test_pitfall_22_adapters_trained_in_one_batch_get_the_gradients_of_their_own_rows(
    tiny_base: Base, rows: list[Row]
) -> None:
    bank = _bank(tiny_base, "happy", "sad")
    alone: dict[str, dict[str, torch.Tensor]] = {}
    for name, row, gate in (("happy", rows[0], (1.0, 0.0)), ("sad", rows[1], (0.0, 1.0))):
        _backward(tiny_base, collate([replace(row, gate=gate)], 8))
        alone[name] = {key: p.grad.clone() for key, p in bank.parameters(name).items()}
        tiny_base.model.zero_grad()
    _backward(tiny_base, collate([replace(rows[0], gate=(1.0, 0.0)), replace(rows[1], gate=(0.0, 1.0))], 8))
    for name in bank.names:
        for key, parameter in bank.parameters(name).items():
            torch.testing.assert_close(parameter.grad, alone[name][key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gates", [[(1.0, 0.0)] * 3, [(0.0, 1.0), (0.0, 0.0), (0.4, 0.6)]])
@pytest.mark.parametrize("dropped", [0.0, 0.3])
def test_pitfall_15_checkpointing_leaves_the_gradients_alone(
    tiny_base: Base, rows: list[Row], gates: list[tuple[float, float]], dropped: float
) -> None:
    """Also when another forward, under another gate and masks, runs between a forward and its backward."""
    bank = _bank(tiny_base, "happy", "sad")
    batch = _batch(rows, *gates)
    other = _batch(rows, *[gate[::-1] for gate in gates])
    kept = _gradients(tiny_base, bank, batch, other, dropped)
    tiny_base.network.enable_checkpointing()
    tiny_base.network.train()
    layers = [layer for layer in tiny_base.network.modules() if type(layer).__name__ == "CsmDecoderLayer"]
    runs = [0]
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    computed_again = _gradients(tiny_base, bank, batch, other, dropped)
    assert runs[0] == 3 * len(layers), "forward of the batch, of the other one, and one recomputation"
    assert max(gradient.abs().max() for gradient in kept.values()) > 1e-3
    assert computed_again.keys() == kept.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(computed_again[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max() + 1))


def _gradients(base: Base, bank: AdapterBank, batch: Batch, other: Batch, dropped: float) -> dict[str, torch.Tensor]:
    with base.network.gates.dropout(dropped, seed=3):
        c0, depth = code_losses(base.network(batch), batch)
        base.network(other)
    (c0.total + depth.total).backward()
    named = {f"{name} {key}": p for name in bank.names for key, p in bank.parameters(name).items()}
    gradients = {key: p.grad.clone() for key, p in named.items() if p.grad is not None}
    base.model.zero_grad()
    return gradients


def test_checkpointing_computes_nothing_twice_in_eval_mode(tiny_base: Base, rows: list[Row]) -> None:
    _bank(tiny_base, "happy")
    tiny_base.network.enable_checkpointing()
    runs = []
    tiny_base.network.backbone.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    _backward(tiny_base, _batch(rows, *[(1.0,)] * 3))
    assert len(runs) == 1


def test_pitfall_03_only_backbone_and_depth_decoder_carry_adapters(tiny_base: Base) -> None:
    model = CsmForConditionalGeneration.from_pretrained(tiny_base.folder).requires_grad_(False)
    codec = {name for name, _ in model.codec_model.named_modules()}
    assert any(name.endswith("q_proj") for name in codec), "the codec has no such layer, so this test says nothing"
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.endswith((*ATTENTION, *MLP))
        and not name.startswith("codec_model.")
    ]
    bank = AdapterBank(model, tiny_base.network.gates)
    bank.add("happy", rank=2, alpha=2.0, seed=0)
    assert sorted(bank.sites) == sorted(linear)
    assert len(linear) == 7 * 4
    assert {site.split(".")[0] for site in bank.sites} == set(PARTS)
    assert not any(isinstance(module, GatedLora) for module in model.codec_model.modules())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * len(linear) == len(bank.parameters("happy"))


def test_pitfall_03_a_misspelt_target_names_its_neighbours(tiny_base: Base) -> None:
    with pytest.raises(AdapterError, match=r"named 'q_prj'; did you mean q_proj"):
        AdapterBank(tiny_base.model, tiny_base.network.gates, ("v_proj", "q_prj"))
    with pytest.raises(AdapterError, match=r"named 'zzz'; there are .*down_proj.*q_proj"):
        AdapterBank(tiny_base.model, tiny_base.network.gates, ("zzz",))
    with pytest.raises(AdapterError, match="at least one target"):
        AdapterBank(tiny_base.model, tiny_base.network.gates, ())
    assert not any(isinstance(module, GatedLora) for module in tiny_base.model.modules()), "refused half-way"


def test_all_targets_are_the_names_of_all_linear_layers(tiny_base: Base) -> None:
    assert set(all_targets(tiny_base.model)) == {*ATTENTION, *MLP, "inputs_embeds_projector"}


@pytest.mark.parametrize("seed", range(3))
def test_delta_norm_is_the_dense_norm(tiny_base: Base, seed: int) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, ("q_proj", "down_proj"))
    random_adapter(bank, "happy", rank=1 + 3 * seed, alpha=5.0, seed=seed)
    dense = sum(delta.square().sum().item() for delta in dense_deltas(bank, {"happy": 1.0}).values()) ** 0.5
    assert bank.delta_norm("happy") == pytest.approx(dense, rel=1e-5)
    assert dense > 0.1


def test_gates_are_named(tiny_base: Base) -> None:
    bank = _bank(tiny_base, "happy", "sad")
    assert bank.gate({"sad": 0.25}).tolist() == [0.0, 0.25]
    assert bank.gate({}).tolist() == [0.0, 0.0]
    with pytest.raises(AdapterError, match=r"'angry'; loaded: happy, sad"):
        bank.gate({"angry": 1.0})


@pytest.mark.parametrize("name", ["", "a.b", "pop", "training", "happy=1", "happy,sad", " sad"])
def test_names_that_torch_cannot_keep_or_a_blend_cannot_say_are_refused(tiny_base: Base, name: str) -> None:
    bank = _bank(tiny_base, "happy")
    with pytest.raises(AdapterError, match="can't be named"):
        bank.add(name, rank=2, alpha=2.0, seed=0)
    with pytest.raises(AdapterError, match="already an adapter named 'happy'"):
        bank.add("happy", rank=2, alpha=2.0, seed=0)
    assert bank.names == ["happy"]
    assert all(len(site.A) == 1 for site in bank.sites.values())


def test_one_bank_per_model(tiny_base: Base) -> None:
    _bank(tiny_base, "happy")
    with pytest.raises(AdapterError, match="already has a bank of adapters"):
        AdapterBank(tiny_base.model, tiny_base.network.gates)


def test_inserted_tensors_are_copies(tiny_base: Base) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, ("q_proj",))
    tensors = {site: (torch.ones(1, 128), torch.ones(128, 1)) for site in bank.sites if site.startswith("backbone")}
    bank.insert("happy", tensors, dict.fromkeys(tensors, 1.0))
    with torch.no_grad():
        for parameter in bank.parameters("happy").values():
            parameter.zero_()
    assert all(a.all() and b.all() for a, b in tensors.values())


@torch.no_grad()
def test_a_layer_that_an_adapter_lacks_is_the_bases(tiny_base: Base, tiny_base_folder: Path, rows: list[Row]) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    chosen = "depth_decoder.model.layers.0.mlp.up_proj"
    delta = (0.1 * torch.randn(2, 64), 0.1 * torch.randn(192, 2))
    bank.insert("happy", {chosen: delta}, {chosen: 2.0})
    dense = load_base(str(tiny_base_folder))
    add_dense(dense, {chosen: 2.0 * delta[1] @ delta[0]})
    assert_same(tiny_base.network(_batch(rows, *[(1.0,)] * 3)), dense.network(collate(rows, 8)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outs", [(5,), (5, 3, 4)], ids=["one", "three"])
def test_the_one_operation_equals_autograd_s_own_road(outs: tuple[int, ...], dtype: torch.dtype) -> None:
    """For one layer, and for three of unlike sizes and ranks that read one input."""
    generator = torch.Generator().manual_seed(3)
    layers = [torch.nn.Linear(6, num_out).to(dtype).requires_grad_(False) for num_out in outs]

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    x, ranks = drawn(4, 3, 6), [7 - k for k in range(len(outs))]
    factors = [(drawn(rank, 6), drawn(num_out, rank)) for rank, num_out in zip(ranks, outs, strict=True)]
    gate_B1R = torch.rand(4, 1, sum(ranks), generator=generator).to(dtype)
    upstream = [torch.randn(4, 3, num_out, generator=generator).to(dtype) for num_out in outs]
    plain = [
        layer(x) + ((x @ a_RI.T) * gate_B1r) @ b_OR.T
        for layer, (a_RI, b_OR), gate_B1r in zip(layers, factors, gate_B1R.split(ranks, dim=2), strict=True)
    ]
    ours = gated_linears(x, layers, factors, gate_B1R.to)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(list(ours), plain, atol=tolerance, rtol=tolerance)
    inputs = (x, *(factor for pair in factors for factor in pair))
    expected = torch.autograd.grad(plain, inputs, upstream)
    for found, wanted in zip(torch.autograd.grad(ours, inputs, upstream), expected, strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, atol=4 * tolerance, rtol=4 * tolerance)


def test_layers_of_one_input_together_are_each_alone(tiny_base: Base) -> None:
    """Adapted alike in one operation; if one is the base's, dropout is on or a change is of full rank, one by one."""
    bank = _bank(tiny_base, "happy", "sad")
    gates = tiny_base.network.gates
    attention = tiny_base.model.get_submodule("backbone_model.layers.0.self_attn")
    q, *others = sites = [attention.q_proj, attention.k_proj, attention.v_proj]
    x = torch.randn(2, 3, q.shape[1])
    rows_BE = torch.tensor([[1.0, 0.0], [0.3, -0.5]])
    named: list[torch.Tensor] = list(bank.parameters("happy").values())
    with gates.set(rows_BE):
        calls = []
        for road in (lambda: q.with_others(others, x), lambda: [site(x) for site in sites]):
            ys = road()
            calls.append((ys, torch.autograd.grad(sum((y * y).sum() for y in ys), named, allow_unused=True)))
        assert len({y.grad_fn for y in calls[0][0]}) == 1, "they are one operation's"
        for mine, alone in zip(*([*ys, *(g for g in grads if g is not None)] for ys, grads in calls), strict=True):
            torch.testing.assert_close(mine, alone)
        with gates.dropout(0.5, 1):
            first = q.with_others(others, x)
        with gates.dropout(0.5, 1):
            assert all(torch.equal(a, b) for a, b in zip(first, [site(x) for site in sites], strict=True))
        assert len({y.grad_fn for y in q.with_others([others[0], torch.nn.Identity()], x)}) > 1
    base = q.with_others(others, x)
    assert all(torch.equal(y, site.layer(x)) for y, site in zip(base, sites, strict=True))
    bank.add_full("whole")
    with gates.set(torch.ones(2, 3)):
        assert len({y.grad_fn for y in q.with_others(others, x)}) == 3


def test_factors_are_cast_together_once_and_their_gradients_come_back(tiny_base: Base, rows: list[Row]) -> None:
    """In bfloat16 by autocast: the same answers and gradients, one cast for each factor however often it is read."""
    bank = _bank(tiny_base, "happy", "sad")
    gates, batch = tiny_base.network.gates, _batch(rows, *[(1.0, 0.5)] * 3)
    trained = bank.parameters("happy")
    for parameter in bank.parameters("sad").values():
        parameter.requires_grad_(False)

    def gradients() -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            c0, depth = code_losses(tiny_base.network(batch), batch)
        (c0.total + depth.total).backward()
        found = {}
        for name, parameter in trained.items():
            assert parameter.grad is not None
            found[name], parameter.grad = parameter.grad, None
        return found

    alone = gradients()
    with gates.one_cast():
        together = gradients()
        for name in ("happy", "sad"):
            (site,) = [site for path, site in bank.sites.items() if path.endswith("layers.0.self_attn.o_proj")][:1]
            first, again = (gates.cast(site.A[name], torch.bfloat16) for _ in range(2))
            assert first is again
            assert first.dtype == torch.bfloat16
            assert first.requires_grad == (name == "happy")
            assert gates.cast(site.A[name], torch.float32) is site.A[name]
    assert gates.cast(site.A["happy"], torch.bfloat16) is not first, "outside of the block they are cast anew"
    for name, gradient in alone.items():
        assert gradient.abs().max() > 0
        assert together[name].dtype == torch.float32
        assert torch.equal(together[name], gradient), name


def test_autocast_computes_in_its_own_type_and_leaves_gradients_in_the_parameters() -> None:
    layer = torch.nn.Linear(6, 5).requires_grad_(False)
    x, a_RI, b_OR = (torch.randn(shape, requires_grad=True) for shape in ((4, 3, 6), (7, 6), (5, 7)))
    with torch.autocast("cpu", torch.bfloat16):
        (y,) = gated_linears(x, [layer], [(a_RI, b_OR)], torch.ones(4, 1, 7).to)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    for leaf in (x, a_RI, b_OR):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
    whole = layer(x) + (x @ a_RI.T) @ b_OR.T
    torch.testing.assert_close(y.float(), whole, atol=0.2, rtol=0.05)
