"""Adapters on Moshi: the stacked matrices of its depth transformer, and PEFT's files for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import MoshiForConditionalGeneration

from affetto.adapters.bank import AdapterBank, all_targets
from affetto.adapters.peft_files import insert_adapter, read_adapter, save_adapter
from affetto.errors import AdapterError
from affetto.model.base import Base
from affetto.model.batch import collate
from affetto.model.gates import GateSwitch
from banks import trained_bank
from moshi_checkpoint import moshi_row

FACTS = {"base": {"id": "tiny", "hash": None}}


@torch.no_grad()
def test_presets_mean_moshis_own_layers(tiny_moshi: Base) -> None:
    bank = AdapterBank(tiny_moshi.model, tiny_moshi.network.gates)
    main = {site for site in bank.sites if site.startswith("decoder.")}
    leaves = {f"self_attn.{p}_proj.linear" for p in "qkvo"} | {"mlp.fc1", "mlp.fc2"}
    assert main == {f"decoder.model.layers.{n}.{leaf}" for n in range(2) for leaf in leaves}
    depth = {site for site in bank.sites if site.startswith("depth_decoder.")}
    assert depth == {f"depth_decoder.layers.{n}.{leaf}.{k}" for n in range(2) for leaf in leaves for k in range(4)}
    assert set(bank.sites) == main | depth


def test_a_name_that_moshi_lacks_is_an_error(tiny_moshi: Base) -> None:
    with pytest.raises(AdapterError, match=r"no linear layer.*'gate_proj'"):
        AdapterBank(tiny_moshi.model, tiny_moshi.network.gates, ("gate_proj",))
    assert set(all_targets(tiny_moshi.model)) == {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}


@torch.no_grad()
def test_gates_at_zero_are_the_base(tiny_moshi: Base) -> None:
    rows = [moshi_row(0, frames=7), moshi_row(1, frames=4)]
    before = tiny_moshi.network(collate(rows, 4))
    trained_bank(tiny_moshi)
    off = tiny_moshi.network(collate(rows, 4))
    zero = tiny_moshi.network(collate([moshi_row(0, frames=7, gate=(0.0,)), moshi_row(1, frames=4, gate=(0.0,))], 4))
    for name in ("text_NW", "c0_NV", "depth_MJV"):
        # One matrix after another and all at once round differently.
        torch.testing.assert_close(getattr(off, name), getattr(before, name), rtol=1e-5, atol=1e-5)
        assert torch.equal(getattr(zero, name), getattr(off, name))


@torch.no_grad()
@pytest.mark.parametrize("part", ["both", "backbone", "depth"])
def test_the_gated_network_is_the_base_with_changed_weights(tiny_moshi: Base, moshi_folder: Path, part: str) -> None:
    """Oracle: s·B·A added to the weights of a fresh model by hand."""
    from affetto.model.moshi import MoshiNetwork

    bank = trained_bank(tiny_moshi, part=part)
    model = MoshiForConditionalGeneration.from_pretrained(moshi_folder, dtype=torch.float32).eval()
    weights = dict(model.named_parameters())
    for site, a_RI, b_OR, scale in bank.factors("happy"):
        assert b_OR is not None
        path, _, number = site.rpartition(".")
        if path in bank.stacks:
            weights[f"{path}.weight"][int(number)] += scale * b_OR @ a_RI
        else:
            weights[f"{site}.weight"].add_(scale * b_OR @ a_RI)
    row = moshi_row(2, frames=8)
    mine = tiny_moshi.network(collate([moshi_row(2, frames=8, gate=(1.0,))], 4))
    dense, plain = MoshiNetwork(model)(collate([row], 4)), tiny_moshi.network(collate([row], 4))
    for name in ("text_NW", "c0_NV", "depth_MJV"):
        torch.testing.assert_close(getattr(mine, name), getattr(dense, name), rtol=1e-4, atol=1e-4)
    assert (mine.depth_MJV - plain.depth_MJV).abs().max() > 1e-2
    assert ((mine.text_NW - plain.text_NW).abs().max() > 1e-2) == (part != "depth")  # type: ignore[operator]


@torch.no_grad()
@pytest.mark.parametrize("part", ["both", "backbone", "depth"])
def test_peft_alone_loads_what_is_saved(tiny_moshi: Base, moshi_folder: Path, tmp_path: Path, part: str) -> None:
    bank = trained_bank(tiny_moshi, part=part)
    save_adapter(tmp_path / "best", bank, "happy", "tiny", FACTS)
    model = MoshiForConditionalGeneration.from_pretrained(moshi_folder, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, tmp_path / "best").eval()
    row = moshi_row(3, frames=9)
    turn, batch = row.turns[0], collate([moshi_row(3, frames=9, gate=(1.0,))], 4)
    mine, network = tiny_moshi.network(batch), tiny_moshi.network
    heard = adapted.base_model.model.decoder(inputs_embeds=network.embed(batch)).last_hidden_state
    text = adapted.base_model.model.decoder.lm_head(heard)[0, : row.num_frames]
    torch.testing.assert_close(mine.text_NW, text, rtol=1e-4, atol=1e-4)
    assert turn.codes_TK is not None
    steps = network.steps(batch)
    depth = adapted.base_model.model.depth_decoder(
        input_ids=network._depth_inputs(batch, steps), last_hidden_state=heard[0, steps[:, 1], None], use_cache=False
    ).logits  # fmt: skip
    torch.testing.assert_close(mine.c0_NV, depth[:-1, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine.depth_MJV, depth[1:, 1:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_saved_adapter_comes_back_bit_by_bit(tiny_moshi: Base, moshi_folder: Path, tmp_path: Path) -> None:
    from affetto.model.base import load_base

    bank = trained_bank(tiny_moshi)
    save_adapter(tmp_path / "best", bank, "happy", "tiny", FACTS)
    other = load_base(str(moshi_folder))
    again = AdapterBank(other.model, other.network.gates)
    insert_adapter(again, "happy", read_adapter(tmp_path / "best"), other.hash)
    mine, theirs = list(bank.factors("happy")), list(again.factors("happy"))
    assert len(mine) == len(theirs) == 12 + 12 * 4
    for (site, a_RI, b_OR, scale), (same, a2_RI, b2_OR, scale2) in zip(mine, theirs, strict=True):
        assert (site, scale) == (same, scale2)
        assert b_OR is not None
        assert b2_OR is not None
        assert torch.equal(a_RI, a2_RI)
        assert torch.equal(b_OR, b2_OR)


def test_a_lost_stack_is_named(tiny_moshi: Base, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bank = trained_bank(tiny_moshi)
    save_adapter(tmp_path / "best", bank, "happy", "tiny", FACTS)
    path = tmp_path / "best" / "adapter_model.safetensors"
    lost = "depth_decoder.layers.1.self_attn.q_proj.linear"
    kept = {name: value for name, value in load_file(path).items() if lost not in name}
    save_file(kept, path, metadata={"format": "pt"})
    bank.names.clear()
    with pytest.raises(AdapterError, match=rf"4 layers of its target_modules have no tensors: {lost}"):
        insert_adapter(bank, "sad", read_adapter(tmp_path / "best"), tiny_moshi.hash)


@torch.no_grad()
def test_a_fully_tuned_moshi_is_a_checkpoint_of_its_own(tiny_moshi: Base, moshi_folder: Path, tmp_path: Path) -> None:
    """The stacks are put together again: transformers and affetto load it, and it says what the bank says."""
    from affetto.adapters.checkpoints import load_adapter, save_checkpoint
    from affetto.model.base import load_base

    bank = AdapterBank(tiny_moshi.model, tiny_moshi.network.gates)
    bank.add_full("happy")
    for _, change_OI, _, _ in bank.factors("happy"):
        change_OI.normal_(std=0.02)
    save_checkpoint(tmp_path / "best", bank, "happy", tiny_moshi.model, moshi_folder, FACTS)
    mine = tiny_moshi.network(collate([moshi_row(4, frames=8, gate=(1.0,))], 4))
    tuned = load_base(str(tmp_path / "best")).network(collate([moshi_row(4, frames=8)], 4))
    torch.testing.assert_close(mine.depth_MJV, tuned.depth_MJV, rtol=1e-4, atol=1e-4)
    MoshiForConditionalGeneration.from_pretrained(tmp_path / "best")
    other = load_base(str(moshi_folder))
    again = AdapterBank(other.model, other.network.gates)
    load_adapter(again, "happy", tmp_path / "best", other.hash, allow_other_base=True)
    back = other.network(collate([moshi_row(4, frames=8, gate=(1.0,))], 4))
    torch.testing.assert_close(mine.depth_MJV, back.depth_MJV, rtol=1e-4, atol=1e-4)


def test_pitfall_15_checkpointing_changes_no_gradient(tiny_moshi: Base) -> None:
    """Backward computes the layers again, under the gates of their own forward: B rows, and a row per depth step."""
    bank = trained_bank(tiny_moshi)
    bank.add("sad", rank=2, alpha=2.0, seed=1)
    rows = [moshi_row(5, frames=6, gate=(1.0, 0.0)), moshi_row(6, frames=4, gate=(0.0, 0.5))]
    found = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            tiny_moshi.network.enable_checkpointing()
        tiny_moshi.network.train()
        for parameter in bank.parameters("happy").values():
            parameter.grad = None
        said = tiny_moshi.network(collate(rows, 4))
        assert said.text_NW is not None
        (said.text_NW.square().sum() + said.c0_NV.square().sum() + said.depth_MJV.square().sum()).backward()
        found.append({name: parameter.grad.clone() for name, parameter in bank.parameters("happy").items()})  # type: ignore[union-attr]
    assert all(gradient.abs().max() > 0 for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5)


def test_pitfall_22_a_zero_gate_gives_exactly_zero_gradient(tiny_moshi: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the products, as on a GPU; a CPU leaves such an adapter out."""
    monkeypatch.setattr(GateSwitch, "is_on", lambda _self, _place: True)
    bank = trained_bank(tiny_moshi)
    tiny_moshi.network(collate([moshi_row(7, frames=5, gate=(0.0,))], 4)).c0_NV.square().sum().backward()
    grads = [parameter.grad for parameter in bank.parameters("happy").values()]
    assert any(grad is not None for grad in grads)
    assert not any(grad is not None and grad.any() for grad in grads)
