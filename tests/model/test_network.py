"""The road through CSM's modules, against transformers' own forward and against explicit loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CsmForConditionalGeneration

from affetto.miniature.base import make_config, make_model
from affetto.model.base import Base
from affetto.model.batch import Batch, Logits, Row, Turn, collate, join
from affetto.model.csm import CsmNetwork
from affetto.model.losses import code_losses
from affetto.tensors import stored_tensors

CLOSE = {"rtol": 0.0, "atol": 2e-5}


def _dialogues(make_row: Callable[..., Row]) -> list[Row]:
    """Rows of unequal length: plain, of two turns, of three turns."""
    return [make_row(0, frames=(6,)), make_row(1, frames=(3, 4)), make_row(2, frames=(1, 2, 3))]


def _embedded(base: Base, row: Row) -> Tensor:
    """Input embeddings (S, D) of one row, position by position."""
    table = base.model.backbone_model.embed_tokens.embed_audio_tokens.weight
    words = base.model.embed_text_tokens.weight
    num_codes = base.model.config.vocab_size
    positions = []
    for turn in row.turns:
        positions += [words[token] for token in turn.text_ids]
        assert turn.codes_TK is not None
        for frame in [*turn.codes_TK, np.zeros(base.num_codebooks, dtype=np.int64)]:
            positions.append(sum(table[k * num_codes + int(code)] for k, code in enumerate(frame)))
    return torch.stack(positions)


def _labels(base: Base, row: Row) -> Tensor:
    """transformers' labels (S, K), 3-D form: -100 but at the last turn's frames and its end."""
    codes = row.turns[-1].codes_TK
    assert codes is not None
    frames = torch.cat([torch.from_numpy(codes), torch.zeros(1, base.num_codebooks, dtype=torch.int64)])
    ignored = torch.full((row.num_positions - len(frames), base.num_codebooks), -100)
    return torch.cat([ignored, frames])


@torch.no_grad()
def _stepwise(base: Base, row: Row, *, use_cache: bool) -> Logits:
    """Logits of one row as generation meets them, frame by frame and codebook by codebook, by transformers' modules."""
    model, embeds = base.model, _embedded(base, row)[None]
    codes = torch.cat([torch.from_numpy(row.turns[-1].codes_TK), torch.zeros(1, base.num_codebooks, dtype=torch.int64)])
    first = row.num_positions - row.num_frames
    c0, depth, cache = [], [], None
    for t in range(row.num_frames):
        if use_cache:
            new = embeds[:, : first + t] if cache is None else embeds[:, first + t - 1 : first + t]
            said = model.backbone_model(inputs_embeds=new, past_key_values=cache, use_cache=True)
            cache = said.past_key_values
        else:
            said = model.backbone_model(inputs_embeds=embeds[:, : first + t], use_cache=False)
        state = said.last_hidden_state[:, -1]
        c0.append(model.lm_head(state)[0])
        depth.append(_depth_stepwise(model, state, codes[t], use_cache=use_cache))
    return Logits(torch.stack(c0), torch.stack(depth))


def _depth_stepwise(model: torch.nn.Module, state: Tensor, frame: Tensor, *, use_cache: bool) -> Tensor:
    logits, cache = [], None
    ids = torch.cat([torch.zeros(1, dtype=torch.int64), frame])[None]
    for k in range(1, len(frame)):
        if cache is None:
            said = model.depth_decoder(
                input_ids=ids[:, : k + 1], backbone_last_hidden_state=state.clone(), use_cache=use_cache
            )
        else:
            said = model.depth_decoder(
                input_ids=ids[:, k : k + 1], past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        cache = said.past_key_values if use_cache else None
        logits.append(said.logits[0, -1])
    return torch.stack(logits)


def _of_row(logits: Logits, batch: Batch, b: int) -> Logits:
    return Logits(logits.c0_NV[batch.frames_N2[:, 0] == b], logits.depth_MJV[batch.depth_frames_M2[:, 0] == b])


def _assert_same(first: Logits, second: Logits, **tolerance: float) -> None:
    torch.testing.assert_close(first.c0_NV, second.c0_NV, **(tolerance or CLOSE))
    torch.testing.assert_close(first.depth_MJV, second.depth_MJV, **(tolerance or CLOSE))


@torch.no_grad()
def test_logits_and_losses_are_those_of_transformers(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    rows = _dialogues(make_row)
    batch = collate(rows, tiny_base.num_codebooks)
    logits = tiny_base.network(batch)
    width = max(row.num_positions for row in rows)
    embeds = [torch.nn.functional.pad(_embedded(tiny_base, row), (0, 0, 0, width - row.num_positions)) for row in rows]
    labels = [
        torch.nn.functional.pad(_labels(tiny_base, row), (0, 0, 0, width - row.num_positions), value=-100)
        for row in rows
    ]
    theirs = tiny_base.model(inputs_embeds=torch.stack(embeds), labels=torch.stack(labels))
    rows_N, places_N = batch.frames_N2.unbind(1)
    torch.testing.assert_close(logits.c0_NV, theirs.logits[rows_N, places_N - 1], **CLOSE)
    torch.testing.assert_close(logits.depth_MJV, theirs.depth_decoder_logits, **CLOSE)
    c0, depth = code_losses(logits, batch)
    assert c0.count == sum(row.num_frames for row in rows) == 7 + 5 + 4
    assert depth.count == c0.count * (tiny_base.num_codebooks - 1)
    assert c0.mean.item() == pytest.approx(theirs.backbone_loss.item(), abs=1e-5)
    assert depth.mean.item() == pytest.approx(theirs.depth_decoder_loss.item(), abs=1e-5)


@torch.no_grad()
def test_amortised_depth_logits_are_those_of_the_chosen_frames(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    rows = _dialogues(make_row)
    every = tiny_base.network(collate(rows, tiny_base.num_codebooks))
    batch = collate(rows, tiny_base.num_codebooks, [np.array([4, 1]), np.array([], dtype=int), np.array([3])])
    chosen = tiny_base.network(batch)
    torch.testing.assert_close(chosen.c0_NV, every.c0_NV, rtol=0, atol=0)
    torch.testing.assert_close(chosen.depth_MJV, every.depth_MJV[[1, 4, 7 + 5 + 3]], **CLOSE)
    none = tiny_base.network(collate(rows[:1], tiny_base.num_codebooks, [np.array([], dtype=int)]))
    assert none.depth_MJV.shape == (0, tiny_base.num_codebooks - 1, tiny_base.network.vocab_size)


@torch.no_grad()
def test_any_number_of_depth_frames_works(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    """transformers 5.17 fails on exactly as many as there are codebooks."""
    row = make_row(0, frames=(12,))
    every = tiny_base.network(collate([row], tiny_base.num_codebooks))
    for num_frames in range(1, 13):
        batch = collate([row], tiny_base.num_codebooks, [np.arange(num_frames)])
        torch.testing.assert_close(tiny_base.network(batch).depth_MJV, every.depth_MJV[:num_frames], **CLOSE)


@torch.no_grad()
def test_pitfall_01_depth_loss_of_an_untrained_model_is_a_guess_like_c0(make_row: Callable[..., Row]) -> None:
    model = make_model(make_config(hidden_size=128, num_layers=1, depth_size=64, depth_layers=1), seed=1)
    network = CsmNetwork(model)
    batch = collate([make_row(seed, frames=(9,)) for seed in range(4)], network.num_codebooks)
    c0, depth = code_losses(network(batch), batch)
    guess = math.log(network.vocab_size)
    assert c0.mean.item() == pytest.approx(guess, abs=0.15)
    assert depth.mean.item() == pytest.approx(guess, abs=0.15)


def test_pitfall_02_context_is_heard_but_never_trained_on(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    row = make_row(3, frames=(4, 3))
    batch = collate([row], tiny_base.num_codebooks)
    first = len(row.turns[0].text_ids) + 5 + len(row.turns[1].text_ids)
    assert batch.frames_N2.tolist() == [[0, first + t] for t in range(4)]
    # Label-side only: the logits are of the batch as it is, the targets of one whose context codes are others.
    heard = replace(batch, codes_BSK=batch.codes_BSK.clone())
    context = batch.is_audio_BS.clone()
    context[0, first:] = False
    heard.codes_BSK[context] = (heard.codes_BSK[context] + 1) % 256
    logits = tiny_base.network(batch)
    for ours, other in zip(code_losses(logits, batch), code_losses(logits, heard), strict=True):
        assert ours.total.item() == other.total.item()
        assert ours.count == other.count
    # As input the context matters.
    assert (tiny_base.network(heard).c0_NV - logits.c0_NV).abs().max() > 1e-2


def test_pitfall_02_gradient_flows_only_from_the_trained_turn(
    tiny_base: Base, make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the backbone's outputs: only the positions before the last turn's frames are asked for anything."""
    row = make_row(4, frames=(4, 3))
    batch = collate([row], tiny_base.num_codebooks)
    states: list[Tensor] = []
    forward = tiny_base.network.backbone.forward

    def watched(**inputs: object) -> object:
        outputs = forward(**inputs)
        outputs.last_hidden_state = outputs.last_hidden_state.detach().requires_grad_()
        states.append(outputs.last_hidden_state)
        return outputs

    monkeypatch.setattr(tiny_base.network.backbone, "forward", watched)
    c0, depth = code_losses(tiny_base.network(batch), batch)
    (c0.total + depth.total).backward()
    asked = states[0].grad[0].abs().sum(dim=1) > 0
    places = batch.frames_N2[:, 1] - 1
    assert asked.nonzero().squeeze(1).tolist() == places.tolist()


@pytest.mark.parametrize("use_cache", [True, False])
def test_pitfall_06_teacher_forced_logits_are_those_of_stepwise_generation(
    tiny_base: Base, make_row: Callable[..., Row], use_cache: bool
) -> None:
    rows = _dialogues(make_row)
    batch = collate(rows, tiny_base.num_codebooks)
    with torch.no_grad():
        together = tiny_base.network(batch)
    for b, row in enumerate(rows):
        with torch.no_grad():
            alone = tiny_base.network(collate([row], tiny_base.num_codebooks))
        stepwise = _stepwise(tiny_base, row, use_cache=use_cache)
        _assert_same(alone, stepwise)
        _assert_same(_of_row(together, batch, b), stepwise)


@torch.no_grad()
def test_pitfall_06_left_padded_steps_give_the_logits_of_right_padded_rows(
    tiny_base: Base, make_row: Callable[..., Row]
) -> None:
    """Codebook zero along a left-padded, cached batch, as generation runs it."""
    rows = [make_row(5, frames=(4,), words=(12,)), make_row(6, frames=(4,), words=(3,))]
    batch = collate(rows, tiny_base.num_codebooks)
    logits = tiny_base.network(batch)
    embeds = [_embedded(tiny_base, row) for row in rows]
    width = max(map(len, embeds))
    padded = torch.stack([torch.nn.functional.pad(e, (0, 0, width - len(e), 0)) for e in embeds])
    mask = torch.stack([torch.arange(width) >= width - len(e) for e in embeds])
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    first, cache = width - 5, None
    for t in range(5):
        part = slice(0, first) if t == 0 else slice(first + t - 1, first + t)
        said = tiny_base.model.backbone_model(
            inputs_embeds=padded[:, part], attention_mask=mask[:, : part.stop], position_ids=positions[:, part],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        cache = said.past_key_values
        expected = torch.stack([_of_row(logits, batch, b).c0_NV[t] for b in range(2)])
        torch.testing.assert_close(tiny_base.model.lm_head(said.last_hidden_state[:, -1]), expected, **CLOSE)


@torch.no_grad()
def test_pitfall_06_a_frame_is_predicted_from_what_came_before_it(
    tiny_base: Base, make_row: Callable[..., Row]
) -> None:
    """Changing frame t leaves the logits up to t's codebook zero alone, and changes those after it."""
    row = make_row(7, frames=(6,))
    codes = row.turns[0].codes_TK.copy()
    codes[3] = (codes[3] + 1) % 256
    before = tiny_base.network(collate([row], tiny_base.num_codebooks))
    changed = Row("changed", (Turn(row.turns[0].text_ids, codes),))
    after = tiny_base.network(collate([changed], tiny_base.num_codebooks))
    moved_N = (after.c0_NV - before.c0_NV).abs().amax(dim=1)
    moved_NJ = (after.depth_MJV - before.depth_MJV).abs().amax(dim=2)
    assert moved_N[:4].max() == 0
    assert moved_N[4:].min() > 1e-3
    assert moved_NJ[:3].max() == 0
    assert moved_NJ[3:].min() > 1e-3


@torch.no_grad()
def test_pitfall_09_a_padded_row_is_the_unpadded_row(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    row = make_row(8, frames=(2, 3))
    alone = tiny_base.network(collate([row], tiny_base.num_codebooks))
    batch = collate([make_row(9, frames=(30,)), row], tiny_base.num_codebooks)
    assert batch.text_BS.shape[1] > row.num_positions + 10
    _assert_same(_of_row(tiny_base.network(batch), batch, 1), alone)
    # Whatever stands in the padding, nothing comes of it.
    dirty = replace(batch, text_BS=batch.text_BS.clone(), codes_BSK=batch.codes_BSK.clone())
    dirty.text_BS[1, row.num_positions :] = tiny_base.model.config.pad_token_id
    dirty.codes_BSK[1, row.num_positions :] = 77
    _assert_same(
        _of_row(tiny_base.network(dirty), batch, 1), _of_row(tiny_base.network(batch), batch, 1), rtol=0, atol=0
    )


def test_the_codec_is_not_on_the_road(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    stored = stored_tensors(tiny_base.folder)
    assert any(name.startswith("codec_model.") for name in stored), "there is no codec to leave out"
    assert not any(name.startswith("codec_model.") for name in tiny_base.model.state_dict())
    tiny_base.model.requires_grad_(True)
    batch = collate([make_row(0)], tiny_base.num_codebooks)
    c0, depth = code_losses(tiny_base.network(batch), batch)
    (c0.total + depth.total).backward()
    assert all(parameter.grad is not None for parameter in tiny_base.network.parameters())


def test_pitfall_08_train_mode_leaves_a_codec_in_eval_mode(tiny_base: Base) -> None:
    """transformers' own class, as users and PEFT load it, has one."""
    model = CsmForConditionalGeneration.from_pretrained(tiny_base.folder).eval()
    network = CsmNetwork(model)
    network.train()
    assert network.backbone.layers[0].training
    assert not any(module.training for module in model.codec_model.modules())


@torch.no_grad()
def test_pitfall_19_heads_run_in_float32_under_autocast(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    """Logits rounded to bfloat16 have at most 8 significant bits."""
    batch = collate([make_row(0)], tiny_base.num_codebooks)
    exact = tiny_base.network(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = tiny_base.network(batch)
    for ours, full in ((logits.c0_NV, exact.c0_NV), (logits.depth_MJV, exact.depth_MJV)):
        assert ours.dtype == torch.float32
        assert (ours != ours.bfloat16().float()).float().mean() > 0.9
        assert (ours - full).abs().max() > 1e-4, "autocast did nothing, so this test says nothing"


def test_joined_batches_say_what_each_says_alone(tiny_base: Base, make_row: Callable[..., Row]) -> None:
    parts = [
        collate([make_row(1, frames=(4,)), make_row(2, frames=(7,))], 8, [np.array([1, 3]), np.array([0])]),
        collate([make_row(3, frames=(2,))], 8),
        collate([make_row(4, frames=(5, 3), words=(3, 9)), make_row(5, frames=(1,))], 8),
    ]
    joined = join(parts)
    assert joined.clip_ids == tuple(name for part in parts for name in part.clip_ids)
    assert torch.equal(joined.c0_targets_N, torch.cat([part.c0_targets_N for part in parts]))
    assert torch.equal(joined.depth_targets_MJ, torch.cat([part.depth_targets_MJ for part in parts]))
    with torch.no_grad():
        for part, logits in zip(parts, tiny_base.network(joined).split(parts), strict=True):
            _assert_same(logits, tiny_base.network(part), rtol=1e-4, atol=1e-4)
    assert join(parts[:1]) is parts[0]
