"""`Frames` in C, on a CPU in float32: two calls of `frames.c` per frame, where NumPy takes some five hundred.

`affetto.speak.numpy_frames` is used without a C compiler (`affetto.native.compiler`), and for larger base models: the
C reads weights without rearranging them, which is fast only while a matrix fits into the processor's cache
(docs/performance.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_double, c_int64, c_void_p
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from affetto.native.compiler import MOST_LANES, MOST_MATRIX_BYTES, library, required, whole_vectors
from affetto.speak.layers import Cache, Rotary
from affetto.speak.sampling import Sampling
from affetto.speak.sites import Layer, Site
from affetto.speak.state import SpeakingBatch
from affetto.speak.weights import Arranged, Shape, SpeakingWeights

_POSITIONS_AT_ONCE = 1024
"""Most positions of prompts that go through the layers together, unless a single prompt has more."""

_Ints = NDArray[np.int64]


class _Site(ctypes.Structure):
    _fields_ = (
        ("w", c_void_p), ("a", c_void_p), ("b", c_void_p),
        ("in", c_int64), ("out", c_int64), ("rank", c_int64), ("has_own_w", c_int64), ("num_blocks", c_int64),
        ("ranks", c_void_p), ("widths", c_void_p),
    )  # fmt: skip


class _Stack(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("num_layers", "num_kv", "group", "head_dim", "width", "hidden", "num_slots")),
        ("eps", c_double), ("sites", POINTER(_Site)),
        *((name, c_void_p) for name in ("keys", "values", "cos", "sin")),
    )  # fmt: skip


class _Positions(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("num", "num_chunks", "num_wanted")),
        *((name, c_void_p) for name in ("rows", "slots", "turns", "starts", "ends", "wanted", "wanted_ends")),
    )


class _Scratch(ctypes.Structure):
    _fields_ = tuple(
        (name, c_void_p) for name in ("x", "normed", "qkv", "attended", "hidden", "low", "scores", "logits")
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("num_rows", "num_books", "num_codes", "vocab", "width")),
        *((name, c_void_p) for name in ("heard", "spoken", "norm", "c0_head", "heads", "uniform")),
        ("num_frames", c_int64), ("divisors", c_void_p * 2), ("is_greedy", c_void_p * 2), ("top_k", c_void_p),
        ("states", c_void_p), ("projector", _Site), ("backbone", _Stack), ("depth", _Stack), ("scratch", _Scratch),
    )  # fmt: skip


class NativeFrames:
    """`affetto.speak.state.Frames` in C."""

    def __init__(self, weights: SpeakingWeights, batch: SpeakingBatch, rotary: Rotary, depth_rotary: Rotary) -> None:
        num, zeros_B = len(batch.rows), np.zeros(len(batch.rows), np.int64)
        self.batch, self.library = batch, required("frames")
        self.starts_B = zeros_B if batch.starts_B is None else batch.starts_B.numpy()
        self.depth_slots_B, self.slots_B, self.turns_B = (np.zeros(num, np.int64) for _ in range(3))
        self.codes_BK = np.zeros((num, weights.num_codebooks), np.int64)
        rows_B, pair_M = np.arange(num), np.tile(np.arange(2), num)
        ends_G = _chunk_ends(batch.weights, num)
        self.first = _PositionArrays(
            np.repeat(rows_B, 2), pair_M, pair_M, zeros_B, 2 * ends_G, wanted=2 * rows_B + 1, wanted_ends=ends_G
        )
        self.next = _PositionArrays(rows_B, self.depth_slots_B, self.depth_slots_B, zeros_B, ends_G)
        self.heard = _PositionArrays(rows_B, self.slots_B, self.turns_B, self.starts_B, ends_G)
        self.native = _NativeBatch(weights, batch.weights, batch.cache, batch.states_BD, rotary, 2 * num)
        self.native.set_drawing(weights, batch, depth_rotary)

    def frame(self) -> Tensor:
        """See `Frames`."""
        self.library.affetto_frame(
            byref(self.native.struct), byref(self.first.struct), byref(self.next.struct), _pointer(self.depth_slots_B),
            c_int64(self.batch.num_frames), _pointer(self.codes_BK),
        )  # fmt: skip
        return torch.from_numpy(self.codes_BK.copy())

    def hear(self, codes_BK: Tensor) -> None:
        """See `Frames`."""
        self.slots_B[:] = self.batch.slot
        np.subtract(self.slots_B, self.starts_B, out=self.turns_B)
        codes = np.ascontiguousarray(codes_BK.numpy())
        self.library.affetto_hear(byref(self.native.struct), byref(self.heard.struct), _pointer(codes))


def read(
    weights: SpeakingWeights, arranged: Arranged, prompts: Sequence[Tensor], cache: Cache, rotary: Rotary,
    places: list[int], slot: int,
) -> Tensor:  # fmt: skip
    """Read prompts (S, D) into rows `places` of an empty cache, up to `slot`; the backbone's last states (B, D).

    Positions go through the layers in groups of whole rows that stay in the processor's cache, without padding.
    """
    lengths_B = np.array([len(prompt_SD) for prompt_SD in prompts])
    most = max(_POSITIONS_AT_ONCE, int(lengths_B.max()))
    starts_B = np.zeros(cache.num_rows(weights.backbone_shape), np.int64)
    starts_B[places] = slot - lengths_B
    row_ends_G = _chunk_ends(arranged, len(prompts))
    states_BD = weights.norm_D.new_zeros(len(prompts), len(weights.norm_D))
    native, frames_c, first = _NativeBatch(weights, arranged, cache, states_BD, rotary, most), required("frames"), 0
    while first < len(prompts):
        num_fitting = int(np.searchsorted(np.cumsum(lengths_B[first:]), most, side="right"))
        part = slice(first, first + num_fitting)
        ends = np.cumsum(lengths_B[part])
        rows_M = np.repeat(places[part], lengths_B[part])
        turns_M = np.concatenate([np.arange(length) for length in lengths_B[part]])
        wanted_ends_G = np.clip(row_ends_G - first, 0, num_fitting)
        positions = _PositionArrays(
            rows_M, turns_M + starts_B[rows_M], turns_M, starts_B, np.concatenate([[0], ends])[wanted_ends_G],
            wanted=ends - 1, wanted_ends=wanted_ends_G,
        )  # fmt: skip
        x_MD = torch.cat(list(prompts[part]))
        native.struct.states = states_BD[part].data_ptr()
        frames_c.affetto_read(byref(native.struct), byref(positions.struct), c_void_p(x_MD.data_ptr()))
        first += num_fitting
    return states_BD


class _PositionArrays:
    """The positions of one call of `frames.c`: its struct, and the arrays that the struct points to."""

    def __init__(
        self, rows: _Ints, slots: _Ints, turns: _Ints, starts: _Ints, ends: _Ints, wanted: _Ints | None = None,
        wanted_ends: _Ints | None = None,
    ) -> None:  # fmt: skip
        wanted = np.arange(len(rows)) if wanted is None else wanted
        self.arrays = [
            np.ascontiguousarray(array, np.int64)
            for array in (rows, slots, turns, starts, ends, wanted, ends if wanted_ends is None else wanted_ends)
        ]
        self.struct = _Positions(len(rows), len(ends), len(wanted), *map(_pointer, self.arrays))


class _NativeBatch:
    """A batch for `frames.c`: a struct of pointers to its weights, caches and scratch memory."""

    def __init__(
        self, weights: SpeakingWeights, arranged: Arranged, cache: Cache, states_BD: Tensor, rotary: Rotary,
        num_positions: int,
    ) -> None:  # fmt: skip
        shapes, sites = (weights.backbone_shape, weights.depth_shape), arranged.sites
        self.kept: list[Any] = []
        struct = self.struct = _Batch(
            num_rows=cache.num_rows(weights.backbone_shape), num_books=weights.num_codebooks,
            num_codes=weights.codebook_size, vocab=weights.vocab_size, width=states_BD.shape[1],
        )  # fmt: skip
        for name, tensor in (("heard", weights.heard_table), ("norm", weights.norm_D), ("states", states_BD)):
            setattr(struct, name, self._address(tensor))
        struct.backbone = self._stack(arranged.backbone, shapes[0], cache, rotary)
        ins, outs = (max(site.w.shape[axis] for site in sites) for axis in (-2, -1))
        rank = max(0 if site.a_GIR is None else site.a_GIR.shape[-1] for site in sites)
        all_slots = cache.keys_LNDS.shape[-1], slots_with_room(weights.num_codebooks)
        sizes = {
            "x": num_positions * ins, "normed": num_positions * ins, "qkv": num_positions * outs,
            "attended": num_positions * ins, "hidden": num_positions * max(ins, outs), "low": num_positions * rank,
            "scores": max(
                shape.group * whole_vectors(slots)
                for shape, slots in zip(shapes, all_slots, strict=True)
            ),
            "logits": 2 * weights.codebook_size * len(states_BD),
        }  # fmt: skip
        for name, size in sizes.items():
            setattr(struct.scratch, name, self._address(torch.empty(size, dtype=torch.float32)))

    def set_drawing(self, weights: SpeakingWeights, batch: SpeakingBatch, depth_rotary: Rotary) -> None:
        """Set what drawing frames needs and reading prompts doesn't."""
        struct = self.struct
        struct.projector = self._site(batch.weights.projector)
        struct.depth = self._stack(batch.weights.depth, weights.depth_shape, batch.depth_cache, depth_rotary)
        struct.spoken, struct.c0_head = self._address(weights.spoken_tables[0]), self._address(weights.c0_head_DC)
        heads = (c_void_p * len(weights.heads_DC))(*(self._address(head_DC) for head_DC in weights.heads_DC))
        self.kept.append(heads)
        struct.heads = ctypes.cast(heads, c_void_p)
        self.set_sampling(batch.sampling, batch.uniform_BTK)

    def set_sampling(self, sampling: Sampling, uniform_BTK: Tensor) -> None:
        """Set how codes are drawn, and the random numbers."""
        struct = self.struct
        struct.uniform, struct.num_frames = self._address(uniform_BTK), uniform_BTK.shape[1]
        struct.top_k = self._address(sampling.top_k_B)
        for place, warmth in enumerate(sampling.warmths):
            struct.divisors[place] = self._address(warmth.divisor_B1)
            struct.is_greedy[place] = self._address(warmth.temperature_B == 0)

    def _stack(self, layers: Sequence[Layer], shape: Shape, cache: Cache, rotary: Rotary) -> _Stack:
        sites = (_Site * (4 * len(layers)))(*(self._site(site) for layer in layers for site in layer.sites))
        self.kept.append(sites)
        return _Stack(
            len(layers), shape.num_kv, shape.group, shape.head_dim, layers[0].down.w.shape[-1],
            layers[0].down.w.shape[-2], cache.keys_LNDS.shape[-1], shape.eps, sites, self._address(cache.keys_LNDS),
            self._address(cache.values_LNSD), self._address(rotary.cos_S2H), self._address(rotary.sin_S2H),
        )  # fmt: skip

    def _site(self, site: Site) -> _Site:
        parts = [0 if part is None else self._address(part) for part in (site.w, site.a_GIR, site.b_GRO)]
        rank = 0 if site.a_GIR is None else site.a_GIR.shape[-1]
        blocks = np.array((site.ranks, site.widths) if rank else ((0,), (0,)), np.int64)
        self.kept.append(blocks)
        return _Site(
            *parts,
            *site.w.shape[-2:],
            rank,
            int(site.w.ndim == 3),
            blocks.shape[1],
            _pointer(blocks[0]),
            _pointer(blocks[1]),
        )

    def _address(self, tensor: Tensor) -> int:
        """The address of a tensor, whose memory is kept as long as this object."""
        assert tensor.is_contiguous()
        assert tensor.dtype in (torch.float32, torch.int64, torch.bool), f"frames.c doesn't know {tensor.dtype}"
        # Detached, because a parameter that moves to another device gets other memory.
        self.kept.append(tensor.detach())
        return tensor.data_ptr()


def slots_with_room(count: int) -> int:
    """Slots that a cache for `count` positions needs: C reads whole vectors of them, from a row's first slot on."""
    return whole_vectors(count) + MOST_LANES


def _chunk_ends(arranged: Arranged, num_rows: int) -> _Ints:
    """Ends (G,) of the chunks, counted in rows."""
    stacked = [part for site in arranged.sites for part in (site.a_GIR, site.w if site.w.ndim == 3 else None)]
    num_chunks = next((len(part) for part in stacked if part is not None), 1)
    return num_rows // num_chunks * np.arange(1, num_chunks + 1)


def _pointer(array: NDArray[Any]) -> c_void_p:
    return c_void_p(array.ctypes.data)


def speaks_natively(weights: SpeakingWeights) -> bool:
    """Whether C can speak a base: on a CPU, in float32, with matrices that fit its cache, given a compiler."""
    is_supported = weights.device.type == "cpu" and weights.dtype == torch.float32 and not weights.is_shared
    return is_supported and weights.largest_bytes <= MOST_MATRIX_BYTES and library("frames") is not None
