"""The products of speaking: layers that read the same input are joined, with the adapters of a batch's rows.

The rows of a batch form G chunks of equal length with one gate each, so that a product is the base's plus a batched one
of low rank: y = x W + (x A_g) B_g. If all rows have the same gate the adapters are merged instead, W + A B, and cost
nothing (only in float32: bfloat16 would round a small change away).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from affetto.errors import BaseModelError
from affetto.model.gated_lora import GatedLora

Gate = tuple[float, ...]
"""Intensity per adapter; () if all are zero."""


@dataclass(frozen=True)
class Site:
    """The weights of one product, for rows in G chunks."""

    w: Tensor
    """(I, O), or (G, I, O) if adapters of full rank give every chunk its own."""
    a_GIR: Tensor | None = None
    b_GRO: Tensor | None = None
    """Block-diagonal, with a block (rank, outputs) per layer: `ranks` by `widths`."""
    ranks: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    qkv: Site
    """Outputs: all query heads, all keys, all values."""
    out: Site
    gate_up: Site
    down: Site
    attention_norm_D: Tensor | None = None
    """Weight of the norm in front of `qkv`; None if it is multiplied in."""
    mlp_norm_D: Tensor | None = None
    """The same in front of `gate_up`."""

    @property
    def sites(self) -> tuple[Site, Site, Site, Site]:
        """Its products, in the order in which they are computed."""
        return self.qkv, self.out, self.gate_up, self.down


class Source:
    """What a site is made of: layers with the same input, whose outputs are concatenated."""

    def __init__(self, layers: Sequence[nn.Module], is_shared: bool, norm_I: Tensor | None = None) -> None:
        """`norm_I` is the weight of a norm, to be multiplied in."""
        self.layers, self.is_shared = layers, is_shared
        self.norm_I = None if norm_I is None else norm_I.float()
        plain: list[Any] = [layer.layer if isinstance(layer, GatedLora) else layer for layer in layers]
        if any(layer.bias is not None for layer in plain):
            raise BaseModelError("a base whose layers have biases can't be spoken with; CSM's have none")
        self.widths = [len(layer.weight) for layer in plain]
        if is_shared:
            self.w_IO = _joined(plain).T
        else:
            weight_OI = torch.cat([layer.weight for layer in plain])
            self.w_IO = self._transposed(weight_OI).to(weight_OI.dtype).contiguous()
        self.dtype = self.w_IO.dtype

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter changes any of its layers."""
        return any(isinstance(layer, GatedLora) for layer in self.layers)

    def _transposed(self, rows_OI: Tensor) -> Tensor:
        """Transposed to (I, O), with the norm's weight multiplied in."""
        return rows_OI.T if self.norm_I is None else (rows_OI.float() * self.norm_I).T

    def site(self, chunks: Sequence[Gate]) -> Site:
        """The site for chunks with these gates."""
        unique = list(dict.fromkeys(chunks))
        changes = [self._change(gate) for gate in unique]
        ranks = tuple(map(max, *map(self._ranks, unique), [0] * len(self.widths)))
        factors = [self._factors(gate, ranks) for gate in unique]
        if len(unique) == 1 and self.dtype == torch.float32:
            (change_IO,), ((a_IR, b_RO),) = changes, factors
            w_IO = self.w_IO if change_IO is None else self.w_IO + change_IO
            return Site(torch.addmm(w_IO, a_IR, b_RO) if a_IR.shape[1] else w_IO)
        index = torch.tensor([unique.index(gate) for gate in chunks], device=self.w_IO.device)
        w = self.w_IO
        if any(change is not None for change in changes):
            w = torch.stack([w if change is None else (w + change).to(w.dtype) for change in changes])[index]
        if not any(ranks):
            return Site(w)
        a_GIR, b_GRO = (torch.stack(parts).to(w.dtype)[index] for parts in zip(*factors, strict=True))
        if self.is_shared:
            # Kernels read along the inputs, which should be adjacent in memory.
            a_GIR = a_GIR.transpose(1, 2).contiguous().transpose(1, 2)
        return Site(w, a_GIR, b_GRO, ranks, tuple(self.widths))

    def _adapters(self, gate: Gate) -> list[tuple[int, Tensor, Tensor | None, float]]:
        """(layer, A, B, strength) of the adapters that the gate turns on, which may have to be moved from the host."""
        adapters, device = [], self.w_IO.device
        for place, layer in enumerate(self.layers):
            if isinstance(layer, GatedLora):
                for intensity, (name, a_RI) in zip(gate, layer.A.items(), strict=bool(gate)):
                    if intensity != 0:
                        b_OR = layer.B[name].to(device) if name in layer.B else None
                        adapters.append((place, a_RI.to(device), b_OR, intensity * layer.scale[name]))
        return adapters

    def _change(self, gate: Gate) -> Tensor | None:
        """The sum (I, O) of the adapters of full rank; None if there are none."""
        total: Tensor | None = None
        for place, change_OI, b_OR, strength in self._adapters(gate):
            if b_OR is None:
                change_IO = self._transposed(self._padded(place, strength * change_OI.float()))
                total = change_IO if total is None else total + change_IO
        return total

    def _ranks(self, gate: Gate) -> list[int]:
        """Each layer's sum of the ranks of its low-rank adapters."""
        ranks = [0] * len(self.widths)
        for place, a_RI, b_OR, _ in self._adapters(gate):
            ranks[place] += 0 if b_OR is None else len(a_RI)
        return ranks

    def _factors(self, gate: Gate, ranks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A (I, R) and B (R, O), float32, of the low-rank adapters; each layer has its own `ranks` of the R."""
        a_IR = torch.zeros(self.w_IO.shape[0], sum(ranks), dtype=torch.float32, device=self.w_IO.device)
        b_RO = torch.zeros(sum(ranks), self.w_IO.shape[1], dtype=torch.float32, device=self.w_IO.device)
        free = [sum(ranks[:place]) for place in range(len(ranks))]
        for place, a_RI, b_OR, strength in self._adapters(gate):
            if b_OR is not None:
                rows = slice(free[place], free[place] + len(a_RI))
                a_IR[:, rows] = self._transposed(a_RI.float())
                b_RO[rows] = self._padded(place, strength * b_OR.float()).T
                free[place] = rows.stop
        return a_IR, b_RO

    def _padded(self, place: int, rows_OX: Tensor) -> Tensor:
        """One layer's outputs, padded with zeros to those of all layers."""
        before, after = sum(self.widths[:place]), sum(self.widths[place + 1 :])
        return nn.functional.pad(rows_OX, (0, 0, before, after))


class Sources:
    """The sources of one decoder layer."""

    def __init__(self, layer: Any, is_shared: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.norms = norms if is_shared else (None, None)
        merged = (None, None) if is_shared else norms
        self.qkv = Source([attention.q_proj, attention.k_proj, attention.v_proj], is_shared, merged[0])
        self.out = Source([attention.o_proj], is_shared)
        self.gate_up = Source([mlp.gate_proj, mlp.up_proj], is_shared, merged[1])
        self.down = Source([mlp.down_proj], is_shared)

    @property
    def all(self) -> tuple[Source, Source, Source, Source]:
        """The sources, in the order of `Layer.sites`."""
        return self.qkv, self.out, self.gate_up, self.down

    def layer(self, chunks: Sequence[Gate]) -> Layer:
        """The layer for chunks with these gates."""
        qkv, out, gate_up, down = (source.site(chunks) for source in self.all)
        return Layer(qkv, out, gate_up, down, *self.norms)


def _joined(layers: Sequence[Any]) -> Tensor:
    """The layers' weights joined (O, I), of which the layers' own become views."""
    weights: list[Tensor] = [layer.weight for layer in layers]
    if len(weights) == 1:
        return weights[0].detach()
    first = weights[0].detach()
    ends = [weight.data_ptr() + weight.nbytes for weight in weights]
    starts = [weight.data_ptr() for weight in weights]
    is_joined = all(weight.is_contiguous() for weight in weights) and starts[1:] == ends[:-1]
    if is_joined and len({weight.untyped_storage().data_ptr() for weight in weights}) == 1:
        return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())
    with torch.inference_mode(False), torch.no_grad():
        joined_OI = torch.cat([weight.detach() for weight in weights])
        parts = torch.split(joined_OI, [len(weight) for weight in weights])
        for layer, part_OI in zip(layers, parts, strict=True):
            # A layer in four bits unpacks its weight at each access, so it keeps its own.
            if isinstance(layer, nn.Linear):
                layer.weight.data = part_OI
    return joined_OI
