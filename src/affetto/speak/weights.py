"""A base's weights as speaking wants them: few, fused and transposed, with the adapters of a batch's rows beside them.

Layers that read the same input become one product, the norm's weight in front of them is multiplied in, and what the
codec can't say is cut off the heads. Rows of a batch stand in G chunks of equally many rows, one gate each, so that
a product is the base's plus a batched one of low rank: y = x W + (x A_g) B_g. Where all rows have one gate the adapters
are merged instead, W + A B, and cost nothing (in float32 only: bfloat16 would round a small change away).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from affetto.adapters.bank import GatedLora
from affetto.errors import BaseModelError
from affetto.model.csm import CsmNetwork
from affetto.model.network import is_let_go, let_go

Gate = tuple[float, ...]
"""Intensities by adapter; () where all are zero."""
_MOST_ARRANGEMENTS = 4


@dataclass(frozen=True)
class Site:
    """One product of rows that stand in G chunks."""

    w: Tensor
    """(I, O), or (G, I, O) where adapters of full rank make every chunk's its own."""
    a_GIR: Tensor | None = None
    b_GRO: Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    qkv: Site
    """Outputs by key-value head: its query heads, its key, its value."""
    out: Site
    gate_up: Site
    down: Site


@dataclass(frozen=True)
class Shape:
    """What a stack's tensors look like, and the constants of its layers."""

    num_kv: int
    """Key-value heads."""
    group: int
    """Query heads for each."""
    head_dim: int
    eps: float
    inv_freq: Tensor
    """Rotary frequencies (head_dim / 2,), float32."""
    rope_scale: float


@dataclass(frozen=True)
class Arranged:
    """Both stacks for one arrangement of gates."""

    backbone: tuple[Layer, ...]
    depth: tuple[Layer, ...]
    projector: Site


class SpeakingWeights:
    """Weights of a CSM-shaped base for the engine. The embedding tables are the base's own, everything else a copy.

    A network that only speaks lets go of each layer's weights as they are copied, so that they are there once;
    `before` then has the copies, where adapters have come since.
    """

    def __init__(self, network: CsmNetwork, before: SpeakingWeights | None = None) -> None:
        backbone, depth = network.backbone, network.depth.model
        size = network.codebook_size
        self.num_codebooks, self.codebook_size, self.vocab_size = network.num_codebooks, size, network.vocab_size
        self.text_table: Tensor = network.embed_text.weight
        self.heard_table: Tensor = backbone.embed_tokens.embed_audio_tokens.weight
        self.spoken_tables = tuple(depth.embed_tokens.weight.split(network.vocab_size))
        self.c0_head_DC = network.c0_head.weight[:size].float().T.contiguous()
        self.norm_D: Tensor = backbone.norm.weight
        self.backbone_shape, self.depth_shape = _shape(backbone), _shape(depth)
        kept = _Kept(network.only_speaks, before.copies if before is not None else {})
        self._backbone = tuple(_Sources(layer, self.backbone_shape, kept) for layer in backbone.layers)
        self._depth = tuple(_Sources(layer, self.depth_shape, kept) for layer in depth.layers)
        self._projector = _Source([depth.inputs_embeds_projector], kept)
        self.copies: dict[nn.Module, Tensor] = kept.copies
        # The norm in front of the heads has no other reader; that in front of c0's feeds the depth decoder too.
        norm_D1 = depth.norm.weight.float()[:, None]
        self.heads_DC = tuple(
            (head_DV[:, :size].float() * norm_D1).contiguous() for head_DV in network.depth.codebooks_head.weight
        )
        self._arranged: dict[tuple[Gate, ...], Arranged] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Of the layers; heads and logits are float32 always."""
        return self.norm_D.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm_D.device

    def arranged(self, gates: Sequence[Gate]) -> Arranged:
        """The weights for rows with these gates, in this order."""
        chunks = chunked(gates)
        if chunks not in self._arranged:
            while len(self._arranged) >= _MOST_ARRANGEMENTS:
                del self._arranged[next(iter(self._arranged))]
            self._arranged[chunks] = Arranged(
                tuple(sources.layer(chunks) for sources in self._backbone),
                tuple(sources.layer(chunks) for sources in self._depth),
                self._projector.site(chunks),
            )
        return self._arranged[chunks]


def chunked(gates: Sequence[Gate]) -> tuple[Gate, ...]:
    """Gates of the fewest equally long chunks of rows, each of one gate."""
    runs = [(gate, len(list(rows))) for gate, rows in groupby(gates)]
    rows_each = math.gcd(*(count for _, count in runs))
    return tuple(gate for gate, count in runs for _ in range(count // rows_each))


def fingerprint(network: CsmNetwork) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight of the network, or of its adapters, is replaced or written to."""
    return tuple(
        (weight.data_ptr(), -1 if weight.is_inference() else weight._version) for weight in network.parameters()
    )


class _Kept:
    """Copies of the sites' weights, by the first of their layers; whether the layers' own are let go of."""

    def __init__(self, lets_go: bool, before: dict[nn.Module, Tensor]) -> None:
        self.lets_go = lets_go
        self.copies: dict[nn.Module, Tensor] = {}
        self._before = before

    def copy(self, layers: Sequence[Any], make: Callable[[], Tensor]) -> Tensor:
        """The copy for a site of `layers`, which `make` makes where there is none."""
        if not self.lets_go:
            return make()
        w_IO = self.copies[layers[0]] = self._before[layers[0]] if is_let_go(layers[0].weight) else make()
        for layer in layers:
            layer.weight.data = let_go(layer.weight.data)
        return w_IO


class _Source:
    """Where a site comes from: layers of one input, whose outputs stand side by side in `order`."""

    def __init__(
        self, layers: Sequence[nn.Module], kept: _Kept, norm_I: Tensor | None = None, order_O: Tensor | None = None
    ) -> None:
        self.layers = layers
        self.norm_I = None if norm_I is None else norm_I.float()
        self.order_O = order_O
        plain: list[Any] = [layer.layer if isinstance(layer, GatedLora) else layer for layer in layers]
        if any(layer.bias is not None for layer in plain):
            raise BaseModelError("a base whose layers have biases can't be spoken with; CSM's have none")
        self.widths = [len(layer.weight) for layer in plain]
        self.dtype: torch.dtype = plain[0].weight.dtype
        self.w_IO = kept.copy(plain, lambda: self._copied(torch.cat([layer.weight for layer in plain])))

    def _copied(self, weight_OI: Tensor) -> Tensor:
        return self._read(self._ordered(weight_OI)).to(self.dtype).contiguous()

    def _ordered(self, rows_OI: Tensor) -> Tensor:
        return rows_OI if self.order_O is None else rows_OI[self.order_O]

    def _read(self, rows_OI: Tensor) -> Tensor:
        """Transposed to (I, O), with the norm's weight on the inputs."""
        return rows_OI.T if self.norm_I is None else (rows_OI.float() * self.norm_I).T

    def site(self, chunks: Sequence[Gate]) -> Site:
        """The product for chunks of these gates."""
        unique = list(dict.fromkeys(chunks))
        changes = [self._change(gate) for gate in unique]
        factors = [self._factors(gate) for gate in unique]
        if len(unique) == 1 and self.dtype == torch.float32:
            (change_IO,), ((a_IR, b_RO),) = changes, factors
            w_IO = self.w_IO if change_IO is None else self.w_IO + change_IO
            return Site(torch.addmm(w_IO, a_IR, b_RO) if a_IR.shape[1] else w_IO)
        index = torch.tensor([unique.index(gate) for gate in chunks], device=self.w_IO.device)
        w = self.w_IO
        if any(change is not None for change in changes):
            w = torch.stack([w if change is None else (w + change).to(w.dtype) for change in changes])[index]
        rank = max(a_IR.shape[1] for a_IR, _ in factors)
        if rank == 0:
            return Site(w)
        a_GIR = self.w_IO.new_zeros(len(unique), self.w_IO.shape[0], rank)
        b_GRO = self.w_IO.new_zeros(len(unique), rank, self.w_IO.shape[1])
        for g, (a_IR, b_RO) in enumerate(factors):
            a_GIR[g, :, : a_IR.shape[1]] = a_IR
            b_GRO[g, : b_RO.shape[0]] = b_RO
        return Site(w, a_GIR[index], b_GRO[index])

    def _adapters(self, gate: Gate) -> list[tuple[int, Tensor, Tensor | None, float]]:
        """(layer, A, B, strength) of what the gate turns on."""
        found = []
        for place, layer in enumerate(self.layers):
            if isinstance(layer, GatedLora):
                for intensity, (name, a_RI) in zip(gate, layer.A.items(), strict=bool(gate)):
                    if intensity != 0:
                        found.append((place, a_RI, layer.B.get(name, None), intensity * layer.scale[name]))
        return found

    def _change(self, gate: Gate) -> Tensor | None:
        """Sum (I, O) of the adapters of full rank; None without any."""
        total: Tensor | None = None
        for place, change_OI, b_OR, strength in self._adapters(gate):
            if b_OR is None:
                change_IO = self._read(self._ordered(self._padded(place, strength * change_OI.float())))
                total = change_IO if total is None else total + change_IO
        return total

    def _factors(self, gate: Gate) -> tuple[Tensor, Tensor]:
        """(A (I, R), B (R, O)) of the adapters of low rank, side by side; R is 0 without any."""
        low = [(place, a_RI, b_OR, s) for place, a_RI, b_OR, s in self._adapters(gate) if b_OR is not None]
        if not low:
            return self.w_IO.new_zeros(self.w_IO.shape[0], 0), self.w_IO.new_zeros(0, self.w_IO.shape[1])
        a_RI = torch.cat([a_RI.float() for _, a_RI, _, _ in low])
        b_OR = torch.cat([self._padded(place, s * b_OR.float()) for place, _, b_OR, s in low], dim=1)
        return self._read(a_RI), self._ordered(b_OR).T

    def _padded(self, place: int, rows_OX: Tensor) -> Tensor:
        """One layer's outputs among those of all."""
        before, after = sum(self.widths[:place]), sum(self.widths[place + 1 :])
        return nn.functional.pad(rows_OX, (0, 0, before, after))


class _Sources:
    """The sites of one decoder layer."""

    def __init__(self, layer: Any, shape: Shape, kept: _Kept) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        width, num_q = shape.head_dim, shape.num_kv * shape.group * shape.head_dim
        num_k = shape.num_kv * width
        places = torch.arange(num_q + 2 * num_k, device=layer.input_layernorm.weight.device)
        parts = [part.view(shape.num_kv, -1) for part in torch.split(places, [num_q, num_k, num_k])]
        self.qkv = _Source(
            [attention.q_proj, attention.k_proj, attention.v_proj],
            kept,
            layer.input_layernorm.weight,
            torch.cat(parts, dim=1).flatten(),
        )
        self.out = _Source([attention.o_proj], kept)
        self.gate_up = _Source([mlp.gate_proj, mlp.up_proj], kept, layer.post_attention_layernorm.weight)
        self.down = _Source([mlp.down_proj], kept)

    def layer(self, chunks: Sequence[Gate]) -> Layer:
        """The layer for chunks of these gates."""
        return Layer(*(source.site(chunks) for source in (self.qkv, self.out, self.gate_up, self.down)))


def _shape(stack: Any) -> Shape:
    config = stack.config
    if config.hidden_act != "silu":
        raise BaseModelError(f"a base with the activation {config.hidden_act!r} can't be spoken with; CSM's is silu")
    return Shape(
        num_kv=config.num_key_value_heads,
        group=config.num_attention_heads // config.num_key_value_heads,
        head_dim=config.head_dim,
        eps=config.rms_norm_eps,
        inv_freq=stack.rotary_emb.inv_freq.float(),
        rope_scale=float(stack.rotary_emb.attention_scaling),
    )
