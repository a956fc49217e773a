"""Rows of conversations: what is heard, what is learned, and what doesn't fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from affetto.adapters.bank import AdapterBank
from affetto.audio.speakers import speaker_numbers
from affetto.errors import DataError
from affetto.model.base import Base
from affetto.model.batch import Row, collate
from affetto.model.losses import code_losses
from affetto.model.rows import make_rows, windowed
from affetto.types import Clip

FRAMES = {"0": 40, "1": 30, "2": 20, "3": 10}


def _dialogue() -> dict[str, Clip]:
    """Four turns of two speakers; each hears all before it."""
    return {
        name: Clip(
            name, Path("x.wav"), f"turn {name}", None, "ab"[int(name) % 2], "talk", context=tuple("0123"[: int(name)])
        )
        for name in FRAMES
    }  # fmt: skip


def _with_window(base: Base, window: int) -> Any:
    return SimpleNamespace(prompt_ids=base.prompt_ids, window=window, has_text_stream=False, network=base.network)


def _rows(base: Any, clips: Mapping[str, Clip], names: str = "0123") -> list[Row]:
    rng = np.random.default_rng(0)
    codes = {name: rng.integers(1, 256, (FRAMES[name], 8)) for name in FRAMES}
    numbers = speaker_numbers({clip.speaker for clip in clips.values()})
    return make_rows(
        base, [clips[n] for n in names], lambda clip: codes[clip.id], numbers, template="<{text}>", by_id=clips
    )


def test_every_speaker_keeps_one_number_whoever_is_trained(tiny_base: Base) -> None:
    clips = _dialogue()
    row = _rows(tiny_base, clips, "3")[0]
    expected = [tiny_base.prompt_ids(f"turn {n}", int(n) % 2) for n in "012"] + [tiny_base.prompt_ids("<turn 3>", 1)]
    assert [turn.text_ids for turn in row.turns] == expected
    assert [len(turn.codes_TK) for turn in row.turns if turn.codes_TK is not None] == [40, 30, 20, 10]


def test_the_window_is_the_bases(tiny_base: Base) -> None:
    assert tiny_base.window == 2048
    assert [len(row.turns) for row in _rows(tiny_base, _dialogue())] == [1, 2, 3, 4]


def test_long_conversations_lose_their_oldest_turns(tiny_base: Base) -> None:
    clips = _dialogue()
    whole = {row.clip_id: row for row in _rows(tiny_base, clips)}
    window = whole["3"].num_positions - 1
    cut = {row.clip_id: row for row in _rows(_with_window(tiny_base, window), clips)}
    assert _ids(cut["3"]) == _ids(whole["3"])[1:]
    assert all(_ids(cut[name]) == _ids(whole[name]) for name in "012")
    narrow = whole["0"].num_positions
    for row in _rows(_with_window(tiny_base, narrow), clips):
        turns, kept = whole[row.clip_id].turns, len(row.turns)
        assert _ids(row) == _ids(whole[row.clip_id])[-kept:]
        assert row.num_positions <= narrow
        if kept < len(turns):
            longer = replace(row, turns=turns[-kept - 1 :])
            assert longer.num_positions > narrow, "a turn was left out that would have fitted"


def _ids(row: Row) -> list[tuple[tuple[int, ...], bytes]]:
    return [(turn.text_ids, np.asarray(turn.codes_TK).tobytes()) for turn in row.turns]


def test_a_row_of_exactly_the_window_is_whole(make_row: Callable[..., Row]) -> None:
    row = make_row(0, frames=(3, 5), words=(4, 6))
    assert _ids(windowed(row, row.num_positions)) == _ids(row)
    assert _ids(windowed(row, row.num_positions - 1)) == _ids(row)[1:]


def test_a_clip_that_is_too_long_by_itself_is_named(tiny_base: Base) -> None:
    with pytest.raises(DataError, match=r"^0 takes \d+ positions \(41 frames.*window is 40: cut the clip"):
        _rows(_with_window(tiny_base, 40), _dialogue(), "0")


def test_an_adapter_learns_from_the_last_turn_alone(tiny_base: Base) -> None:
    """The gradient with context equals that of the last frames' loss, taken position by position."""
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, ("q_proj", "down_proj"))
    bank.add("happy", 2, 2.0, 0)
    with torch.no_grad():
        for _, _, b_OR, _ in bank.factors("happy"):
            assert b_OR is not None
            b_OR.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    row = replace(_rows(tiny_base, _dialogue(), "2")[0], gate=(1.0,))
    batch = collate([row], 8)
    assert len(batch.frames_N2) == FRAMES["2"] + 1
    assert int(batch.is_audio_BS.sum()) == 41 + 31 + 21

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(bank.parameters("happy").values())))

    c0, depth = code_losses(tiny_base.network(batch), batch)
    found = gradients(c0.total + depth.total)
    logits = tiny_base.network(batch)
    first = row.num_positions - row.num_frames
    parts = []
    for n in range(row.num_frames):
        codes = batch.codes_BSK[0, first + n]
        parts.append(-logits.c0_NV[n].log_softmax(-1)[codes[0]])
        parts += [-logits.depth_MJV[n, j].log_softmax(-1)[codes[j + 1]] for j in range(7)]
    for one, other in zip(found, gradients(torch.stack(parts).sum()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    alone = collate([replace(row, turns=row.turns[-1:])], 8)
    c0_alone, _ = code_losses(tiny_base.network(alone), alone)
    assert c0_alone.count == c0.count
    assert abs(c0_alone.mean.item() - c0.mean.item()) > 1e-3, "what came before is heard"
