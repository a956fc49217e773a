"""Rows to batches: where text, frames, the end frame and the targets stand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from affetto.model.batch import Row, Turn, collate, join, stack_gates


def test_a_dialogue_is_laid_out_turn_by_turn() -> None:
    first = Turn((0, 10, 1), np.array([[5, 6], [7, 8]]))
    last = Turn((0, 11, 12, 1), np.array([[0, 9]]))
    batch = collate([Row("a", (first, last)), Row("b", (last,))], num_codebooks=2)
    assert batch.text_BS.tolist() == [[0, 10, 1, 0, 0, 0, 0, 11, 12, 1, 0, 0], [0, 11, 12, 1] + [0] * 8]
    assert batch.is_audio_BS.int().tolist() == [[0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1] + [0] * 6]
    assert batch.codes_BSK[0, 3:6].tolist() == [[5, 6], [7, 8], [0, 0]]
    assert batch.codes_BSK[0, 10:].tolist() == [[0, 9], [0, 0]]
    assert batch.codes_BSK[~batch.is_audio_BS].sum() == 0
    assert batch.frames_N2.tolist() == [[0, 10], [0, 11], [1, 4], [1, 5]]
    assert batch.c0_targets_N.tolist() == [0, 0, 0, 0]
    assert batch.depth_targets_MJ.tolist() == [[9], [0], [9], [0]]
    assert batch.clip_ids == ("a", "b")


def test_depth_frames_are_chosen_row_by_row(make_row: Callable[..., Row]) -> None:
    rows = [make_row(0, frames=(4,)), make_row(1, frames=(2, 3))]
    batch = collate(rows, 8, [np.array([4, 0]), np.array([2])])
    assert batch.depth_M.tolist() == [0, 4, 5 + 2]
    codes = rows[1].turns[1].codes_TK
    assert codes is not None
    assert batch.depth_codes_MK[1].tolist() == [0] * 8, "frame 4 of 4 is the end frame"
    assert batch.depth_codes_MK[2].tolist() == codes[2].tolist()
    assert batch.depth_targets_MJ[2].tolist() == codes[2, 1:].tolist()


def test_counts_of_a_row(make_row: Callable[..., Row]) -> None:
    row = make_row(0, frames=(2, 3), words=(4, 5))
    assert row.num_frames == 4
    assert row.num_positions == 6 + 3 + 7 + 4


def test_rows_without_a_gate_may_sit_beside_rows_with_one(make_row: Callable[..., Row]) -> None:
    batch = collate([make_row(0), make_row(1, gate=(0.5, 1.0))], 8)
    assert batch.gate_BE.tolist() == [[0.0, 0.0], [0.5, 1.0]]
    assert collate([make_row(0), make_row(1)], 8).gate_BE.shape == (2, 0)
    with pytest.raises(AssertionError, match="gates of"):
        stack_gates([(1.0,), (1.0, 0.0)])


def test_codes_of_another_number_of_codebooks_are_no_broadcast() -> None:
    row = Row("thin", (Turn((0, 1), np.ones((3, 1), dtype=np.int64)),))
    with pytest.raises(AssertionError, match="thin"):
        collate([row], 8)
    with pytest.raises(AssertionError, match="no codes to predict"):
        collate([Row("open", (Turn((0, 1), None),))], 8)


def test_each_token_is_told_once_and_where_it_stands(make_row: Callable[..., Row]) -> None:
    """Of batches that are joined, too."""
    parts = [collate([make_row(0, frames=(4,)), make_row(1, frames=(2, 3))], 8), collate([make_row(2)], 8)]
    for batch in (*parts, join(parts)):
        assert torch.equal(batch.text_ids_U[batch.text_places_BS], batch.text_BS)
    assert all(len(batch.text_ids_U.unique()) == len(batch.text_ids_U) for batch in parts)


def test_moving_a_batch_moves_all_its_tensors(make_row: Callable[..., Row]) -> None:
    batch = collate([make_row(0)], 8).to("meta")
    assert batch.text_ids_U.device.type == "cpu", "the host looks them up in its table"
    tensors = [value for name, value in vars(batch).items() if isinstance(value, torch.Tensor) and name != "text_ids_U"]
    assert len(tensors) == 7
    assert all(tensor.device.type == "meta" for tensor in tensors)
