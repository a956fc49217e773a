"""A base's weights prepared for speaking: few and fused, with the adapters of a batch's rows.

On the CPU they are copies, transposed and multiplied by the weight of the norm in front of them, which makes calls
fewer and faster. On a GPU, where a large base must not be in memory twice, they are the base's own memory: layers with
the same input are joined, and the base's weights become views of the joined ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from affetto.errors import BaseModelError
from affetto.model.csm import CsmNetwork
from affetto.speak.sites import Gate, Layer, Site, Source, Sources

MOST_ARRANGEMENTS = 4
"""Most arrangements of gates for which a base's weights are kept."""
MOST_MERGED_BYTES = 2**30
"""Most bytes of kept weights that have adapters merged into them; those in use are kept whatever their size."""


@dataclass(frozen=True)
class Shape:
    """The sizes and constants of a stack's layers."""

    num_kv: int
    """Number of key-value heads."""
    group: int
    """Number of query heads for each."""
    head_dim: int
    eps: float
    inv_freq: Tensor
    """Rotary frequencies (head_dim / 2,), float32."""
    rope_scale: float


@dataclass(frozen=True)
class Arranged:
    """The weights of both stacks for one arrangement of gates."""

    backbone: tuple[Layer, ...]
    depth: tuple[Layer, ...]
    projector: Site

    @property
    def sites(self) -> list[Site]:
        """The sites of all products."""
        return [self.projector, *(site for layer in (*self.backbone, *self.depth) for site in layer.sites)]


class SpeakingWeights:
    """Weights of a CSM-shaped base for the engine. The embedding tables are always the base's own."""

    def __init__(self, network: CsmNetwork, *, is_shared: bool | None = None) -> None:
        """`is_shared` says whether layers are the base's own memory; by default they are on a GPU."""
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
            # Only the heads read their norm, so it is multiplied in; c0's norm feeds the depth decoder too.
            self.heads_DC = tuple((heads_JDC.float() * depth.norm.weight.float()[:, None]).contiguous())
        self.backbone_shape, self.depth_shape = _shape(backbone), _shape(depth)
        self._backbone = tuple(Sources(layer, is_shared) for layer in backbone.layers)
        self._depth = tuple(Sources(layer, is_shared) for layer in depth.layers)
        self._projector = Source([depth.inputs_embeds_projector], is_shared)
        self._arranged: dict[tuple[Gate, ...], Arranged] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The layers' dtype; logits are always float32."""
        return self.norm_D.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm_D.device

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest product's weights."""
        return max(source.w_IO.nbytes for source in self._all_sources())

    def arranged(self, gates: Sequence[Gate]) -> Arranged:
        """The weights for rows with these gates, in this order."""
        chunks = chunked(gates)
        if chunks not in self._arranged:
            self._drop_oldest(chunks)
            self._arranged[chunks] = Arranged(
                tuple(sources.layer(chunks) for sources in self._backbone),
                tuple(sources.layer(chunks) for sources in self._depth),
                self._projector.site(chunks),
            )
        return self._arranged[chunks]

    def _drop_oldest(self, chunks: tuple[Gate, ...]) -> None:
        """Drop the oldest arrangements, before the one of `chunks` is made."""
        kept = self._arranged
        while len(kept) >= MOST_ARRANGEMENTS:
            del kept[next(iter(kept))]
        if self._is_merged(chunks):
            merged_bytes = sum(source.w_IO.nbytes for source in self._all_sources() if source.is_adapted)
            most = max(1, MOST_MERGED_BYTES // max(1, merged_bytes))
            merged = [other for other in kept if self._is_merged(other)]
            for oldest in merged[: max(0, len(merged) + 1 - most)]:
                del kept[oldest]

    def _is_merged(self, chunks: tuple[Gate, ...]) -> bool:
        return len(set(chunks)) == 1 and any(chunks[0]) and self.dtype == torch.float32

    def _all_sources(self) -> list[Source]:
        layers = [*self._backbone, *self._depth]
        return [self._projector, *(source for layer in layers for source in layer.all)]


def chunked(gates: Sequence[Gate]) -> tuple[Gate, ...]:
    """The gates of the rows' chunks: as few of equal length as possible, with one gate each."""
    runs = [(gate, len(list(rows))) for gate, rows in groupby(gates)]
    rows_each = math.gcd(*(count for _, count in runs))
    return tuple(gate for gate, count in runs for _ in range(count // rows_each))


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
