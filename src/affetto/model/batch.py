"""Rows of conversation turns, and the batch of tensors that a base reads.

A row is a conversation: turns of text followed by frames of codes. Only the last turn's frames are predicted;
earlier turns are context. Every trained turn ends with the end-of-audio frame (all zeros, as in CSM).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Turn:
    """Text and what was said."""

    text_ids: tuple[int, ...]
    """Token ids as the base's own template gives them, begin and end tokens included."""
    codes_TK: NDArray[np.integer] | None
    """Frames of codes; None for the turn that is to be spoken."""


@dataclass(frozen=True)
class Row:
    """One training example."""

    clip_id: str
    turns: tuple[Turn, ...]
    """Context first; the last turn is the one that is predicted."""
    gate: tuple[float, ...] = ()
    """One value per emotion of the bank; empty is the base."""

    @property
    def num_frames(self) -> int:
        """Predicted frames, the end-of-audio frame included."""
        codes = self.turns[-1].codes_TK
        return 0 if codes is None else len(codes) + 1

    @property
    def num_positions(self) -> int:
        """Positions of the row in the backbone."""
        frames = sum(len(turn.codes_TK) + 1 for turn in self.turns if turn.codes_TK is not None)
        return sum(len(turn.text_ids) for turn in self.turns) + frames


@dataclass(frozen=True)
class Batch:
    """What a base reads. Rows are padded on the right, where causal attention never looks."""

    text_BS: Tensor
    """Token ids; 0 where the position is not text."""
    codes_BSK: Tensor
    """Codes; 0 where the position is not audio. The end-of-audio frame is all zeros and is audio."""
    is_audio_BS: Tensor
    frames_N2: Tensor
    """(row, position) of every predicted frame."""
    depth_M: Tensor
    """Which of the N frames the depth decoder is trained on, ascending."""
    gate_BE: Tensor
    """Adapter gates, one row each; (B, 0) is the base."""
    clip_ids: tuple[str, ...]

    @property
    def c0_targets_N(self) -> Tensor:
        """Codebook zero of the predicted frames."""
        return self.codes_BSK[self.frames_N2[:, 0], self.frames_N2[:, 1], 0]

    @property
    def depth_frames_M2(self) -> Tensor:
        """(row, position) of the frames for the depth decoder."""
        return self.frames_N2[self.depth_M]

    @property
    def depth_codes_MK(self) -> Tensor:
        """All codebooks of those frames."""
        places = self.depth_frames_M2
        return self.codes_BSK[places[:, 0], places[:, 1]]

    @property
    def depth_targets_MJ(self) -> Tensor:
        """Codebooks 1 to K-1 of those frames (J = K-1)."""
        return self.depth_codes_MK[:, 1:]

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in self.__dict__.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def with_gate(self, gate_BE: Tensor) -> Batch:
        """The same rows under other gates."""
        return replace(self, gate_BE=gate_BE)


@dataclass(frozen=True)
class Logits:
    """What a base says of a batch, in float32: codebook zero of N frames, codebooks 1..K-1 of M frames."""

    c0_NV: Tensor
    depth_MJV: Tensor

    def split(self, batches: Sequence[Batch]) -> list[Logits]:
        """What is said of each of `batches`, of whose `join` these logits are."""
        c0 = torch.split(self.c0_NV, [len(batch.frames_N2) for batch in batches])
        depth = torch.split(self.depth_MJV, [len(batch.depth_M) for batch in batches])
        return [Logits(*pair) for pair in zip(c0, depth, strict=True)]


def collate(
    rows: Sequence[Row], num_codebooks: int, depth_choice: Sequence[NDArray[np.integer]] | None = None
) -> Batch:
    """Make a batch. `depth_choice` lists, row by row, the predicted frames for the depth decoder; None is all of them.

    Rows without a gate may sit beside rows with one: theirs is zero.
    """
    num_rows, width = len(rows), max(row.num_positions for row in rows)
    text_BS = np.zeros((num_rows, width), dtype=np.int64)
    codes_BSK = np.zeros((num_rows, width, num_codebooks), dtype=np.int64)
    is_audio_BS = np.zeros((num_rows, width), dtype=bool)
    frames: list[NDArray[np.int64]] = []
    depth: list[NDArray[np.int64]] = []
    for b, row in enumerate(rows):
        assert row.num_frames > 0, f"{row.clip_id}: the last turn has no codes to predict"
        place = 0
        for turn in row.turns:
            text_BS[b, place : place + len(turn.text_ids)] = turn.text_ids
            place += len(turn.text_ids)
            if turn.codes_TK is None:
                continue
            assert turn.codes_TK.shape[1:] == (num_codebooks,), f"{row.clip_id}: codes {turn.codes_TK.shape}"
            start = place
            codes_BSK[b, place : place + len(turn.codes_TK)] = turn.codes_TK
            place += len(turn.codes_TK) + 1
            is_audio_BS[b, start:place] = True
        chosen = np.arange(row.num_frames) if depth_choice is None else np.sort(depth_choice[b])
        depth.append(chosen + sum(len(places) for places in frames))
        frames.append(np.stack([np.full(row.num_frames, b), np.arange(start, place)], axis=1))
    return Batch(
        text_BS=torch.from_numpy(text_BS),
        codes_BSK=torch.from_numpy(codes_BSK),
        is_audio_BS=torch.from_numpy(is_audio_BS),
        frames_N2=torch.from_numpy(np.concatenate(frames)),
        depth_M=torch.from_numpy(np.concatenate(depth).astype(np.int64)),
        gate_BE=stack_gates([row.gate for row in rows]),
        clip_ids=tuple(row.clip_id for row in rows),
    )


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, with the predicted frames in the batches' order. Their gates must be equally wide."""
    if len(batches) == 1:
        return batches[0]
    width = max(batch.text_BS.shape[1] for batch in batches)

    def padded(name: str) -> Tensor:
        values = [getattr(batch, name) for batch in batches]
        return torch.cat([pad_positions(value, width) for value in values])

    rows = np.cumsum([0, *(len(batch.clip_ids) for batch in batches)])
    frames = np.cumsum([0, *(len(batch.frames_N2) for batch in batches)])
    shifted = []
    for batch, first in zip(batches, rows[:-1].tolist(), strict=True):
        shifted.append(batch.frames_N2 + torch.tensor([first, 0], device=batch.frames_N2.device))
    return Batch(
        text_BS=padded("text_BS"),
        codes_BSK=padded("codes_BSK"),
        is_audio_BS=padded("is_audio_BS"),
        frames_N2=torch.cat(shifted),
        depth_M=torch.cat([batch.depth_M + first for batch, first in zip(batches, frames[:-1].tolist(), strict=True)]),
        gate_BE=torch.cat([batch.gate_BE for batch in batches]),
        clip_ids=tuple(name for batch in batches for name in batch.clip_ids),
    )


def pad_positions(values_BS: Tensor, width: int) -> Tensor:
    """`values_BS` (B, S, …) with zeros on the right up to `width` positions."""
    missing = values_BS.new_zeros((len(values_BS), width - values_BS.shape[1], *values_BS.shape[2:]))
    return torch.cat([values_BS, missing], dim=1)


def stack_gates(gates: Sequence[Sequence[float]]) -> Tensor:
    """Gates (B, E) of rows; an empty one is the base, all zeros."""
    width = max(len(gate) for gate in gates)
    assert all(len(gate) in (0, width) for gate in gates), f"gates of {sorted({len(gate) for gate in gates})} adapters"
    return torch.tensor([gate or (0.0,) * width for gate in map(tuple, gates)], dtype=torch.float32).reshape(
        len(gates), width
    )
