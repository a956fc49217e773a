"""Bytes that stay, against what the library writes and keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from affetto.adapters.bank import AdapterBank
from affetto.codes.cache import CodeCache
from affetto.config import Config
from affetto.model.base import Base
from affetto.model.batch import Row
from affetto.planning.storage import (
    adapter_parameters,
    codes_bytes_per_hour,
    teacher_bytes,
    weight_bytes,
)
from affetto.planning.workload import Data, workload
from affetto.preserve.curvature import CONTROLS, CURVATURES
from affetto.preserve.curvature.memory import curvature_bytes
from affetto.preserve.fisher import estimate_fisher
from affetto.preserve.teacher import teacher_cache
from affetto.training.batches import plan_run


def _shapes(bank: AdapterBank) -> dict[str, tuple[int, ...]]:
    return {path: tuple(site.layer.weight.shape) for path, site in bank.sites.items()}


@pytest.mark.parametrize("name", sorted(CURVATURES))
def test_a_curvature_is_as_large_as_foretold(tiny_base: Base, make_row: Callable[..., Row], name: str) -> None:
    rows = [make_row(seed, frames=(14,)) for seed in range(3)]
    modules = {site: tiny_base.model.get_submodule(site) for site in (
        "backbone_model.layers.0.self_attn.k_proj", "depth_decoder.model.layers.1.mlp.up_proj"
    )}  # fmt: skip
    found = estimate_fisher(tiny_base.network, modules, rows, CURVATURES[name]())
    shapes = {site: tuple(module.weight.shape) for site, module in modules.items()}
    assert curvature_bytes(name, shapes, len(rows), 16) == sum(found.site_memory().values())
    assert curvature_bytes(name, shapes, 0, 16) == 0


def test_every_curvature_has_its_size() -> None:
    for name in (*CURVATURES, *CONTROLS):
        assert curvature_bytes(name, {"layer": (8, 6)}, 2, 4) > 0
    assert curvature_bytes("factors", {"layer": (8, 6)}, 2, 4) == 4 * 8 * 4


def test_adapters_and_weights_are_counted_once(tiny_base: Base) -> None:
    everything = sum(p.nbytes for p in tiny_base.model.parameters()) + sum(b.nbytes for b in tiny_base.model.buffers())
    assert weight_bytes(tiny_base.model) == everything
    text = tiny_base.network.embed_text.weight.nbytes
    assert weight_bytes(tiny_base.model, ("embed_text_tokens.",)) == everything - text
    tiny_base.network.backbone.embed_tokens.embed_audio_tokens.weight = (
        tiny_base.network.depth.model.embed_tokens.weight
    )
    assert weight_bytes(tiny_base.model) == everything - tiny_base.network.depth.model.embed_tokens.weight.nbytes
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    bank.add("happy", 4, 8.0, 0)
    bank.add_full("sad")
    for name, rank in (("happy", 4), ("sad", None)):
        assert adapter_parameters(_shapes(bank), rank) == sum(p.numel() for p in bank.parameters(name).values())


def test_caches_are_as_large_as_foretold(tiny_base: Base, make_row: Callable[..., Row], tmp_path: Path) -> None:
    rows = [make_row(seed, frames=(40,)) for seed in range(6)]
    teacher_cache(tmp_path, tiny_base.network, "hash", rows, depth_share=0.5)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert teacher_bytes(6, 41, 8, tiny_base.network.vocab_size, 0.5) == pytest.approx(size, rel=0.02)
    codes = {f"clip-{n}": np.random.default_rng(n).integers(0, 256, (450, 8)) for n in range(100)}
    CodeCache(tmp_path / "codes").add(codes)
    size = sum(path.stat().st_size for path in (tmp_path / "codes").iterdir())
    assert codes_bytes_per_hour(8, 12.5) == pytest.approx(size, rel=0.02), "100 clips of 36 s are an hour"


@pytest.mark.parametrize("changes", [{}, {"replay_ratio": 0.0}, {"batch_size": 5, "grad_accumulation_steps": 3}])
def test_a_run_has_as_many_steps_as_it_has(changes: dict[str, float]) -> None:
    config = Config(num_epochs=2, **changes)
    work = workload(config, Data(200, 4.0), 12.5)
    assert work.frames == 51
    made = plan_run(
        [work.frames] * 200, [work.frames] * 300, batch_size=config.batch_size,
        accumulation=config.grad_accumulation_steps, replay_ratio=config.replay_ratio, num_epochs=2, seed=0,
    )  # fmt: skip
    assert work.num_steps == pytest.approx(made.num_steps, abs=2)
    assert work.micro_batches == pytest.approx(sum(map(len, made.steps)), abs=4)


def test_depth_frames_are_those_drawn_and_those_of_the_teacher() -> None:
    shared = {"batch_size": 10, "replay_ratio": 0.5, "depth_frames_share": 0.25}
    plain = workload(Config(**shared, distillation_alpha=0.0), Data(100, 7.92), 12.5)
    assert plain.frames == 100
    assert (plain.depth_frames, plain.taught_share, plain.teacher_clips) == (250, 0.0, 0)
    half = shared | {"distillation_alpha": 0.5}
    taught = workload(Config(**half), Data(100, 7.92), 12.5)
    # Of the rehearsed half another quarter, of which a quarter was drawn already.
    assert (taught.depth_frames, taught.taught_share) == (round(250 + 500 * 0.25 * 0.75), 0.5)
    both = workload(Config(**half, distill_on="both"), Data(100, 7.92), 12.5)
    assert both.depth_frames == round(1000 * (0.25 + 0.25 * 0.75))
    assert both.teacher_clips == 240 + 100
    # With the KL alone only the teacher's frames are looked at.
    alone = workload(Config(**shared, teacher_frames_share=0.125), Data(100, 7.92), 12.5)
    assert alone.depth_frames == round(500 * 0.25 + 500 * 0.125)
    usual, budget = (workload(Config(**shared, forgetting_budget=of), Data(100, 7.92), 12.5) for of in (None, 0.01))
    assert budget == replace(usual, validations=budget.validations), "a budget looks more often, and that is all"
    assert budget.validations > usual.validations
