"""The engine: rows that speak together, frame by frame, and may join and leave between frames (continuous batching).

All rows write their next position into the same slot of a preallocated cache. So a shorter row starts later, with
padding on its left that is masked, and a frame needs no indexing by row. Rows that have ended stay in the batch,
unheard, until they are a quarter of it. Then, as when rows join, the living rows move into a new cache that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from affetto.errors import BaseModelError
from affetto.model.triton_runs import triton_runs
from affetto.speak.layers import Cache, Rotary
from affetto.speak.native_frames import NativeFrames, slots_with_room, speaks_natively
from affetto.speak.native_frames import read as read_natively
from affetto.speak.numpy_frames import NumpyFrames
from affetto.speak.prompts import embed_prompt, read
from affetto.speak.requests import Request
from affetto.speak.sampling import Sampling, dice, require_codes, require_numbers
from affetto.speak.state import Frames, Heard, SpeakingBatch, SpeakingRow
from affetto.speak.torch_frames import TorchFrames
from affetto.speak.weights import SpeakingWeights

Arithmetic = Literal["native", "numpy", "torch", "triton"]
"""What computes the frames: the modules `native_frames`, `numpy_frames`, `torch_frames` and `captured_frames`."""


class Engine:
    """Speaks rows of a base: `join` them, then `step` until each has said its last frame."""

    def __init__(
        self, weights: SpeakingWeights, arithmetic: Arithmetic | None = None, *, base: str = "the base"
    ) -> None:
        """Every arithmetic says the same; the default is the fastest for the device and precision.

        `base` is the base's name in errors.
        """
        self.weights, self.base = weights, base
        self.arithmetic = arithmetic or _fastest(weights)
        self._numbers = count()
        self._joining: list[SpeakingRow] = []
        self._batch: SpeakingBatch | None = None
        self._frames: Frames | None = None
        self._rotary = Rotary(weights.backbone_shape, 256, weights.dtype)
        self._depth_rotary = Rotary(weights.depth_shape, weights.num_codebooks, weights.dtype)

    @property
    def num_speaking(self) -> int:
        """Number of rows that have joined and not yet said their last frame."""
        living = [] if self._batch is None else [row for row in self._batch.rows if not row.is_done]
        return len(living) + len(self._joining)

    def join(self, requests: Sequence[Request]) -> list[int]:
        """Let rows speak from the next step on; returns the numbers by which `step` refers to them."""
        rows = []
        for request in requests:
            assert request.max_frames > 0, "a row that may not say a frame can't join"
            assert request.text_ids or request.context, "a row that has read nothing can't speak"
            gate = request.gate if any(request.gate) else ()
            uniform_TK = dice(request.seed, request.max_frames, self.weights.num_codebooks)
            rows.append(SpeakingRow(next(self._numbers), request, gate, uniform_TK.to(self.weights.device), 0))
        self._joining += rows
        return [row.number for row in rows]

    @torch.inference_mode()
    def step(self) -> list[Heard]:
        """One more frame of every row that speaks; a row that ends by itself is reported once more, without a frame.

        BaseModelError if rows that have joined would begin with NaN.
        """
        batch = self._batch
        num_living = 0 if batch is None else sum(not row.is_done for row in batch.rows)
        if batch is not None and self._frames is not None and num_living:
            self._frames.hear(batch.codes_BK)
            batch.slot += 1
            for row in batch.rows:
                row.num_positions += 1
        if batch is None or self._joining or 4 * num_living <= 3 * len(batch.rows):
            have_joined = bool(self._joining)
            batch = self._batch = self._rearranged(batch)
            if batch is None:
                self._frames = None
                return []
            self._frames = self._frames_of(batch)
            if have_joined and self.arithmetic != "native":
                self._check(batch)
        assert self._frames is not None
        batch.codes_BK = self._frames.frame()
        batch.num_frames += 1
        codes_BK = batch.codes_BK.cpu().numpy()
        try:
            require_codes(codes_BK, self.weights.codebook_size, self.base, batch.gates)
        except BaseModelError:
            self.close()
            raise
        heard = _heard(batch.rows, codes_BK)
        if not self.num_speaking:
            self.close()
        return heard

    def close(self) -> None:
        """Stop the rows that are speaking; rows that have joined but not begun will still speak."""
        self._free(self._batch)
        self._batch = self._frames = None

    def _check(self, batch: SpeakingBatch) -> None:
        """BaseModelError if a batch would begin with NaN; checked once per batch, outside of any captured graph.

        C doesn't need it: from such logits it draws a code that doesn't exist, which `require_codes` finds.
        """
        probe = TorchFrames(self.weights, batch, self._rotary, self._depth_rotary)
        try:
            require_numbers(probe.first_logits(), self.base, batch.gates)
        except BaseModelError:
            self.close()
            raise

    def _frames_of(self, batch: SpeakingBatch) -> Frames:
        if self.arithmetic == "triton":
            from affetto.speak.captured_frames import CapturedFrames

            return CapturedFrames(self.weights, batch)
        kinds: dict[str, Callable[..., Frames]]
        kinds = {"native": NativeFrames, "numpy": NumpyFrames, "torch": TorchFrames}
        return kinds[self.arithmetic](self.weights, batch, self._rotary, self._depth_rotary)

    def _rearranged(self, old: SpeakingBatch | None) -> SpeakingBatch | None:
        """A new batch of the living and the joining rows; None if there are none."""
        kept = [] if old is None else [index for index, row in enumerate(old.rows) if not row.is_done]
        joining, self._joining = self._joining, []
        rows = [*(old.rows[index] for index in kept if old is not None), *joining]
        if not rows:
            return None
        # All takes of a sentence have the same prompt, which is read once.
        readers = {_prompt_of(row): row for row in sorted(joining, key=lambda row: row.gate)}
        prompts = {prompt: embed_prompt(self.weights, row.request) for prompt, row in readers.items()}
        for row in joining:
            row.num_positions = len(prompts[_prompt_of(row)])
        # Rows with the same gate are adjacent, so that their adapters' products are few and large.
        order = sorted(range(len(rows)), key=lambda index: rows[index].gate)
        places = [order.index(index) for index in range(len(rows))]
        slot = max(row.num_positions for row in rows)
        num_left = max(row.request.max_frames - row.num_frames for row in rows)
        batch = self._empty([rows[index] for index in order], slot, num_left)
        if old is not None and kept:
            self._move(old, kept, batch, places[: len(kept)])
        if joining:
            numbers = {prompt: number for number, prompt in enumerate(prompts)}
            source = [numbers[_prompt_of(row)] for row in joining]
            self._prefill(list(readers.values()), list(prompts.values()), source, batch, places[len(kept) :])
        self._free(old)
        return batch

    def _free(self, batch: SpeakingBatch | None) -> None:
        """Free the room of a batch that is done, for other batches."""
        if batch is not None and batch.room is not None:
            from affetto.speak.captured_frames import leave

            leave(self.weights, batch.room)

    def _empty(self, rows: list[SpeakingRow], slot: int, num_left: int) -> SpeakingBatch:
        """A batch whose cache, still empty, has room for `slot` existing positions and `num_left` more."""
        weights, like, num_rows = self.weights, self.weights.norm_D, len(rows)
        while len(self._rotary.cos_S2H) < slot + num_left:
            self._rotary = Rotary(weights.backbone_shape, 2 * len(self._rotary.cos_S2H), like.dtype)
        shape, arranged = weights.backbone_shape, weights.arranged([row.gate for row in rows])
        starts = [slot - row.num_positions for row in rows]
        room, starts_B, mask = None, None, None
        if any(starts):
            starts_B = torch.tensor(starts, device=like.device)
        if starts_B is not None and self.arithmetic in ("numpy", "torch"):
            starts_N = starts_B.repeat_interleave(shape.num_kv)
            is_hidden = torch.arange(slot + num_left, device=like.device) < starts_N[:, None, None]
            mask = torch.zeros(is_hidden.shape, dtype=like.dtype, device=like.device)
            mask.masked_fill_(is_hidden, -torch.inf)
        uniform_BTK = torch.zeros(num_rows, num_left, weights.num_codebooks, dtype=torch.float32, device=like.device)
        for index, row in enumerate(rows):
            uniform_BTK[index, : row.request.max_frames - row.num_frames] = row.uniform_TK[row.num_frames :]
        if self.arithmetic == "triton":
            from affetto.speak.captured_frames import enter

            room = enter(weights, arranged, num_rows, slot + num_left, num_left)
            cache, depth_cache, states_BD = room.cache, room.depth_cache, room.states_BD
        else:
            num_slots, num_depth_slots = slot + num_left, weights.num_codebooks
            if self.arithmetic == "native":
                num_slots, num_depth_slots = map(slots_with_room, (num_slots, num_depth_slots))
            cache = Cache.empty(len(arranged.backbone), num_rows, num_slots, shape, like)
            depth_cache = Cache.empty(len(arranged.depth), num_rows, num_depth_slots, weights.depth_shape, like)
            states_BD = like.new_zeros(num_rows, len(like))
        sampling = Sampling([row.request for row in rows], weights.codebook_size, like.device)
        return SpeakingBatch(
            rows, arranged, sampling, cache, slot, states_BD, uniform_BTK, starts_B, mask, depth_cache, room
        )

    def _move(self, old: SpeakingBatch, kept: Sequence[int], new: SpeakingBatch, places: Sequence[int]) -> None:
        """Copy the states and cache of rows `kept` of the old batch into rows `places` of the new one."""
        device = self.weights.device
        width = max(old.rows[index].num_positions for index in kept)
        source, target = torch.tensor(kept, device=device), torch.tensor(places, device=device)
        new.states_BD[target] = old.states_BD[source]
        _copy_rows(old.cache, len(old.rows), old.slot, source, new.cache, len(new.rows), new.slot, target, width)

    def _prefill(
        self, readers: Sequence[SpeakingRow], prompts: Sequence[Tensor], source: Sequence[int], new: SpeakingBatch,
        places: Sequence[int],
    ) -> None:  # fmt: skip
        """Read the prompts (S, D) of joining rows at once, padded on the left; `source` numbers each row's prompt."""
        weights, device, width = self.weights, self.weights.device, max(map(len, prompts))
        arranged = weights.arranged([row.gate for row in readers])
        if self.arithmetic == "native":
            # Each prompt is read into the cache of the first row that has it.
            cache, slot, cached = new.cache, new.slot, [places[source.index(number)] for number in range(len(prompts))]
            states_BD = read_natively(weights, arranged, prompts, cache, self._rotary, cached, slot)
        else:
            cache = Cache.empty(len(arranged.backbone), len(prompts), width, weights.backbone_shape, prompts[0])
            slot, cached = width, list(range(len(prompts)))
            states_BD = read(weights, arranged, prompts, cache, self._rotary)
        new.states_BD[torch.tensor(places, device=device)] = states_BD[torch.tensor(source, device=device)]
        copies = [(cached[number], place) for number, place in zip(source, places, strict=True)]
        if cache is new.cache:
            copies = [(row, place) for row, place in copies if row != place]
        if copies:
            from_row, target = torch.tensor(copies, device=device).T
            num_cached = cache.num_rows(weights.backbone_shape)
            _copy_rows(cache, num_cached, slot, from_row, new.cache, len(new.rows), new.slot, target, width)


def _prompt_of(row: SpeakingRow) -> tuple[object, ...]:
    """Equal for rows that read the same with the same adapters. Turns hold arrays, so they are compared by identity."""
    return row.request.text_ids, tuple(map(id, row.request.context)), row.gate


def _fastest(weights: SpeakingWeights) -> Arithmetic:
    if weights.device.type == "cpu":
        return "torch" if weights.dtype != torch.float32 else "native" if speaks_natively(weights) else "numpy"
    widths = {weights.backbone_shape.head_dim, weights.depth_shape.head_dim}
    fit_kernels = all(width >= 32 and width & (width - 1) == 0 for width in widths)
    return "triton" if weights.device.type == "cuda" and fit_kernels and triton_runs() else "torch"


def _copy_rows(
    old: Cache, num_old: int, old_slot: int, source: Tensor, new: Cache, num_new: int, new_slot: int, target: Tensor,
    width: int,
) -> None:  # fmt: skip
    """Copy the last `width` positions before `old_slot` into those before `new_slot`."""
    (old_keys, old_values), (new_keys, new_values) = old.rows(num_old), new.rows(num_new)
    taken, free = slice(old_slot - width, old_slot), slice(new_slot - width, new_slot)
    new_keys[..., free].index_copy_(1, target, old_keys[..., taken].index_select(1, source))
    new_values[..., free, :].index_copy_(1, target, old_values[..., taken, :].index_select(1, source))


def _heard(rows: Sequence[SpeakingRow], codes_BK: NDArray[np.int64]) -> list[Heard]:
    """What each living row says in a frame; marks the rows that end with it as done."""
    heard = []
    # As in transformers, zeros in all codebooks but the last end a row.
    ended = np.logical_not(codes_BK[:, :-1].any(axis=1)).tolist()
    for row, codes_K, has_ended in zip(rows, codes_BK, ended, strict=True):
        if row.is_done:
            continue
        row.num_frames += not has_ended
        row.is_done = has_ended or row.num_frames == row.request.max_frames
        heard.append(Heard(row.number, None if has_ended else codes_K, row.is_done))
    return heard
