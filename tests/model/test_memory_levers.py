"""What saves memory changes nothing else: the text's embeddings off the device, fewer rows at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CsmForConditionalGeneration

from affetto.model import rows_at_once as module
from affetto.model.base import Base
from affetto.model.batch import Row, Turn, collate
from affetto.model.csm import CsmNetwork
from affetto.model.random_base import random_config
from affetto.model.rows_at_once import rows_at_once
from affetto.preserve.curvature import CURVATURES
from affetto.preserve.fisher import estimate_fisher
from affetto.preserve.teacher import teacher_cache


@pytest.fixture(scope="module")
def large() -> CsmNetwork:
    """CSM-1B's shape without a single number."""
    with torch.device("meta"):
        return CsmNetwork(CsmForConditionalGeneration(random_config("random:csm-1b")).to(torch.bfloat16))


def _clip(num_frames: int) -> Row:
    return Row("clip", (Turn((0, 1), np.zeros((num_frames - 1, 32), dtype=np.int64)),))


def test_the_texts_embeddings_stay_where_they_are(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    moved = tiny_base.to("meta")
    assert moved.network.embed_text.weight.device.type == "cpu"
    elsewhere = {name: weight.device.type for name, weight in moved.model.named_parameters()}
    assert elsewhere.pop("embed_text_tokens.weight") == "cpu"
    assert set(elsewhere.values()) == {"meta"}
    assert moved.device.type == "meta"
    batch = collate([make_row(0)], 8).to("meta")
    # Looked up where the table is and brought to the others: without that, torch refuses to mix devices.
    on_cpu = collate([make_row(0)], 8)
    assert moved.network.embed_text(on_cpu.text_BS).device.type == "cpu"
    with pytest.raises(NotImplementedError, match="meta"):
        moved.network.embed(batch)


def test_a_small_network_sees_as_many_rows_as_ever(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    rows = [make_row(seed, frames=(200,)) for seed in range(3)]
    assert rows_at_once(tiny_base.network, rows, 16) == 16
    assert rows_at_once(tiny_base.network, rows, 8, with_gradient=True) == 8
    assert rows_at_once(tiny_base.network, [], 8) == 8
    assert rows_at_once(object(), rows, 8) == 8, "a network that doesn't say"


def test_a_large_network_sees_few(large: CsmNetwork) -> None:
    assert rows_at_once(large, [_clip(126)], 16) == 1
    assert 2 <= rows_at_once(large, [_clip(26)], 16) <= 8
    assert rows_at_once(large, [_clip(2000)], 16) == 1, "one row always may"
    assert rows_at_once(large, [_clip(26)], 16, with_gradient=True) < rows_at_once(large, [_clip(26)], 16)


def test_fewer_rows_give_the_same_answers_and_fisher(
    tiny_base: Base, make_row: Callable[..., Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_row(seed, frames=(3 + seed,)) for seed in range(5)]
    sites = {"backbone_model.layers.0.self_attn.q_proj", "depth_decoder.model.layers.1.mlp.down_proj"}

    def results(folder: str) -> list[torch.Tensor]:
        modules = {site: tiny_base.model.get_submodule(site) for site in sites}
        fisher = estimate_fisher(tiny_base.network, modules, rows, CURVATURES["rank1"]())
        cache = teacher_cache(tmp_path / folder, tiny_base.network, "hash", rows, depth_share=1.0)
        found = [value for by_site in fisher.tensors.values() for _, value in sorted(by_site.items())]
        return [*found, *(cache[row.clip_id].depth_FJV for row in rows)]

    together = results("together")
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    assert rows_at_once(tiny_base.network, rows, 16) == 1
    for one, other in zip(results("alone"), together, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)
