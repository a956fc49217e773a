"""Memory of speaking, against what the engine really keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MimiModel

from affetto.adapters.bank import AdapterBank
from affetto.codes.neural import MimiCodec
from affetto.model.base import BASES, Base
from affetto.planning.plan import base_config
from affetto.planning.speaking import Speaking, codec_bytes, plan_speaking
from affetto.planning.storage import adapter_parameters
from affetto.planning.tracing import ShapeOnly, shape_only
from affetto.speak.layers import Cache, Rotary
from affetto.speak.state import FRAMES_OF_A_ROOM, SLOTS_OF_A_ROOM
from affetto.speak.weights import Arranged, SpeakingWeights

TARGETS, RANK = ("q_proj", "v_proj", "up_proj", "down_proj"), 4


def bytes_of(tensors: Iterable[Tensor | None], but: Iterable[Tensor] = ()) -> int:
    """Memory behind tensors, shared memory once, without that behind others."""
    known = {tensor.untyped_storage().data_ptr() for tensor in but}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(size for place, size in storages.items() if place not in known)


def tensors_of(arranged: Arranged) -> list[Tensor | None]:
    sites = [arranged.projector]
    for layer in (*arranged.backbone, *arranged.depth):
        sites += [layer.qkv, layer.out, layer.gate_up, layer.down]
    return [tensor for site in sites for tensor in (site.w, site.a_GIR, site.b_GRO)]


def shape_of(base: Base, rank: int | None) -> tuple[Any, ShapeOnly]:
    config = base_config(str(base.folder))
    return config, shape_only(config, torch.float32, TARGETS, "both", rank, checkpointing=False)


def told(base: Base, rank: int | None, num_adapters: int, device: str, takes: int = 1) -> Speaking:
    config, shape = shape_of(base, rank)
    found = plan_speaking(
        config, BASES["csm"].outline, shape, rank, num_adapters, 2.0, device=device, runtime=0, takes=takes
    )  # fmt: skip
    assert found is not None
    return found


@pytest.mark.parametrize("rank", [RANK, None], ids=["lora", "full"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_parts_are_what_the_engine_keeps(tiny_base: Base, device: str, rank: int | None) -> None:
    """A GPU's engine works on the base's own memory, which a CPU can do as well."""
    is_shared = device == "cuda"
    model = tiny_base.model.to(torch.bfloat16 if is_shared else torch.float32)
    # CSM-1B stores this table once, and so it is planned.
    network = tiny_base.network
    network.depth.model.embed_tokens.weight = network.backbone.embed_tokens.embed_audio_tokens.weight
    bank = AdapterBank(model, tiny_base.network.gates, TARGETS)
    for name in ("happy", "sad"):
        if rank is None:
            bank.add_full(name)
        else:
            bank.add(name, rank, 8.0, 0)
    expected = told(tiny_base, rank, 2, device)
    assert expected.precision == str(model.dtype).removeprefix("torch.")
    own = [tensor for name, tensor in model.named_parameters() if ".A." not in name and ".B." not in name]
    buffers = list(model.buffers())
    on_host = [tiny_base.network.embed_text.weight] if is_shared else []
    assert expected.parts["weights"] == pytest.approx(bytes_of([*own, *buffers], on_host), rel=1e-3)
    factors = [p for name in bank.names for p in bank.parameters(name).values()]
    assert expected.parts["adapters"] == (0 if is_shared else bytes_of(factors))
    weights = SpeakingWeights(tiny_base.network, is_shared=is_shared)
    plain, happy = weights.arranged([(0.0, 0.0)]), weights.arranged([(1.0, 0.0)])
    heads = [weights.c0_head_DC, *weights.heads_DC]
    kept = list(model.parameters())
    assert expected.parts["copies"] == bytes_of([*tensors_of(plain), *heads], kept)
    codec = MimiCodec(MimiModel(base_config(str(tiny_base.folder)).codec_config), 8).to("meta", speaks_only=is_shared)
    tensors = [*codec.model.parameters(), *codec.model.buffers()]
    assert expected.parts["codec"] == sum(tensor.nbytes for tensor in tensors if tensor.device.type == "meta")
    assert expected.parts["arrangements"] == 2 * bytes_of(
        tensors_of(happy), [t for t in (*tensors_of(plain), *kept) if t is not None]
    )
    cache = [Cache.empty(len(happy.backbone), 1, SLOTS_OF_A_ROOM, weights.backbone_shape, weights.norm_D)]
    cache.append(Cache.empty(len(happy.depth), 1, 8, weights.depth_shape, weights.norm_D))
    rotary = Rotary(weights.backbone_shape, SLOTS_OF_A_ROOM, weights.dtype)
    depth_rotary = Rotary(weights.depth_shape, 8, weights.dtype)
    tensors = [values for one in cache for values in (one.keys_LNDS, one.values_LNSD)]
    tensors += [values for one in (rotary, depth_rotary) for values in (one.cos_S2H, one.sin_S2H)]
    one_room = bytes_of(tensors) + 4 * FRAMES_OF_A_ROOM * 8
    assert expected.parts["rooms"] == (2 if is_shared else 1) * one_room
    assert expected.peak_bytes >= sum(expected.parts.values())


def test_arrangements_are_only_so_many(tiny_base: Base) -> None:
    """Four are kept, and on a GPU the one that is being spoken in stands beside four open rooms."""
    one, four, six = (told(tiny_base, RANK, count, "cpu").parts["arrangements"] for count in (1, 4, 6))
    assert (four, six) == (4 * one, 4 * one)
    five, six = (told(tiny_base, RANK, count, "cuda") for count in (5, 6))
    assert five.parts["arrangements"] == six.parts["arrangements"]
    assert six.peak_bytes == five.peak_bytes, "a further adapter waits on the host"


def test_takes_are_rows_of_a_room(tiny_base: Base) -> None:
    one, four = (told(tiny_base, RANK, 2, "cpu", takes=number) for number in (1, 4))
    assert four.parts["rooms"] == 4 * one.parts["rooms"]


def test_csm_1b_speaks_as_measured() -> None:
    """3,102 MiB on an H100 with one take (benchmarks/results/memory.json, `csm-1b-speaking`)."""
    stored = json.loads(
        (Path(__file__).parents[2] / "benchmarks" / "results" / "memory.json").read_text(encoding="utf-8")
    )
    stages = {stage["stage"]: stage["measured_mib"] for stage in stored["cases"]["csm-1b-speaking"]["stages"]}
    config = base_config("random:csm-1b")
    shape = shape_only(config, torch.bfloat16, ("both",), "both", 16, checkpointing=False)
    found = plan_speaking(config, BASES["csm"].outline, shape, 16, 6, 2.5, device="cuda", runtime=0)
    assert found is not None
    assert (found.num_adapters, found.precision) == (6, "bfloat16")
    assert found.parts["weights"] / 2**20 == pytest.approx(stages["loading"], rel=0.001)
    # Codes were measured, without the codec: of Mimi's published 96 million weights those that speak.
    assert codec_bytes(config) == pytest.approx(4 * 96.15e6, rel=0.001)
    assert found.parts["codec"] < 0.6 * codec_bytes(config)
    codes = found.peak_bytes - found.parts["codec"]
    # Then the six adapters were on the GPU.
    adapters = 4 * 6 * adapter_parameters({path: tuple(site.shape) for path, site in shape.bank.sites.items()}, 16)
    assert (codes + adapters) / 2**20 == pytest.approx(stages["six_sentences"], rel=0.02)
    six = plan_speaking(config, BASES["csm"].outline, shape, 16, 6, 2.5, device="cuda", runtime=0, takes=6)
    assert six is not None
    assert six.peak_bytes - found.peak_bytes == 5 * found.parts["rooms"]
    assert six.peak_bytes < 3.5e9


def test_the_command_tells_of_speaking(
    affetto: Callable[..., tuple[int, str, str]], tiny_base_folder: Path, moshi_folder: Path
) -> None:
    options = ("--clips", 20, "--seconds", 1, "--device", "cpu", "--tflops", 0.01)
    status, out, _ = affetto("plan", "--base", tiny_base_folder, *options)
    assert status == 0
    assert "Speaking in float32 with 6 adapters" in out
    document = json.loads(affetto("plan", "--base", tiny_base_folder, *options, "--json")[1])
    assert document["speaking"]["peak_bytes"] >= sum(document["speaking"]["parts"].values())
    told = ("--base", moshi_folder, *options, "--json")
    settings = json.loads(affetto("plan", *told)[1])
    assert settings["speaking"] is None
    assert any("speaking isn't planned" in line for line in settings["assumptions"])
