"""Presets and parts: the layers that they mean, and adapter files that say the same to PEFT and to us."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_tools import assert_differ, assert_same, random_adapter
from peft import PeftModel

from affetto.adapters.bank import AdapterBank, all_targets
from affetto.adapters.peft_files import insert_adapter, read_adapter, save_adapter
from affetto.adapters.targets import Part, expand_targets
from affetto.errors import AdapterError
from affetto.files import read_json
from affetto.model.base import Base, load_base
from affetto.model.batch import Row, collate

# The tiny base has 2 layers in each part, of 4 attention and 3 feed-forward matrices.
NUM_LAYERS = {
    ("attention", "both"): 16, ("mlp", "both"): 12, ("both", "both"): 28,
    ("attention", "backbone"): 8, ("mlp", "backbone"): 6, ("both", "backbone"): 14,
    ("attention", "depth"): 8, ("mlp", "depth"): 6, ("both", "depth"): 14,
}  # fmt: skip


def test_presets_stand_for_layers_and_nothing_is_named_twice() -> None:
    assert expand_targets(["attention"]) == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert expand_targets(["mlp"]) == ("gate_proj", "up_proj", "down_proj")
    assert expand_targets(["both"]) == expand_targets(["attention", "mlp"])
    assert expand_targets(["up_proj", "mlp"]) == ("up_proj", "gate_proj", "down_proj")


@pytest.mark.parametrize(("preset", "part"), NUM_LAYERS)
def test_a_preset_in_a_part_adapts_just_these_layers(tiny_base: Base, preset: str, part: Part) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, (preset,), part)
    assert len(bank.sites) == NUM_LAYERS[preset, part]
    in_part = {"both": ("backbone_model.", "depth_decoder."), "backbone": ("backbone_model.",)}
    assert all(site.startswith(in_part.get(part, ("depth_decoder.",))) for site in bank.sites)
    kind = {"both": (".self_attn.", ".mlp."), "attention": (".self_attn.",), "mlp": (".mlp.",)}
    assert all(any(name in site for name in kind[preset]) for site in bank.sites)


def test_names_that_the_part_lacks_are_refused(tiny_base: Base) -> None:
    """`inputs_embeds_projector` is the depth decoder's alone."""
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, ("inputs_embeds_projector",), "depth")
    assert list(bank.sites) == ["depth_decoder.model.inputs_embeds_projector"]


def test_errors_name_presets_and_the_part(tiny_base: Base) -> None:
    with pytest.raises(AdapterError, match=r"of the backbone is named 'inputs_embeds_projector'; there are .*mlp"):
        AdapterBank(tiny_base.model, tiny_base.network.gates, ("inputs_embeds_projector",), "backbone")
    with pytest.raises(AdapterError, match=r"named 'atention'; did you mean attention"):
        AdapterBank(tiny_base.model, tiny_base.network.gates, ("atention",))


@torch.no_grad()
@pytest.mark.parametrize(
    ("preset", "part"), [("attention", "both"), ("mlp", "backbone"), ("both", "depth"), ("attention", "depth")]
)
def test_files_of_some_layers_load_in_peft_and_here(
    tiny_base: Base, tiny_base_folder: Path, tmp_path: Path, make_row: Callable[..., Row], preset: str, part: Part
) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, (preset,), part)
    random_adapter(bank, "happy")
    save_adapter(tmp_path / "best", bank, "happy", tiny_base.id, {"base": {"hash": tiny_base.hash}})
    assert isinstance(read_json(tmp_path / "best" / "adapter_config.json")["target_modules"], str)
    batch = collate([make_row(1, frames=(5,)), make_row(2, frames=(4,))], 8)
    trained, untouched = tiny_base.network(batch.with_gate(torch.ones(2, 1))), tiny_base.network(batch)

    # Here, in a bank that covers every layer: what a voice loads.
    base = load_base(str(tiny_base_folder))
    whole = AdapterBank(base.model, base.network.gates, all_targets(base.model))
    insert_adapter(whole, "happy", read_adapter(tmp_path / "best"), base.hash)
    assert_same(base.network(batch.with_gate(torch.ones(2, 1))), trained)

    # In PEFT: it puts adapters on the very same layers and finds all of their tensors.
    plain = load_base(str(tiny_base_folder))
    network = plain.network
    wrapped = PeftModel.from_pretrained(plain.model, tmp_path / "best")
    adapted = {name.removeprefix("base_model.model.").removesuffix(".lora_A") for name, _ in wrapped.named_modules()
               if name.endswith(".lora_A")}  # fmt: skip
    assert adapted == set(bank.sites)
    assert_same(network(batch), trained)
    if part == "depth":
        assert torch.equal(trained.c0_NV, untouched.c0_NV), "the depth decoder has no say in codebook zero"
        assert (trained.depth_MJV - untouched.depth_MJV).abs().max() > 1e-2
    else:
        assert_differ(trained, untouched)


def test_a_file_of_one_part_may_not_lose_a_layer(tiny_base: Base, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, ("mlp",), "depth")
    random_adapter(bank, "happy")
    save_adapter(tmp_path / "best", bank, "happy", tiny_base.id, {})
    insert_adapter(bank, "whole", read_adapter(tmp_path / "best"), tiny_base.hash)
    path = tmp_path / "best" / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if ".layers.0.mlp.up_proj." not in key}, path)
    with pytest.raises(AdapterError, match="1 layer of its target_modules has no tensors"):
        insert_adapter(bank, "lossy", read_adapter(tmp_path / "best"), tiny_base.hash)
