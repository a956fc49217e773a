"""`layers.c` as Python calls it: a decoder layer's weights, adapters and sequences, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import POINTER, byref, c_double, c_int64, c_void_p, pointer
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from affetto.native.compiler import required, whole_vectors

_PARTS = 3
_POSITIONS_AT_ONCE, _WIDE_AT_ONCE = 128, 512
"""Of layers that stay in a cache, and of others, whose matrices are packed anew for so many."""
_QUERIES = 32
"""At a time, in `layers.c`."""


class _Part(ctypes.Structure):
    _fields_ = (("out", c_int64), ("rank", c_int64), *((name, c_void_p) for name in ("w_OI", "a_RI", "b_OR")))


class _Site(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("in", "out", "rank", "num_parts")),
        *((name, c_void_p) for name in ("w_IO", "gate")), ("parts", _Part * _PARTS),
    )  # fmt: skip


class _Slope(ctypes.Structure):
    _fields_ = (("a_RI", c_void_p), ("b_RO", c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("length", "num_q", "num_kv", "head_dim", "width", "hidden", "at_once")),
        ("eps", c_double * 2), ("norms", c_void_p * 2), ("cos", c_void_p), ("sin", c_void_p), ("sites", _Site * 4),
    )  # fmt: skip


class _Kept(ctypes.Structure):
    _fields_ = (*((name, c_void_p) for name in ("qkv", "attended", "mid", "gate_up")), ("low", c_void_p * 4))


class _Room(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "narrow", "dmid", "wide", "other", "thin", "transposed", "scores")),
        ("panel", c_void_p), ("turned", c_void_p * 4),
    )  # fmt: skip


class _Record(ctypes.Structure):
    _fields_ = (("x", c_void_p), ("dy", c_void_p))


class _Pass(ctypes.Structure):
    _fields_ = (
        ("layer", POINTER(_Layer)), ("kept", POINTER(_Kept)), ("rooms", POINTER(_Room)), ("slopes", POINTER(_Slope)),
        ("sequences", c_void_p), ("ends", c_void_p),
        *((name, c_int64) for name in ("is_kept", "num_threads")),
        *((name, c_void_p) for name in ("x", "dy", "y", "dx")), ("records", POINTER(_Record)),
    )  # fmt: skip


@dataclass(frozen=True)
class SiteTensors:
    """Frozen matrices that read one input, each with an adapter of low rank or of none."""

    weights_OI: tuple[Tensor, ...]
    w_IO: Tensor | None
    """All of them, side by side, the other way round; without it panels of them are turned for every pass."""
    ranks: tuple[int, ...]
    """Of the matrices' adapters."""
    gate_BR: Tensor | None
    """What a row's ranks are multiplied by, of all matrices; None without adapters."""

    @property
    def outs(self) -> list[int]:
        """Widths of the matrices' outputs."""
        return [len(weight_OI) for weight_OI in self.weights_OI]

    @property
    def num_in(self) -> int:
        """Width of their input."""
        return self.weights_OI[0].shape[1]


@dataclass(frozen=True)
class SiteRecord:
    """What a site's matrices read, and the gradient at what they made, side by side; zero where nothing is computed."""

    x_BSI: Tensor
    dy_BSO: Tensor


@dataclass(frozen=True)
class LayerTensors:
    """A layer but for its adapters' factors, and what is asked of it."""

    sites: Sequence[SiteTensors]
    """Queries, keys and values; attention's output; gate and up; down."""
    heads: tuple[int, int, int]
    """Queries', keys', and their width."""
    eps: tuple[float, float]
    norms: tuple[Tensor, Tensor]
    cos_SD: Tensor
    sin_SD: Tensor
    sequences_B4: NDArray[np.int64]
    """Of each row: positions that are computed, the first that is wanted, and where both lie if they lie together."""

    @property
    def kept_widths(self) -> list[int]:
        """Numbers that are kept of a position for the backward pass, as `_Kept` names them."""
        qkv, out, gate_up, _ = self.sites
        ranks = [sum(site.ranks) for site in self.sites]
        return [sum(qkv.outs), out.num_in, sum(out.outs), sum(gate_up.outs), *ranks]

    @property
    def kept_sizes(self) -> list[int]:
        """Numbers that are kept of all positions: before attention of all that are computed, then of those wanted."""
        length_B, first_B = self.sequences_B4[:, 0], self.sequences_B4[:, 1]
        num, wanted = int(length_B.sum()), int((length_B - first_B).sum())
        counts = [num, wanted, wanted, wanted, num, wanted, wanted, wanted]
        return [count * width for count, width in zip(counts, self.kept_widths, strict=True)]


def layer_forward(layer: LayerTensors, x_BSD: Tensor, factors: Sequence[Tensor], kept: Tensor | None = None) -> Tensor:
    """x (B, S, D) through the layer → (B, S, D), zero where nothing is wanted.

    `factors` are A (R, in) and B (out, R) of every matrix that has an adapter. What the backward pass needs is written
    to `kept` (the sum of `kept_sizes`,).
    """
    y_BSD = torch.empty_like(x_BSD)
    _Call(layer, x_BSD, factors).run(kept, y=y_BSD)
    return y_BSD


def layer_backward(
    layer: LayerTensors, x_BSD: Tensor, factors: Sequence[Tensor], kept: Tensor, dy_BSD: Tensor, *, needs_x: bool,
    needs_factors: bool, records: Sequence[SiteRecord] | None = None,
) -> tuple[Tensor | None, Sequence[Tensor | None]]:  # fmt: skip
    """Gradients of x and of the factors where they are needed, from y's. `records` of the sites are written to."""
    dx_BSD = torch.empty_like(x_BSD) if needs_x else None
    call = _Call(layer, x_BSD, factors)
    num = sum(factor.numel() for factor in factors)
    sums_T = x_BSD.new_zeros(call.num_threads, num) if needs_factors else None
    call.run(kept, dy=dy_BSD, dx=dx_BSD, slopes=call.slopes(sums_T), records=records)
    if sums_T is None:
        return dx_BSD, [None] * len(factors)
    return dx_BSD, call.split(sums_T[0] if len(sums_T) == 1 else sums_T.sum(dim=0))


class _Call:
    """A layer as the C knows it, and the tensors that it points to."""

    def __init__(self, told: LayerTensors, x: Tensor, factors: Sequence[Tensor]) -> None:
        self.told, self.x = told, x
        self.held: list[Tensor] = []
        self.num_threads = min(torch.get_num_threads(), len(x))
        at_once = _POSITIONS_AT_ONCE if told.sites[0].w_IO is not None else _WIDE_AT_ONCE
        self.num_at_once = max(at_once, int(told.sequences_B4[:, 0].max()))
        self.layer = _Layer(
            x.shape[1], *told.heads, x.shape[2], told.sites[3].num_in, at_once, told.eps,
            (c_void_p * 2)(*map(self._at, told.norms)), self._at(told.cos_SD), self._at(told.sin_SD),
        )  # fmt: skip
        rest = iter(factors)
        for struct, site in zip(self.layer.sites, told.sites, strict=True):
            setattr(struct, "in", site.num_in)
            struct.out, struct.rank, struct.num_parts = sum(site.outs), sum(site.ranks), len(site.outs)
            struct.w_IO = None if site.w_IO is None else self._at(site.w_IO)
            struct.gate = None if site.gate_BR is None else self._at(site.gate_BR)
            for place, (weight_OI, rank) in enumerate(zip(site.weights_OI, site.ranks, strict=True)):
                pair = (self._at(next(rest)), self._at(next(rest))) if rank else (None, None)
                struct.parts[place] = _Part(len(weight_OI), rank, self._at(weight_OI), *pair)

    def _at(self, tensor: Tensor) -> int:
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        self.held.append(tensor)
        return tensor.data_ptr()

    def run(
        self, kept: Tensor | None, *, slopes: Any = None, records: Sequence[SiteRecord] | None = None,
        **tensors: Tensor | None,
    ) -> None:  # fmt: skip
        """Forward into `y`; or, given `dy`, backward into `dx`, which may be None, `slopes` and `records`."""
        sequences_B4 = self.told.sequences_B4
        behind = np.cumsum(sequences_B4[:, 0])
        shares = behind[-1] * np.arange(1, self.num_threads) / self.num_threads
        ends_T = np.append(np.searchsorted(behind, shares, side="right"), len(behind)).astype(np.int64)
        places = {name: None if one is None else one.data_ptr() for name, one in tensors.items()}
        done = _Pass(
            layer=pointer(self.layer), kept=self._kept(kept), rooms=self._rooms(), slopes=slopes,
            sequences=sequences_B4.ctypes.data, ends=ends_T.ctypes.data, is_kept=kept is not None,
            num_threads=self.num_threads, x=self._at(self.x), **places,
        )  # fmt: skip
        if records is not None:
            done.records = (_Record * 4)(*(_Record(one.x_BSI.data_ptr(), one.dy_BSO.data_ptr()) for one in records))
        required("layers").affetto_layer(byref(done))

    def _kept(self, kept: Tensor | None) -> Any:
        """Where what is kept of every position lies; where nothing is, that of each thread's few."""
        if kept is None:
            sizes = [self.num_at_once * width for width in self.told.kept_widths]
            numbers_T = torch.empty(self.num_threads, sum(sizes), dtype=torch.float32)
        else:
            sizes, numbers_T = self.told.kept_sizes, kept[None]
        self.held.append(numbers_T)
        found = [list(_places(numbers, sizes)) for numbers in numbers_T]
        return (_Kept * len(found))(*(_Kept(*places[:4], (c_void_p * 4)(*places[4:])) for places in found))

    def _rooms(self) -> Any:
        """Room for the positions at once of each thread."""
        layer, num = self.layer, self.num_at_once
        heads = (layer.num_q + 2 * layer.num_kv) * layer.head_dim
        padded = whole_vectors(layer.length)
        sizes = [
            num * layer.width, num * layer.width, num * layer.width, num * max(layer.hidden, layer.width, heads),
            num * max(2 * layer.hidden, heads), num * max(site.rank for site in layer.sites),
            2 * padded * layer.head_dim, 2 * _QUERIES * padded, required("layers").affetto_packed_panel(),
        ]  # fmt: skip
        sizes += [
            sum(site.ranks) * site.num_in + sum(out * rank for out, rank in zip(site.outs, site.ranks, strict=True))
            for site in self.told.sites
        ]
        numbers_T = torch.empty(self.num_threads, sum(sizes), dtype=torch.float32)
        self.held.append(numbers_T)
        found = [list(_places(numbers, sizes)) for numbers in numbers_T]
        return (_Room * len(found))(*(_Room(*places[:-4], (c_void_p * 4)(*places[-4:])) for places in found))

    def slopes(self, sums_T: Tensor | None) -> Any:
        """Where each thread sums up the factors' gradients, in their order; nowhere without `sums`."""
        found = (_Slope * (4 * _PARTS * self.num_threads))()
        for thread, sums in enumerate(() if sums_T is None else sums_T):
            places = _places(sums, [rows * width for rows, width in self._slope_shapes()])
            for place, site in enumerate(self.told.sites):
                for part in (part for part, rank in enumerate(site.ranks) if rank):
                    found[(thread * 4 + place) * _PARTS + part] = _Slope(next(places), next(places))
        return found

    def _slope_shapes(self) -> list[tuple[int, int]]:
        return [
            (rank, width)
            for site in self.told.sites
            for out, rank in zip(site.outs, site.ranks, strict=True)
            if rank
            for width in (site.num_in, out)
        ]

    def split(self, sums: Tensor) -> list[Tensor]:
        """The factors' gradients, (R, in) and (out, R), in their order."""
        shapes = self._slope_shapes()
        parts = torch.split(sums, [rows * width for rows, width in shapes])
        found = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return [grad.T if place % 2 else grad for place, grad in enumerate(found)]


def _places(numbers: Tensor, sizes: Sequence[int]) -> Iterator[int]:
    at = numbers.data_ptr()
    for size in sizes:
        yield at
        at += 4 * size
