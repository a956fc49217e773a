"""Python's side of `layers.c`: a decoder layer with its adapters, forward and backward."""

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
"""Positions in a group: if weights stay in a cache, and if not, when each group packs its matrices."""
_QUERIES = 32
"""As in `layers.c`."""


class _Part(ctypes.Structure):
    _fields_ = (("out", c_int64), ("rank", c_int64), *((name, c_void_p) for name in ("w_OI", "a_RI", "b_OR")))


class _Site(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("in", "out", "rank", "num_parts")),
        *((name, c_void_p) for name in ("w_IO", "gate")), ("parts", _Part * _PARTS),
    )  # fmt: skip


class _FactorGrads(ctypes.Structure):
    _fields_ = (("a_RI", c_void_p), ("b_RO", c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("length", "num_q", "num_kv", "head_dim", "width", "hidden", "at_once")),
        ("eps", c_double * 2), ("norms", c_void_p * 2), ("cos", c_void_p), ("sin", c_void_p), ("sites", _Site * 4),
    )  # fmt: skip


class _Saved(ctypes.Structure):
    _fields_ = (*((name, c_void_p) for name in ("qkv", "attended", "mid", "gate_up")), ("low", c_void_p * 4))


class _Workspace(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "narrow", "dmid", "wide", "other", "thin", "transposed", "scores")),
        ("panel", c_void_p), ("turned", c_void_p * 4),
    )  # fmt: skip


class _Record(ctypes.Structure):
    _fields_ = (("x", c_void_p), ("dy", c_void_p))


class _Pass(ctypes.Structure):
    _fields_ = (
        ("layer", POINTER(_Layer)), ("kept", POINTER(_Saved)), ("spaces", POINTER(_Workspace)),
        ("grads", POINTER(_FactorGrads)),
        ("sequences", c_void_p), ("ends", c_void_p),
        *((name, c_int64) for name in ("is_kept", "num_threads")),
        *((name, c_void_p) for name in ("x", "dy", "y", "dx")), ("records", POINTER(_Record)),
    )  # fmt: skip


@dataclass(frozen=True)
class SiteTensors:
    """Frozen matrices of one input, each with a low-rank adapter (rank 0: none)."""

    weights_OI: tuple[Tensor, ...]
    w_IO: Tensor | None
    """All of them transposed, side by side; if None, panels of them are transposed in every pass."""
    ranks: tuple[int, ...]
    """Rank of each matrix's adapter."""
    gate_BR: Tensor | None
    """Gates of each row, repeated for every rank of every matrix; None without adapters."""

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
    """A site's input and the gradient at its output; zero at positions that aren't computed."""

    x_BSI: Tensor
    dy_BSO: Tensor


@dataclass(frozen=True)
class LayerTensors:
    """A layer without its adapters' factors, and which positions to compute."""

    sites: Sequence[SiteTensors]
    """Queries, keys and values; attention's output; gate and up; down."""
    heads: tuple[int, int, int]
    """Number of query heads, number of key heads, and their width."""
    eps: tuple[float, float]
    norms: tuple[Tensor, Tensor]
    cos_SD: Tensor
    sin_SD: Tensor
    sequences_B4: NDArray[np.int64]
    """For each row `Sequence` of layers.c: length, first wanted position, and where both begin in what is saved."""

    @property
    def kept_widths(self) -> list[int]:
        """Numbers saved per position for the backward pass, in the order of `_Saved`."""
        qkv, out, gate_up, _ = self.sites
        ranks = [sum(site.ranks) for site in self.sites]
        return [sum(qkv.outs), out.num_in, sum(out.outs), sum(gate_up.outs), *ranks]

    @property
    def kept_sizes(self) -> list[int]:
        """Numbers saved in all: up to attention for every computed position, after it for the wanted ones."""
        length_B, first_B = self.sequences_B4[:, 0], self.sequences_B4[:, 1]
        num, wanted = int(length_B.sum()), int((length_B - first_B).sum())
        counts = [num, wanted, wanted, wanted, num, wanted, wanted, wanted]
        return [count * width for count, width in zip(counts, self.kept_widths, strict=True)]


def layer_forward(layer: LayerTensors, x_BSD: Tensor, factors: Sequence[Tensor], kept: Tensor | None = None) -> Tensor:
    """The layer's output (B, S, D) for x (B, S, D), zero at positions that aren't wanted.

    `factors` are A (R, in) and B (out, R) of every matrix that has an adapter. Activations for the backward pass are
    written to `kept`, of `sum(layer.kept_sizes)` numbers.
    """
    y_BSD = torch.empty_like(x_BSD)
    _Call(layer, x_BSD, factors).run(kept, y=y_BSD)
    return y_BSD


def layer_backward(
    layer: LayerTensors, x_BSD: Tensor, factors: Sequence[Tensor], kept: Tensor, dy_BSD: Tensor, *, needs_x: bool,
    needs_factors: bool, records: Sequence[SiteRecord] | None = None,
) -> tuple[Tensor | None, Sequence[Tensor | None]]:  # fmt: skip
    """Gradients of x and of the factors, None unless needed, from the output's `dy`. Fills the sites' `records`."""
    dx_BSD = torch.empty_like(x_BSD) if needs_x else None
    call = _Call(layer, x_BSD, factors)
    num = sum(factor.numel() for factor in factors)
    sums_T = x_BSD.new_zeros(call.num_threads, num) if needs_factors else None
    call.run(kept, dy=dy_BSD, dx=dx_BSD, grads=call.grads(sums_T), records=records)
    if sums_T is None:
        return dx_BSD, [None] * len(factors)
    return dx_BSD, call.split(sums_T[0] if len(sums_T) == 1 else sums_T.sum(dim=0))


class _Call:
    """The layer as a C struct, and the tensors that it points to."""

    def __init__(self, tensors: LayerTensors, x: Tensor, factors: Sequence[Tensor]) -> None:
        self.tensors, self.x = tensors, x
        self.held: list[Tensor] = []
        self.num_threads = min(torch.get_num_threads(), len(x))
        at_once = _POSITIONS_AT_ONCE if tensors.sites[0].w_IO is not None else _WIDE_AT_ONCE
        self.num_at_once = max(at_once, int(tensors.sequences_B4[:, 0].max()))
        self.layer = _Layer(
            x.shape[1], *tensors.heads, x.shape[2], tensors.sites[3].num_in, at_once, tensors.eps,
            (c_void_p * 2)(*map(self._at, tensors.norms)), self._at(tensors.cos_SD), self._at(tensors.sin_SD),
        )  # fmt: skip
        rest = iter(factors)
        for struct, site in zip(self.layer.sites, tensors.sites, strict=True):
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
        self, kept: Tensor | None, *, grads: Any = None, records: Sequence[SiteRecord] | None = None,
        **pointers: Tensor | None,
    ) -> None:  # fmt: skip
        """Forward into `y`; or, given `dy`, backward into `dx`, which may be None, `grads` and `records`."""
        sequences_B4 = self.tensors.sequences_B4
        behind = np.cumsum(sequences_B4[:, 0])
        shares = behind[-1] * np.arange(1, self.num_threads) / self.num_threads
        ends_T = np.append(np.searchsorted(behind, shares, side="right"), len(behind)).astype(np.int64)
        places = {name: None if one is None else one.data_ptr() for name, one in pointers.items()}
        work = _Pass(
            layer=pointer(self.layer), kept=self._kept(kept), spaces=self._spaces(), grads=grads,
            sequences=sequences_B4.ctypes.data, ends=ends_T.ctypes.data, is_kept=kept is not None,
            num_threads=self.num_threads, x=self._at(self.x), **places,
        )  # fmt: skip
        if records is not None:
            work.records = (_Record * 4)(*(_Record(one.x_BSI.data_ptr(), one.dy_BSO.data_ptr()) for one in records))
        required("layers").affetto_layer(byref(work))

    def _kept(self, kept: Tensor | None) -> Any:
        """Where saved activations go; without a backward pass, each thread's own memory for one group."""
        if kept is None:
            sizes = [self.num_at_once * width for width in self.tensors.kept_widths]
            numbers_T = torch.empty(self.num_threads, sum(sizes), dtype=torch.float32)
        else:
            sizes, numbers_T = self.tensors.kept_sizes, kept[None]
        self.held.append(numbers_T)
        found = [list(_places(numbers, sizes)) for numbers in numbers_T]
        return (_Saved * len(found))(*(_Saved(*places[:4], (c_void_p * 4)(*places[4:])) for places in found))

    def _spaces(self) -> Any:
        """Each thread's workspace for one group."""
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
            for site in self.tensors.sites
        ]
        numbers_T = torch.empty(self.num_threads, sum(sizes), dtype=torch.float32)
        self.held.append(numbers_T)
        found = [list(_places(numbers, sizes)) for numbers in numbers_T]
        return (_Workspace * len(found))(*(_Workspace(*places[:-4], (c_void_p * 4)(*places[-4:])) for places in found))

    def grads(self, sums_T: Tensor | None) -> Any:
        """Where each thread accumulates the factors' gradients, in their order; null pointers without `sums`."""
        found = (_FactorGrads * (4 * _PARTS * self.num_threads))()
        for thread, sums in enumerate(() if sums_T is None else sums_T):
            places = _places(sums, [rows * width for rows, width in self._grad_shapes()])
            for place, site in enumerate(self.tensors.sites):
                for part in (part for part, rank in enumerate(site.ranks) if rank):
                    found[(thread * 4 + place) * _PARTS + part] = _FactorGrads(next(places), next(places))
        return found

    def _grad_shapes(self) -> list[tuple[int, int]]:
        return [
            (rank, width)
            for site in self.tensors.sites
            for out, rank in zip(site.outs, site.ranks, strict=True)
            if rank
            for width in (site.num_in, out)
        ]

    def split(self, sums: Tensor) -> list[Tensor]:
        """The factors' gradients, (R, in) and (out, R), in their order."""
        shapes = self._grad_shapes()
        parts = torch.split(sums, [rows * width for rows, width in shapes])
        found = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return [grad.T if place % 2 else grad for place, grad in enumerate(found)]


def _places(numbers: Tensor, sizes: Sequence[int]) -> Iterator[int]:
    at = numbers.data_ptr()
    for size in sizes:
        yield at
        at += 4 * size
