"""The miniature's base: sizes, files that transformers reads, and a training run that can be killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CsmForConditionalGeneration, CsmProcessor

from affetto.miniature import base
from affetto.miniature.base import BaseRecipe, _batches, make_config, make_model, save_base, train_base
from affetto.model.batch import Batch, Row
from affetto.model.csm import CsmNetwork

SMALL = {"hidden_size": 128, "num_layers": 1, "depth_size": 64, "depth_layers": 1}


@pytest.fixture(scope="module")
def rows(make_row: Callable[..., Row]) -> list[Row]:
    return [make_row(seed, frames=(4 + seed % 9,), words=(3 + seed % 7,)) for seed in range(40)]


@pytest.fixture(scope="module")
def small_model() -> CsmForConditionalGeneration:
    return make_model(make_config(**SMALL), seed=3)


def test_default_size() -> None:
    model = make_model(make_config(), seed=0)
    assert 3_000_000 < model.num_parameters() <= 8_000_000
    assert sum(weight.numel() for weight in model.codec_model.parameters()) < 200_000


@pytest.mark.parametrize("sizes", [{}, SMALL, {"hidden_size": 192, "num_layers": 2, "depth_size": 96}])
def test_configuration_fits_together(sizes: dict[str, int]) -> None:
    config = make_config(**sizes)
    depth = config.depth_decoder_config
    assert config.hidden_size == sizes.get("hidden_size", 192) == depth.backbone_hidden_size
    assert config.vocab_size == depth.vocab_size == base.CODEBOOK_SIZE + 3
    assert config.num_codebooks == depth.num_codebooks == config.codec_config.num_quantizers
    assert config.codec_config.codebook_size == base.CODEBOOK_SIZE
    assert config.text_vocab_size == len(base.make_tokenizer())
    assert config.codebook_eos_token_id == 0


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (make_model(make_config(**SMALL), seed=seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_saved_base_loads_with_transformers(small_model: CsmForConditionalGeneration, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in small_model.state_dict().items()}
    save_base(small_model, tmp_path, {"num_steps": 3})
    for name, value in small_model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name]), f"saving changed {name}"
    loaded = CsmForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    for name, value in loaded.state_dict().items():
        wanted = before[name].half().float() if before[name].is_floating_point() else before[name]
        assert torch.equal(value, wanted.to(value.dtype)), name
    assert loaded.generation_config.do_sample
    assert loaded.depth_decoder.generation_config.min_new_tokens == base.NUM_CODEBOOKS - 1
    processor = CsmProcessor.from_pretrained(tmp_path)
    conversation = [{"role": "0", "content": [{"type": "text", "text": "Hello there."}]}]
    for form in ({"tokenize": False}, {"tokenize": True, "return_dict": True}):
        mine = base.make_processor().apply_chat_template(conversation, **form)
        assert str(processor.apply_chat_template(conversation, **form)) == str(mine)
    assert (tmp_path / "miniature.json").read_text() == '{\n  "num_steps": 3\n}\n'


def test_saved_base_can_be_read_by_others_and_names_no_place(
    small_model: CsmForConditionalGeneration, tmp_path: Path
) -> None:
    mask = os.umask(0o022)
    try:
        save_base(small_model, tmp_path / "place", {})
    finally:
        os.umask(mask)
    files = list((tmp_path / "place").iterdir())
    assert len(files) >= 7
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o644, path.name
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def same(one: Batch, other: Batch) -> bool:
    return one.clip_ids == other.clip_ids and all(
        torch.equal(value, getattr(other, name)) for name, value in vars(one).items() if isinstance(value, torch.Tensor)
    )


@pytest.mark.parametrize("first", [0, 1, 5, 11, 12, 13, 29, 40])
def test_batches_are_the_same_from_any_step(rows: list[Row], first: int) -> None:
    recipe = BaseRecipe(positions_per_batch=70, seed=4)
    straight = list(islice(_batches(rows, recipe, 0), first + 6))[first:]
    resumed = list(islice(_batches(rows, recipe, first), 6))
    assert all(same(one, other) for one, other in zip(straight, resumed, strict=True))


def test_every_row_once_per_epoch_within_the_budget(rows: list[Row]) -> None:
    recipe = BaseRecipe(positions_per_batch=70)
    seen: list[str] = []
    for batch in _batches(rows, recipe, 0):
        assert batch.text_BS.numel() <= 70 or len(batch.clip_ids) == 1
        seen += batch.clip_ids
        if len(seen) >= len(rows):
            break
    assert sorted(seen) == sorted(row.clip_id for row in rows)


def test_rows_beyond_the_budget_come_alone(rows: list[Row]) -> None:
    batches = list(islice(_batches(rows, BaseRecipe(positions_per_batch=3), 0), len(rows)))
    assert {len(batch.clip_ids) for batch in batches} == {1}
    assert len({batch.clip_ids for batch in batches}) == len(rows)


def test_pitfall_05_depth_frames_are_drawn_anew_each_epoch(make_row: Callable[..., Row]) -> None:
    recipe = BaseRecipe(positions_per_batch=500, depth_share=0.4)
    epochs = list(islice(_batches([make_row(1, frames=(30,))], recipe, 0), 6))
    assert {len(batch.depth_M) for batch in epochs} == {round(0.4 * 31)}
    assert len({tuple(batch.depth_M.tolist()) for batch in epochs}) > 3


def test_schedule_rises_stays_and_falls() -> None:
    recipe = BaseRecipe(cycles=(1000,), warmup_steps=100, decay_share=0.4)
    factors = [base._schedule(step, recipe) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[99:600] == [1.0] * 501
    assert all(later <= earlier for earlier, later in pairwise(factors[600:]))
    assert factors[800] == pytest.approx(0.5)
    assert factors[-1] == 0.02


def test_every_cycle_has_the_whole_schedule_and_fresh_optimizers(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(TINY, cycles=(4, 6))
    once = [base._schedule(step, replace(recipe, cycles=(6,))) for step in range(6)]
    assert [base._schedule(step, recipe) for step in range(4, 10)] == once
    made: list[object] = []
    fresh = base._optimizers
    monkeypatch.setattr(base, "_optimizers", lambda *how: made.append(how) or fresh(*how))
    train_base(rows, rows, tmp_path, recipe, make_config(**SMALL))
    assert len(made) == len(recipe.cycles)


TINY = BaseRecipe(cycles=(3, 5), positions_per_batch=120, warmup_steps=2, seed=1)


def test_training_lowers_the_loss_and_leaves_the_codec_alone(rows: list[Row], tmp_path: Path) -> None:
    config = make_config(**SMALL)
    fresh = make_model(config, TINY.seed)
    trained = train_base(rows, rows, tmp_path, replace(TINY, cycles=(30,), lr=5e-3), config)
    before, after = (base.evaluate(CsmNetwork(model), rows[:16]) for model in (fresh, trained))
    assert after[0] < before[0] - 0.2
    assert after[1] < before[1] - 0.1
    for name, weight in trained.codec_model.state_dict().items():
        assert torch.equal(weight, fresh.codec_model.state_dict()[name]), name


def test_pitfall_29_killed_training_resumes_bit_for_bit(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(**SMALL)
    straight = train_base(rows, rows, tmp_path / "straight", TINY, config)
    clock = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(base.time, "monotonic", lambda: float(next(clock)))
    batches = base._batches

    def dying(*how: object) -> Iterator[Batch]:
        yield from islice(batches(*how), 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "_batches", dying)
    with pytest.raises(KeyboardInterrupt):
        train_base(rows, rows, tmp_path / "killed", TINY, config)
    monkeypatch.setattr(base, "_batches", batches)
    resumed = train_base(rows, rows, tmp_path / "killed", TINY, config)
    fresh = make_model(config, TINY.seed).state_dict()
    moved = 0
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        moved += not torch.equal(value, fresh[name])
    assert moved > 10


def test_evaluation_does_not_depend_on_the_batches(rows: list[Row], small_model: CsmForConditionalGeneration) -> None:
    network = CsmNetwork(small_model)
    whole = np.asarray(base.evaluate(network, rows[:12]))
    weights = np.asarray([row.num_frames for row in rows[:12]])
    single = np.asarray([base.evaluate(network, [row]) for row in rows[:12]])
    np.testing.assert_allclose((single * weights[:, None]).sum(axis=0) / weights.sum(), whole, atol=2e-4)
