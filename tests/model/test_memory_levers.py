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
from affetto.model.csm import CsmNetwork, float32_heads
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
    assert batch.text_ids_U.device.type == "cpu"
    embedded = moved.network.embed(batch)
    assert embedded.device.type == "meta"
    assert embedded.shape[:2] == on_cpu.text_BS.shape


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_heads_of_frozen_weights_are_computed_as_ever_but_keep_no_copy(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 16, 33, generator=generator).to(dtype)
    hidden = torch.randn(5, 7, 16, generator=generator).to(dtype)
    results, kept = [], []
    for compute in (float32_heads, lambda h, w: torch.einsum("mjd,jdv->mjv", h.float(), w.float())):
        given = hidden.clone().requires_grad_()
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            logits = compute(given, weight)
        (logits.sin().sum()).backward()
        results.append((logits.detach(), given.grad))
        kept.append(max((t.numel() for t in saved if t.dtype == torch.float32), default=0))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0.01, atol=0.01)
    assert results[0][0].dtype == torch.float32
    assert kept[0] == 0
    assert kept[1] == weight.numel(), "the plain way keeps the copy that this is about"


def test_heads_that_are_trained_get_their_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 4, generator=generator).bfloat16()
    weight = torch.randn(3, 4, 5, generator=generator).bfloat16().requires_grad_()
    float32_heads(hidden, weight).sin().sum().backward()
    plain = weight.detach().clone().requires_grad_()
    torch.einsum("mjd,jdv->mjv", hidden.float(), plain.float()).sin().sum().backward()
    torch.testing.assert_close(weight.grad, plain.grad, rtol=0.01, atol=0.01)
