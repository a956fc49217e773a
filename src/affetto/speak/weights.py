"""A base's weights as speaking wants them: few and fused, with the adapters of a batch's rows beside them.

Layers that read the same input become one product, and what the codec can't say is cut off the heads. Rows of a batch
stand in G chunks of equally many rows, one gate each, so that a product is the base's plus a batched one of low rank:
y = x W + (x A_g) B_g. Where all rows have one gate the adapters are merged instead, W + A B, and cost nothing (in
float32 only: bfloat16 would round a small change away).

On the CPU they are copies, transposed and with the weight of the norm in front of them multiplied in, which makes
fewer and quicker calls. On a GPU, where a large base must not be there twice, they are the base's own memory: layers of
one input are laid side by side there, and the base's weights become views of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from affetto.adapters.bank import GatedLora
from affetto.errors import BaseModelError
from affetto.model.csm import CsmNetwork

Gate = tuple[float, ...]
"""Intensities by adapter; () where all are zero."""
MOST_ARRANGEMENTS = 4
"""Of gates, which a base's weights are kept for."""
MOST_MERGED_BYTES = 2**30
"""Of those, weights with adapters merged into them; what is spoken with is kept whatever it takes."""


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
    """Outputs: all query heads, all keys, all values."""
    out: Site
    gate_up: Site
    down: Site
    attention_norm_D: Tensor | None = None
    """Weight of the norm in front of `qkv`; None where it is multiplied in."""
    mlp_norm_D: Tensor | None = None
    """The same in front of `gate_up`."""

    @property
    def sites(self) -> tuple[Site, Site, Site, Site]:
        """Its products, in the order in which they are done."""
        return self.qkv, self.out, self.gate_up, self.down


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

    @property
    def sites(self) -> list[Site]:
        """All products."""
        return [self.projector, *(site for layer in (*self.backbone, *self.depth) for site in layer.sites)]


class SpeakingWeights:
    """Weights of a CSM-shaped base for the engine. The embedding tables are the base's own in any case."""

    def __init__(self, network: CsmNetwork, *, is_shared: bool | None = None) -> None:
        """`is_shared` decides whether layers are the base's own memory, whatever the device."""
        backbone, depth = network.backbone, network.depth.model
        if is_shared is None:
            is_shared = backbone.norm.weight.device.type == "cuda"
        self.is_shared = is_shared
        """Whether layers are the base's own memory."""
        size = network.codebook_size
        self.num_codebooks, self.codebook_size, self.vocab_size = network.num_codebooks, size, network.vocab_size
        self.text_table: Tensor = network.embed_text.weight
        self.heard_table: Tensor = backbone.embed_tokens.embed_audio_tokens.weight
        self.spoken_tables = tuple(depth.embed_tokens.weight.split(network.vocab_size))
        self.norm_D: Tensor = backbone.norm.weight
        self.head_norm_D: Tensor | None = depth.norm.weight if is_shared else None
        heads_JDC = network.depth.codebooks_head.weight[..., :size]
        if is_shared:
            self.c0_head_DC = network.c0_head.weight[:size].T
            self.heads_DC = tuple(heads_JDC.transpose(1, 2).contiguous().transpose(1, 2))
        else:
            self.c0_head_DC = network.c0_head.weight[:size].float().T.contiguous()
            # The norm in front of the heads has no other reader; that in front of c0's feeds the depth decoder too.
            self.heads_DC = tuple((heads_JDC.float() * depth.norm.weight.float()[:, None]).contiguous())
        self.backbone_shape, self.depth_shape = _shape(backbone), _shape(depth)
        self._backbone = tuple(_Sources(layer, is_shared) for layer in backbone.layers)
        self._depth = tuple(_Sources(layer, is_shared) for layer in depth.layers)
        self._projector = _Source([depth.inputs_embeds_projector], is_shared)
        self._arranged: dict[tuple[Gate, ...], Arranged] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Of the layers; logits are float32 always."""
        return self.norm_D.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm_D.device

    @property
    def largest_bytes(self) -> int:
        """Of the largest product's weights."""
        return max(source.w_IO.nbytes for source in self._all_sources())

    def arranged(self, gates: Sequence[Gate]) -> Arranged:
        """The weights for rows with these gates, in this order."""
        chunks = chunked(gates)
        if chunks not in self._arranged:
            self._make_room(chunks)
            self._arranged[chunks] = Arranged(
                tuple(sources.layer(chunks) for sources in self._backbone),
                tuple(sources.layer(chunks) for sources in self._depth),
                self._projector.site(chunks),
            )
        return self._arranged[chunks]

    def _make_room(self, chunks: tuple[Gate, ...]) -> None:
        """Let the oldest arrangements go, before the one of `chunks` is made."""
        kept = self._arranged
        while len(kept) >= MOST_ARRANGEMENTS:
            del kept[next(iter(kept))]
        if self._is_merged(chunks):
            each = sum(source.w_IO.nbytes for source in self._all_sources() if source.is_adapted)
            most = max(1, MOST_MERGED_BYTES // max(1, each))
            merged = [known for known in kept if self._is_merged(known)]
            for known in merged[: max(0, len(merged) + 1 - most)]:
                del kept[known]

    def _is_merged(self, chunks: tuple[Gate, ...]) -> bool:
        return len(set(chunks)) == 1 and any(chunks[0]) and self.dtype == torch.float32

    def _all_sources(self) -> list[_Source]:
        layers = [*self._backbone, *self._depth]
        return [self._projector, *(source for one in layers for source in (one.qkv, one.out, one.gate_up, one.down))]


def chunked(gates: Sequence[Gate]) -> tuple[Gate, ...]:
    """Gates of the fewest equally long chunks of rows, each of one gate."""
    runs = [(gate, len(list(rows))) for gate, rows in groupby(gates)]
    rows_each = math.gcd(*(count for _, count in runs))
    return tuple(gate for gate, count in runs for _ in range(count // rows_each))


class _Source:
    """Where a site comes from: layers of one input, whose outputs stand side by side."""

    def __init__(self, layers: Sequence[nn.Module], is_shared: bool, norm_I: Tensor | None = None) -> None:
        """`norm_I` is multiplied in."""
        self.layers, self.is_shared = layers, is_shared
        self.norm_I = None if norm_I is None else norm_I.float()
        plain: list[Any] = [layer.layer if isinstance(layer, GatedLora) else layer for layer in layers]
        if any(layer.bias is not None for layer in plain):
            raise BaseModelError("a base whose layers have biases can't be spoken with; CSM's have none")
        self.widths = [len(layer.weight) for layer in plain]
        if is_shared:
            self.w_IO = _side_by_side(plain).T
        else:
            weight_OI = torch.cat([layer.weight for layer in plain])
            self.w_IO = self._read(weight_OI).to(weight_OI.dtype).contiguous()
        self.dtype = self.w_IO.dtype

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter changes any of its layers."""
        return any(isinstance(layer, GatedLora) for layer in self.layers)

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
        if self.is_shared:
            # Kernels read an input's numbers one after another.
            return Site(w, a_GIR[index].transpose(1, 2).contiguous().transpose(1, 2), b_GRO[index])
        return Site(w, a_GIR[index], b_GRO[index])

    def _adapters(self, gate: Gate) -> list[tuple[int, Tensor, Tensor | None, float]]:
        """(layer, A, B, strength) of what the gate turns on; adapters may wait on the host."""
        found, device = [], self.w_IO.device
        for place, layer in enumerate(self.layers):
            if isinstance(layer, GatedLora):
                for intensity, (name, a_RI) in zip(gate, layer.A.items(), strict=bool(gate)):
                    if intensity != 0:
                        b_OR = layer.B[name].to(device) if name in layer.B else None
                        found.append((place, a_RI.to(device), b_OR, intensity * layer.scale[name]))
        return found

    def _change(self, gate: Gate) -> Tensor | None:
        """Sum (I, O) of the adapters of full rank; None without any."""
        total: Tensor | None = None
        for place, change_OI, b_OR, strength in self._adapters(gate):
            if b_OR is None:
                change_IO = self._read(self._padded(place, strength * change_OI.float()))
                total = change_IO if total is None else total + change_IO
        return total

    def _factors(self, gate: Gate) -> tuple[Tensor, Tensor]:
        """(A (I, R), B (R, O)) of the adapters of low rank, side by side; R is 0 without any."""
        low = [(place, a_RI, b_OR, s) for place, a_RI, b_OR, s in self._adapters(gate) if b_OR is not None]
        if not low:
            return self.w_IO.new_zeros(self.w_IO.shape[0], 0), self.w_IO.new_zeros(0, self.w_IO.shape[1])
        a_RI = torch.cat([a_RI.float() for _, a_RI, _, _ in low])
        b_OR = torch.cat([self._padded(place, s * b_OR.float()) for place, _, b_OR, s in low], dim=1)
        return self._read(a_RI), b_OR.T

    def _padded(self, place: int, rows_OX: Tensor) -> Tensor:
        """One layer's outputs among those of all."""
        before, after = sum(self.widths[:place]), sum(self.widths[place + 1 :])
        return nn.functional.pad(rows_OX, (0, 0, before, after))


class _Sources:
    """The sites of one decoder layer."""

    def __init__(self, layer: Any, is_shared: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.norms = norms if is_shared else (None, None)
        inner = (None, None) if is_shared else norms
        self.qkv = _Source([attention.q_proj, attention.k_proj, attention.v_proj], is_shared, inner[0])
        self.out = _Source([attention.o_proj], is_shared)
        self.gate_up = _Source([mlp.gate_proj, mlp.up_proj], is_shared, inner[1])
        self.down = _Source([mlp.down_proj], is_shared)

    def layer(self, chunks: Sequence[Gate]) -> Layer:
        """The layer for chunks of these gates."""
        qkv, out, gate_up, down = (source.site(chunks) for source in (self.qkv, self.out, self.gate_up, self.down))
        return Layer(qkv, out, gate_up, down, *self.norms)


def _side_by_side(layers: Sequence[Any]) -> Tensor:
    """Weights of layers one below the other (O, I), in memory of their own of which the layers' become views."""
    weights: list[Tensor] = [layer.weight for layer in layers]
    if len(weights) == 1:
        return weights[0].detach()
    first = weights[0].detach()
    ends = [weight.data_ptr() + weight.nbytes for weight in weights]
    starts = [weight.data_ptr() for weight in weights]
    is_there = all(weight.is_contiguous() for weight in weights) and starts[1:] == ends[:-1]
    if is_there and len({weight.untyped_storage().data_ptr() for weight in weights}) == 1:
        return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())
    with torch.inference_mode(False), torch.no_grad():
        joined_OI = torch.cat([weight.detach() for weight in weights])
        parts = torch.split(joined_OI, [len(weight) for weight in weights])
        for layer, part_OI in zip(layers, parts, strict=True):
            # A layer in four bits unpacks its weight when asked, and keeps what it has.
            if isinstance(layer, nn.Linear):
                layer.weight.data = part_OI
    return joined_OI


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
