"""Retention against explicit loops over codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from affetto.adapters.bank import AdapterBank
from affetto.evaluate.results import Retention as RetentionFacts
from affetto.evaluate.results import build_results
from affetto.evaluate.retention import Retention, measure_retention
from affetto.model.base import Base
from affetto.model.batch import Row, collate
from moshi_checkpoint import moshi_row


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> list[Row]:
    return [make_row(seed, frames=(3 + seed % 4,)) for seed in range(5)]


def _adapted(base: Base, size: float = 0.3) -> AdapterBank:
    bank = AdapterBank(base.model, base.network.gates)
    bank.add("happy", rank=2, alpha=4.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    for _, _, b_OR, _ in bank.factors("happy"):
        b_OR.data = size * torch.randn(b_OR.shape, generator=generator)
    return bank


def test_a_closed_gate_forgets_nothing_at_all(tiny_base: Base, rows: list[Row]) -> None:
    _adapted(tiny_base)
    kept = measure_retention(tiny_base, rows, gate=(0.0,))
    assert np.array_equal(kept.delta_nll_NK, np.zeros_like(kept.delta_nll_NK))
    assert np.abs(kept.kl_NK).max() < 1e-12


def test_every_code_of_every_clip_is_compared(tiny_base: Base, rows: list[Row]) -> None:
    _adapted(tiny_base)
    kept = measure_retention(tiny_base, rows, gate=(1.0,))
    assert kept.codes_NK.tolist() == [[row.num_frames] * tiny_base.num_codebooks for row in rows]
    for index, row in enumerate(rows):
        delta_K, kl_K = _by_loop(tiny_base, row)
        np.testing.assert_allclose(kept.delta_nll_NK[index], delta_K, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(kept.kl_NK[index], kl_K, rtol=1e-4, atol=1e-4)
    assert kept.kl_NK.sum() > 0.1, "the adapter must do something for this to mean anything"


def test_the_document_divides_sums_by_codes() -> None:
    codes = np.array([[2, 2], [4, 4]])
    delta = np.array([[1.0, 0.0], [0.0, 2.0]])
    facts: RetentionFacts = Retention(codes, delta, 2 * delta).document()
    assert facts["delta_nll"]["value"] == pytest.approx(3.0 / 12)
    assert facts["kl"]["value"] == pytest.approx(6.0 / 12)
    assert facts["per_codebook"]["delta_nll"] == pytest.approx([1.0 / 6, 2.0 / 6])
    assert (facts["num_clips"], facts["num_codes"], facts["delta_nll"]["n"]) == (2, 12, 2)


def test_the_text_beside_the_frames_is_compared(tiny_moshi: Base) -> None:
    """Every token of every frame by an explicit loop; over all it counts with its frame's codes."""
    rows = [moshi_row(seed, frames=5 + seed) for seed in range(3)]
    bank = _adapted(tiny_moshi, 0.1)
    kept = measure_retention(tiny_moshi, rows, gate=(1.0,))
    assert kept.text is not None
    for index, row in enumerate(rows):
        texts = []
        for gate in ((0.0,), (1.0,)):
            with torch.no_grad():
                texts.append(tiny_moshi.network(collate([replace(row, gate=gate)], 4)).text_NW.double())  # type: ignore[union-attr]
        delta = kl = 0.0
        streams = row.turns[0].streams
        assert streams is not None
        for before, after, token in zip(*(text.log_softmax(-1) for text in texts), streams.text_T, strict=False):
            delta += float(before[token] - after[token])
            kl += float((before.exp() * (before - after)).sum())
        assert kept.text.tokens_N[index] == row.num_frames
        assert kept.text.delta_nll_N[index] == pytest.approx(delta, rel=1e-4, abs=1e-4)
        assert kept.text.kl_N[index] == pytest.approx(kl, rel=1e-4, abs=1e-4)
    assert kept.text.kl_N.sum() > 0.01, "the adapter must do something for this to mean anything"
    facts = kept.document()
    frames = sum(row.num_frames for row in rows)
    assert (facts["num_codes"], facts["text"]["num_tokens"]) == (4 * frames, frames)
    assert facts["text"]["kl"]["value"] == pytest.approx(kept.text.kl_N.sum() / frames)
    assert facts["text"]["kl"]["unit"] == "nats/token"
    for name in ("delta_nll", "kl"):
        by_code = sum(facts["per_codebook"][name]) + facts["text"][name]["value"]  # type: ignore[literal-required]
        assert facts[name]["value"] == pytest.approx(by_code / 4)  # type: ignore[literal-required]
    assert build_results("happy", "", {}, [], [], facts)["retention"] == facts
    assert len(bank.names) == 1


def test_without_a_text_stream_nothing_is_told_of_it(tiny_base: Base, rows: list[Row]) -> None:
    _adapted(tiny_base)
    assert "text" not in measure_retention(tiny_base, rows[:2], gate=(1.0,)).document()


def _by_loop(base: Base, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Sums over frames (K,), one frame and codebook at a time."""
    sums = np.zeros((2, base.num_codebooks))
    batch = collate([Row(row.clip_id, row.turns, (1.0,))], base.num_codebooks)
    with torch.no_grad():
        after, before = base.network(batch), base.network(batch.with_gate(batch.gate_BE[:, :0]))
    for frame in range(row.num_frames):
        codes = batch.depth_codes_MK[frame].tolist()
        for k, code in enumerate(codes):
            pairs = [
                (said.c0_NV[frame] if k == 0 else said.depth_MJV[frame, k - 1]).double().softmax(dim=-1).numpy()
                for said in (before, after)
            ]
            sums[0, k] += np.log(pairs[0][code]) - np.log(pairs[1][code])
            sums[1, k] += float((pairs[0] * (np.log(pairs[0]) - np.log(pairs[1]))).sum())
    return sums[0], sums[1]
