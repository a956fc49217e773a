"""Moshi's logits: those of Kyutai's package, whatever stands beside a row in a batch."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from affetto.errors import DataError
from affetto.model.base import Base
from affetto.model.batch import Row, Streams, Turn, collate, join
from affetto.model.rows import windowed
from affetto.planning.tracing import LiveBytes
from moshi_checkpoint import REFERENCE, TEXT_CARD, moshi_row

K, V = 4, 32


def reference_rows() -> tuple[list[Row], dict[str, torch.Tensor]]:
    """The sequences on which the package was asked, as rows."""
    theirs = load_file(REFERENCE / "reference.safetensors")
    rows = []
    for number, codes_CT in enumerate(theirs["codes"].numpy()):
        streams = Streams(codes_CT[0], np.ones(codes_CT.shape[1]), codes_CT[1 + K :].T)
        rows.append(Row(str(number), (Turn((), codes_CT[1 : 1 + K].T, streams),)))
    return rows, theirs


@torch.no_grad()
def test_logits_are_those_of_the_authors_package(tiny_moshi: Base) -> None:
    rows, theirs = reference_rows()
    said = tiny_moshi.network(collate(rows, K))
    frames = rows[0].num_frames
    assert frames == theirs["codes"].shape[2] - 1
    assert said.text_NW is not None
    text, audio = theirs["text_logits"][:, :frames], theirs["logits"][:, :, :frames].transpose(1, 2)
    assert audio.std() > 1
    torch.testing.assert_close(said.text_NW, text.flatten(0, 1), rtol=0, atol=1e-4)
    torch.testing.assert_close(said.c0_NV, audio[:, :, 0].flatten(0, 1), rtol=0, atol=1e-4)
    torch.testing.assert_close(said.depth_MJV, audio[:, :, 1:].flatten(0, 1), rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_subset_of_depth_frames_gives_the_same_logits(tiny_moshi: Base) -> None:
    rows, _ = reference_rows()
    whole = tiny_moshi.network(collate(rows, K))
    part = tiny_moshi.network(collate(rows, K, [np.array([0, 7]), np.array([12])]))
    torch.testing.assert_close(part.depth_MJV, whole.depth_MJV[[0, 7, 13 + 12]])
    torch.testing.assert_close(part.c0_NV, whole.c0_NV)


@torch.no_grad()
def test_a_padded_row_says_what_it_says_alone(tiny_moshi: Base) -> None:
    rows = [moshi_row(0, frames=5), moshi_row(1, frames=11), moshi_row(2, frames=3)]
    alone = [tiny_moshi.network(collate([row], K)) for row in rows]
    together = tiny_moshi.network(collate(rows, K))
    joined = join([collate(rows[:2], K), collate(rows[2:], K)])
    for said in (together, tiny_moshi.network(joined)):
        for name in ("text_NW", "c0_NV", "depth_MJV"):
            expected = torch.cat([getattr(one, name) for one in alone])
            torch.testing.assert_close(getattr(said, name), expected, rtol=1e-4, atol=1e-5)
    halves = together.split([collate(rows[:2], K), collate(rows[2:], K)])
    assert halves[1].text_NW is not None
    torch.testing.assert_close(halves[1].text_NW, alone[2].text_NW, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_are_no_longer_than_what_moshi_hears(tiny_moshi: Base) -> None:
    """The teacher-forced layers mask the future alone: they are Moshi's up to its window, and no further."""
    window = tiny_moshi.model.config.sliding_window
    assert tiny_moshi.window == window == 40
    assert tiny_moshi.network(collate([moshi_row(12, frames=window)], K)).c0_NV.shape == (window - 1, V)
    with pytest.raises(AssertionError, match="a row of 41 positions: Moshi's window is 40"):
        tiny_moshi.network(collate([moshi_row(12, frames=window + 1)], K))
    with pytest.raises(DataError, match="takes 41 positions"):
        windowed(moshi_row(12, frames=window + 1), tiny_moshi.window)


@torch.no_grad()
def test_pitfall_06_a_frame_is_predicted_from_what_came_before(tiny_moshi: Base) -> None:
    """Changing frame t's codes, text or user codes changes no logits of earlier frames, and some of later ones."""
    row, changed_at = moshi_row(3, frames=9), 5
    turn = row.turns[0]
    assert turn.codes_TK is not None
    assert turn.streams is not None
    said = tiny_moshi.network(collate([row], K))
    for part in ("codes", "text", "user"):
        codes_TK, streams = turn.codes_TK.copy(), turn.streams
        if part == "codes":
            codes_TK[changed_at] = (codes_TK[changed_at] + 1) % V
        elif part == "text":
            text_T = streams.text_T.copy()
            text_T[changed_at] += 1
            streams = replace(streams, text_T=text_T)
        else:
            user_TK = streams.user_TK.copy()
            user_TK[changed_at] = (user_TK[changed_at] + 1) % V
            streams = replace(streams, user_TK=user_TK)
        other = tiny_moshi.network(collate([replace(row, turns=(Turn((), codes_TK, streams),))], K))
        assert said.text_NW is not None
        assert other.text_NW is not None
        moved_text = (said.text_NW - other.text_NW).abs().amax(dim=1) > 1e-6
        moved_c0 = (said.c0_NV - other.c0_NV).abs().amax(dim=1) > 1e-6
        moved_depth = (said.depth_MJV - other.depth_MJV).abs().amax(dim=(1, 2)) > 1e-6
        assert not moved_text[: changed_at + 1].any(), part
        assert moved_text[changed_at + 1 :].all(), part
        # The text of a frame stands before its first code; the codes of a frame in one another's order.
        assert moved_c0[changed_at].item() == (part == "text"), part
        assert not moved_c0[:changed_at].any(), part
        # Acoustic codes come a step late, so they know the next frame's text and first code.
        assert not moved_depth[: changed_at - 1].any(), part
        assert moved_depth[changed_at].item(), part


def test_context_turns_run_in_the_same_stream(tiny_moshi: Base) -> None:
    """Two turns side by side are one stretch of frames, of which the last turn's are predicted."""
    first, last = moshi_row(4, frames=4).turns[0], moshi_row(5, frames=6).turns[0]
    row = Row("both", (first, last))
    assert (row.num_positions, row.num_frames) == (10, 5)
    batch = collate([row], K)
    assert batch.frames_N2[:, 1].tolist() == [4, 5, 6, 7, 8]
    with torch.no_grad():
        said = tiny_moshi.network(batch)
        assert first.streams is not None
        assert last.streams is not None
        assert first.codes_TK is not None
        assert last.codes_TK is not None
        joined = [np.concatenate([getattr(first.streams, name), getattr(last.streams, name)]) for name in
                  ("text_T", "text_weights_T", "user_TK")]  # fmt: skip
        one = Row("one", (Turn((), np.concatenate([first.codes_TK, last.codes_TK]), Streams(*joined)),))
        whole = tiny_moshi.network(collate([one], K))
    torch.testing.assert_close(said.c0_NV, whole.c0_NV[4:])
    torch.testing.assert_close(said.depth_MJV, whole.depth_MJV[4:])


def test_the_batch_keeps_text_and_its_weights_beside_the_frames() -> None:
    row = moshi_row(6, frames=5)
    batch = collate([row], K)
    streams = row.turns[0].streams
    assert streams is not None
    assert batch.text_targets_N.tolist() == streams.text_T[:4].tolist()
    assert batch.text_weights_N.tolist() == streams.text_weights_T[:4].tolist()
    assert batch.to("cpu").user_BSK is not None


def test_rows_of_both_kinds_do_not_mix() -> None:
    other = Row("csm", (Turn((1, 2), np.zeros((3, K), dtype=np.int64)),))
    with pytest.raises(AssertionError, match="turns with and without streams"):
        collate([moshi_row(7, frames=3), other], K)


def test_depth_rows_name_the_row_of_every_step(tiny_moshi: Base) -> None:
    batch = collate([moshi_row(8, frames=3), moshi_row(9, frames=5)], K, [np.array([1]), np.array([0])])
    assert tiny_moshi.network.depth_rows(batch).tolist() == [0] * 3 + [1] * 5


def test_the_random_moshi_has_signal(tiny_moshi: Base) -> None:
    """Every part of the network gets gradients from every part of the loss: no test may pass on a dead model."""
    batch = collate([moshi_row(10, frames=9), moshi_row(11, frames=7)], K)
    tiny_moshi.model.requires_grad_(True)
    said = tiny_moshi.network(batch)
    assert said.text_NW is not None
    assert said.text_NW.shape == (14, TEXT_CARD)
    assert min(said.text_NW.std(), said.c0_NV.std(), said.depth_MJV.std()) > 0.5
    (said.text_NW.square().sum() + said.c0_NV.square().sum() + said.depth_MJV.square().sum()).backward()
    dead = [
        name for name, weight in tiny_moshi.model.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert dead == []


@pytest.mark.parametrize("places", [None, [0, 1, 2, 3], [2]])
def test_a_stack_is_multiplied_matrix_by_matrix_and_not_copied_for_every_row(
    tiny_moshi: Base, places: list[int] | None
) -> None:
    """transformers' own product copies all matrices for every row: in Moshi's size more than a GPU has."""
    stack = tiny_moshi.network.depth.layers[0].mlp.fc1
    layer_idx = None if places is None else torch.tensor(places)
    x_ULI = torch.randn(50, 4 if places is None else len(places), stack.weight.shape[2])
    x_ULI.requires_grad_()
    peaks, found = [], []
    for forward in (stack.forward, lambda *inputs: type(stack).forward(stack, *inputs)):
        live = LiveBytes([stack.weight, x_ULI])
        with live:
            y_ULO = forward(x_ULI, layer_idx)
            (gradient_ULI,) = torch.autograd.grad(y_ULO.square().sum(), x_ULI)
        peaks.append(live.peak)
        found.append((y_ULO.detach(), gradient_ULI))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
    if places != [2]:
        assert peaks[1] > 50 * stack.weight.nbytes > 2 * peaks[0], "one matrix alone isn't copied"


def test_the_copies_stack_is_the_copies(tiny_moshi: Base) -> None:
    model = copy.deepcopy(tiny_moshi.model)
    stack = model.depth_decoder.layers[0].mlp.fc1
    with torch.no_grad():
        stack.weight.zero_()
    assert stack(torch.ones(2, 4, stack.weight.shape[2])).abs().max() == 0, "and not that of the one it was made from"
