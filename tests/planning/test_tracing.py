"""Bytes and products counted without numbers, against the same code with numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from affetto.adapters.bank import AdapterBank
from affetto.model import rows_at_once
from affetto.model.base import Base
from affetto.model.batch import Batch
from affetto.model.losses import code_losses
from affetto.planning.plan import base_config
from affetto.planning.tracing import (
    LiveBytes,
    ShapeOnly,
    answering_cost,
    fisher_cost,
    shape_only,
    training_cost,
)

ROWS, FRAMES, TEXT, DEPTH = 3, 9, 6, 20


@pytest.fixture(scope="module")
def shape(tiny_base_folder: Any) -> ShapeOnly:
    return shape_only(base_config(str(tiny_base_folder)), torch.float32, ("both",), "both", 4, checkpointing=False)


def _real_batch() -> Batch:
    rows = torch.arange(ROWS).repeat_interleave(FRAMES)
    places = torch.arange(TEXT, TEXT + FRAMES).repeat(ROWS)
    is_audio = torch.zeros(ROWS, TEXT + FRAMES, dtype=torch.bool)
    is_audio[:, TEXT:] = True
    codes = torch.randint(0, 256, (ROWS, TEXT + FRAMES, 8), generator=torch.Generator().manual_seed(0))
    text = torch.zeros(ROWS, TEXT + FRAMES, dtype=torch.long)
    frames = torch.stack([rows, places], dim=1)
    gates = torch.ones(ROWS, 1)
    return Batch(text, codes, is_audio, frames, torch.arange(DEPTH), gates, (), text[0, :1], text)


def test_live_bytes_by_hand() -> None:
    live = LiveBytes([torch.zeros(10)])
    with live:
        a = torch.zeros(1000)
        b = a + 1
        view = b[:10].reshape(2, 5)
        del a
        c = b * 2
        a_kept = view.clone()
    assert live.now == 4 * (1000 + 1000 + 10)
    assert live.peak == 4 * (1000 + 1000 + 10)
    del b, c
    assert live.now == 4 * (1000 + 10), "a view keeps its storage"
    del view, a_kept
    assert live.now == 0
    assert live.flops == 0


def test_products_by_hand() -> None:
    live = LiveBytes([])
    with live:
        torch.zeros(3, 5) @ torch.zeros(5, 7)
    assert live.flops == 2 * 3 * 5 * 7


def test_a_step_without_numbers_takes_what_the_step_takes(tiny_base: Base, shape: ShapeOnly) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    bank.add("happy", 4, 8.0, 0)
    batch = _real_batch()

    def step() -> None:
        logits = tiny_base.network(batch)
        c0, depth = code_losses(logits, batch)
        torch.autograd.backward(torch.stack([c0.total, depth.total]).sum())

    live = LiveBytes(list(tiny_base.model.parameters()))
    with live:
        step()
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    found = training_cost(shape, shape.batch(ROWS, FRAMES, TEXT, DEPTH), [(1.0, False)], autocast=None)
    # Without numbers transformers makes attention masks that it otherwise finds it can do without.
    assert found.peak_bytes == pytest.approx(live.peak, rel=0.1)
    assert found.peak_bytes > live.peak
    assert live.peak > 2e5
    assert found.flops == counter.get_total_flops() == live.flops


def test_a_teachers_answer_costs_more(shape: ShapeOnly) -> None:
    batch = shape.batch(ROWS, FRAMES, TEXT, DEPTH)
    plain, taught = (training_cost(shape, batch, [(1.0, is_on)], autocast=None) for is_on in (False, True))
    assert taught.peak_bytes > plain.peak_bytes
    assert taught.flops == plain.flops


def test_answers_keep_nothing_for_a_gradient(shape: ShapeOnly) -> None:
    batch = shape.batch(ROWS, FRAMES, TEXT, ROWS * FRAMES)
    trained = training_cost(shape, batch, [(1.0, True)], autocast=None)
    answered, looked = answering_cost(shape, batch), fisher_cost(shape, batch)
    assert answered.peak_bytes < trained.peak_bytes / 2
    assert answered.peak_bytes < looked.peak_bytes
    # The Fisher goes forward and backward as training does, and multiplies what it found at every layer.
    positions = {"backbone_model": ROWS * (TEXT + FRAMES), "depth_decoder": ROWS * FRAMES * 8}
    sizes = [(positions[path.split(".")[0]], *site.shape) for path, site in shape.bank.sites.items()]
    assert looked.flops - fisher_cost(shape, batch, curvature="rank1").flops == sum(
        2 * p * (i * i + o * o - i * o) for p, o, i in sizes
    )
    assert answered.flops < looked.flops - sum(2 * p * (i * i + o * o) for p, o, i in sizes) < trained.flops


def test_a_fisher_in_parts_takes_less_and_on_the_host_less_still(
    shape: ShapeOnly, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = shape.batch(ROWS, 40, TEXT, ROWS * 40)
    whole = fisher_cost(shape, batch)
    assert fisher_cost(shape, batch, on_host=True) == whole, "one part waits for nothing"
    monkeypatch.setattr(rows_at_once, "MOST_PART_BYTES", 10 * shape.network.frame_bytes(with_gradient=True))
    parts, elsewhere = fisher_cost(shape, batch), fisher_cost(shape, batch, on_host=True)
    assert elsewhere.peak_bytes < 0.8 * parts.peak_bytes < 0.8 * whole.peak_bytes
    # Each part makes its own rotary angles.
    assert elsewhere.flops == parts.flops == pytest.approx(whole.flops, rel=1e-4)


def test_checkpointing_takes_less_memory_and_a_third_more_products(tiny_base_folder: Any) -> None:
    config = base_config(str(tiny_base_folder))
    costs = []
    for is_on in (False, True):
        made = shape_only(config, torch.float32, ("both",), "both", 4, checkpointing=is_on)
        costs.append(training_cost(made, made.batch(8, 40, TEXT, 320), [(1.0, False)], autocast=None))
    assert costs[1].peak_bytes < 0.7 * costs[0].peak_bytes
    assert 1.15 < costs[1].flops / costs[0].flops < 1.6


def test_a_full_rank_adapter_and_fewer_layers(tiny_base_folder: Any) -> None:
    config = base_config(str(tiny_base_folder))
    full = shape_only(config, torch.float32, ("both",), "both", None, checkpointing=False)
    assert full.bank.is_full("planned")
    depth = shape_only(config, torch.float32, ("q_proj",), "depth", 4, checkpointing=False)
    assert {site.split(".")[0] for site in depth.bank.sites} == {"depth_decoder"}
    batch = (ROWS, FRAMES, TEXT, DEPTH)
    costs = [training_cost(made, made.batch(*batch), [(1.0, False)], autocast=None) for made in (full, depth)]
    assert costs[0].peak_bytes > costs[1].peak_bytes
