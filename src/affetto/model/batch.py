"""Rows of conversation turns, and the batch of tensors that a base reads.

A row is a conversation: turns of text followed by frames of codes. Only the last turn's frames are predicted;
earlier turns are context. Every turn with codes ends with the end-of-audio frame (all zeros in CSM).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def moved_to(values: Tensor, device: torch.device | str) -> Tensor:
    """`values` on `device`; copying to a GPU doesn't block the host."""
    if torch.device(device).type != "cuda" or values.device.type != "cpu" or values.requires_grad:
        return values.to(device)
    return pinned(values).to(device, non_blocking=True)


def pinned(values: Tensor) -> Tensor:
    """`values` in pinned host memory, from which copying to a GPU is quick."""
    return values if values.is_pinned() else values.pin_memory()


@dataclass(frozen=True)
class Streams:
    """What runs in parallel with a turn's frames in a base that listens while it speaks (Moshi)."""

    text_T: NDArray[np.integer]
    """The inner monologue: the words' tokens when they are said, padding otherwise."""
    text_weights_T: NDArray[np.floating]
    """The weight of each token in the text's loss."""
    user_TK: NDArray[np.integer]
    """The other speaker's codes."""


@dataclass(frozen=True)
class Turn:
    """The text of one turn and its audio."""

    text_ids: tuple[int, ...]
    """Token ids as the base's own template gives them, begin and end tokens included."""
    codes_TK: NDArray[np.integer] | None
    """Frames of codes; None for the turn that is to be spoken."""
    streams: Streams | None = None
    """Only for bases whose text runs in parallel with the frames. Such a turn has no end-of-audio frame, and its last
    frame is only input: it is needed for the delayed acoustic codes of the one before."""
    end_code: int = 0
    """The code that fills the end-of-audio frame (`Network.end_code`)."""

    @property
    def num_positions(self) -> int:
        """Positions that the turn takes in the backbone."""
        if self.codes_TK is None:
            return len(self.text_ids)
        return len(self.codes_TK) if self.streams else len(self.text_ids) + len(self.codes_TK) + 1


def turn_bytes(turns: Sequence[Turn]) -> list[bytes]:
    """The content of turns, for hashing: prompts, codes and parallel streams."""
    parts = []
    for turn in turns:
        codes = np.zeros((0, 0)) if turn.codes_TK is None else turn.codes_TK
        parts += [_bytes(turn.text_ids, np.int64), _bytes(codes, np.int64)]
        if (streams := turn.streams) is not None:
            parts += [_bytes(streams.text_T, np.int64), _bytes(streams.text_weights_T, np.float64)]
            parts.append(_bytes(streams.user_TK, np.int64))
    return parts


def _bytes(values: Any, dtype: type) -> bytes:
    return np.ascontiguousarray(values, dtype=dtype).tobytes()


@dataclass(frozen=True)
class Row:
    """One training example."""

    clip_id: str
    turns: tuple[Turn, ...]
    """Context first; the last turn is the one that is predicted."""
    gate: tuple[float, ...] = ()
    """One value per emotion of the bank; empty means the base alone."""

    def at(self, intensity: float) -> Row:
        """The row with its gate multiplied by `intensity`."""
        return replace(self, gate=tuple(intensity * value for value in self.gate))

    @property
    def num_frames(self) -> int:
        """Predicted frames, the end-of-audio frame included."""
        codes = self.turns[-1].codes_TK
        return 0 if codes is None else len(codes) + (-1 if self.turns[-1].streams else 1)

    @property
    def num_positions(self) -> int:
        """Positions of the row in the backbone."""
        return sum(turn.num_positions for turn in self.turns)


@dataclass(frozen=True)
class Batch:
    """The input of a base. Rows are padded on the right, where causal attention never looks."""

    text_BS: Tensor
    """Token ids; 0 at positions that aren't text."""
    codes_BSK: Tensor
    """Codes; 0 at positions that aren't audio. The end-of-audio frame (all zeros in CSM) is audio."""
    is_audio_BS: Tensor
    frames_N2: Tensor
    """(row, position) of every predicted frame."""
    depth_M: Tensor
    """Indices of those of the N frames that the depth decoder predicts, ascending."""
    gate_BE: Tensor
    """Adapter gates, one row each; (B, 0) is the base."""
    clip_ids: tuple[str, ...]
    text_ids_U: Tensor
    """The distinct token ids of `text_BS`. They stay on the host, as a large embedding table does, …"""
    text_places_BS: Tensor
    """… and this is the index into them at each position."""
    text_weights_BS: Tensor | None = None
    """With `Streams` only: the weight of each text token in the loss."""
    user_BSK: Tensor | None = None
    """With `Streams` only: the other speaker's codes."""

    @property
    def text_targets_N(self) -> Tensor:
        """The text tokens that run in parallel with the predicted frames."""
        return self.text_BS[self.frames_N2[:, 0], self.frames_N2[:, 1]]

    @property
    def text_weights_N(self) -> Tensor:
        """Their weights in the loss."""
        assert self.text_weights_BS is not None, "this base's text comes before its frames"
        return self.text_weights_BS[self.frames_N2[:, 0], self.frames_N2[:, 1]]

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
            name: moved_to(value, device)
            for name, value in self.__dict__.items()
            if isinstance(value, Tensor) and name != "text_ids_U"
        }
        return replace(self, **moved)

    def pinned(self) -> Batch:
        """The batch in pinned memory, from which `to` a GPU is quick."""
        ready: dict[str, Any] = {
            name: pinned(value) for name, value in self.__dict__.items() if isinstance(value, Tensor)
        }
        return replace(self, **ready)

    def with_gate(self, gate_BE: Tensor) -> Batch:
        """The same rows under other gates."""
        return replace(self, gate_BE=gate_BE)


@dataclass(frozen=True)
class Logits:
    """A base's predictions for a batch, in float32: codebook zero of N frames, codebooks 1..K-1 of M frames."""

    c0_NV: Tensor
    depth_MJV: Tensor
    text_NW: Tensor | None = None
    """The text of N frames, in a base whose text runs in parallel with them."""

    def split(self, batches: Sequence[Batch]) -> list[Logits]:
        """The logits of each of `batches`, given those of their `join`."""
        c0 = torch.split(self.c0_NV, [len(batch.frames_N2) for batch in batches])
        depth = torch.split(self.depth_MJV, [len(batch.depth_M) for batch in batches])
        text: Sequence[Tensor | None] = [None] * len(batches)
        if self.text_NW is not None:
            text = torch.split(self.text_NW, [len(batch.frames_N2) for batch in batches])
        return [Logits(*parts) for parts in zip(c0, depth, text, strict=True)]


def collate(
    rows: Sequence[Row], num_codebooks: int, depth_choice: Sequence[NDArray[np.integer]] | None = None
) -> Batch:
    """Make a batch. `depth_choice` lists, row by row, the predicted frames for the depth decoder; None is all of them.

    A row without a gate gets zeros if others have one.
    """
    num_rows, width = len(rows), max(row.num_positions for row in rows)
    text_BS = np.zeros((num_rows, width), dtype=np.int64)
    codes_BSK = np.zeros((num_rows, width, num_codebooks), dtype=np.int64)
    is_audio_BS = np.zeros((num_rows, width), dtype=bool)
    has_streams = any(turn.streams for row in rows for turn in row.turns)
    text_weights_BS = np.zeros((num_rows, width), dtype=np.float32)
    user_BSK = np.zeros_like(codes_BSK)
    frames: list[NDArray[np.int64]] = []
    depth: list[NDArray[np.int64]] = []
    for b, row in enumerate(rows):
        assert row.num_frames > 0, f"{row.clip_id}: the last turn has no codes to predict"
        place = 0
        for turn in row.turns:
            assert bool(turn.streams) == has_streams, f"{row.clip_id}: turns with and without streams in one batch"
            if not turn.streams:
                text_BS[b, place : place + len(turn.text_ids)] = turn.text_ids
                place += len(turn.text_ids)
            if turn.codes_TK is None:
                continue
            assert turn.codes_TK.shape[1:] == (num_codebooks,), f"{row.clip_id}: codes {turn.codes_TK.shape}"
            start = place
            codes_BSK[b, place : place + len(turn.codes_TK)] = turn.codes_TK
            if turn.streams:
                place += len(turn.codes_TK)
                text_BS[b, start:place] = turn.streams.text_T
                text_weights_BS[b, start:place] = turn.streams.text_weights_T
                user_BSK[b, start:place] = turn.streams.user_TK
            else:
                place += len(turn.codes_TK) + 1
                codes_BSK[b, place - 1] = turn.end_code
            is_audio_BS[b, start:place] = True
        chosen = np.arange(row.num_frames) if depth_choice is None else np.sort(depth_choice[b])
        depth.append(chosen + sum(len(places) for places in frames))
        frames.append(np.stack([np.full(row.num_frames, b), start + np.arange(row.num_frames)], axis=1))
    text_ids_U, text_places_BS = np.unique(text_BS, return_inverse=True)
    return Batch(
        text_BS=torch.from_numpy(text_BS),
        codes_BSK=torch.from_numpy(codes_BSK),
        is_audio_BS=torch.from_numpy(is_audio_BS),
        frames_N2=torch.from_numpy(np.concatenate(frames)),
        depth_M=torch.from_numpy(np.concatenate(depth).astype(np.int64)),
        gate_BE=stack_gates([row.gate for row in rows]),
        clip_ids=tuple(row.clip_id for row in rows),
        text_ids_U=torch.from_numpy(text_ids_U),
        text_places_BS=torch.from_numpy(text_places_BS.reshape(text_BS.shape)),
        text_weights_BS=torch.from_numpy(text_weights_BS) if has_streams else None,
        user_BSK=torch.from_numpy(user_BSK) if has_streams else None,
    )


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, with the predicted frames in the batches' order. All gates must have the same width."""
    if len(batches) == 1:
        return batches[0]
    width = max(batch.text_BS.shape[1] for batch in batches)

    def padded(name: str) -> Tensor:
        values = [getattr(batch, name) for batch in batches]
        return torch.cat([pad_positions(value, width) for value in values])

    text_places, num_ids = [], 0
    for batch in batches:
        text_places.append(pad_positions(batch.text_places_BS + num_ids, width))
        num_ids += len(batch.text_ids_U)
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
        text_ids_U=torch.cat([batch.text_ids_U for batch in batches]),
        text_places_BS=torch.cat(text_places),
        text_weights_BS=padded("text_weights_BS") if batches[0].text_weights_BS is not None else None,
        user_BSK=padded("user_BSK") if batches[0].user_BSK is not None else None,
    )


def pad_positions(values_BS: Tensor, width: int) -> Tensor:
    """`values_BS` (B, S, …) with zeros on the right up to `width` positions."""
    missing = values_BS.new_zeros((len(values_BS), width - values_BS.shape[1], *values_BS.shape[2:]))
    return torch.cat([values_BS, missing], dim=1)


def stack_gates(gates: Sequence[Sequence[float]]) -> Tensor:
    """Gates (B, E) of rows; an empty one becomes all zeros, which is the base."""
    width = max(len(gate) for gate in gates)
    assert all(len(gate) in (0, width) for gate in gates), f"gates of {sorted({len(gate) for gate in gates})} adapters"
    return torch.tensor([gate or (0.0,) * width for gate in map(tuple, gates)], dtype=torch.float32).reshape(
        len(gates), width
    )
