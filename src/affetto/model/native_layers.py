"""CSM's decoder layers on a CPU in float32, by `layers.c`: forward and backward each in one call a layer.

transformers composes a layer of some forty steps, autograd of as many again, each of which reads and writes all
activations; here a few sequences at a time go through the whole layer, adapters of low rank included, and stay in the
processor's cache. Where the C doesn't suit (`_suits`, `_part`), transformers' own steps run (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from transformers.models.csm import modeling_csm

from affetto.adapters.bank import GatedLora
from affetto.model.fused import is_composed, refuse_second_derivative
from affetto.model.gates import GateSwitch
from affetto.model.spans import asked_spans
from affetto.native.compiler import MOST_MATRIX_BYTES, library
from affetto.native.layers import LayerTensors, SiteTensors, layer_backward, layer_forward


class NativeLayer(modeling_csm.CsmDecoderLayer):  # type: ignore[misc]
    """A pre-norm layer of attention and SwiGLU, whose weights, names and answers are transformers'."""

    _frozen: tuple[Any, Sequence[tuple[Tensor, Tensor]]] | None = None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """x (B, S, D) → (B, S, D)."""
        found = None
        if attention_mask is None and past_key_values is None and position_embeddings is not None and not options:
            found = _found(self, hidden_states, position_embeddings)
        if found is None:
            plain: Tensor = super().forward(
                hidden_states, attention_mask, position_ids, past_key_values, use_cache, position_embeddings, **options
            )
            return plain
        told, factors = found
        if not torch.is_grad_enabled() or not any(one.requires_grad for one in (hidden_states, *factors)):
            return layer_forward(told, hidden_states.contiguous(), factors)
        y: Tensor = _NativeLayer.apply(hidden_states, told, *factors)  # type: ignore[no-untyped-call]
        return y

    def frozen(self, groups: Sequence[Sequence[Any]]) -> Sequence[tuple[Tensor, Tensor]]:
        """Weights (in, out) and (out, in) of layers that read one input, side by side, made anew when they change."""
        weights = [[layer.weight for layer in group] for group in groups]
        key = tuple((weight.data_ptr(), weight._version) for group in weights for weight in group)
        if self._frozen is None or self._frozen[0] != key:
            joined = [_side_by_side([weight.detach() for weight in group]) for group in weights]
            self._frozen = key, [(w_OI.T.contiguous(), w_OI) for w_OI in joined]
        return self._frozen[1]


@dataclass(frozen=True)
class _Part:
    """A frozen layer and the factors A and B of the adapters that are on, their ranks side by side."""

    layer: Any
    factors: tuple[Tensor, ...] = ()
    entries: Sequence[tuple[int, float, int]] = ()
    """Place among the gates, scale and rank of each."""
    gates: GateSwitch | None = None


def _side_by_side(weights: Sequence[Tensor]) -> Tensor:
    return weights[0].contiguous() if len(weights) == 1 else torch.cat(list(weights))


def _found(layer: Any, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[LayerTensors, list[Tensor]] | None:
    """A layer and its adapters' factors as the C is told of them; None where that doesn't suit."""
    attention, mlp = layer.self_attn, layer.mlp
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    groups = (
        (attention.q_proj, attention.k_proj, attention.v_proj), (attention.o_proj,), (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )  # fmt: skip
    if not _suits(layer, x, [norm.weight for norm in norms]) or len(angles[0]) != 1:
        return None
    parts = [[part for linear in group if (part := _part(linear)) is not None] for group in groups]
    if [len(group) for group in parts] != [len(group) for group in groups]:
        return None
    frozen = layer.frozen([[part.layer for part in group] for group in parts])
    sites = [_site(group, *matrices) for group, matrices in zip(parts, frozen, strict=True)]
    qkv, width = sites[0], attention.head_dim
    told = LayerTensors(
        sites=sites,
        heads=(qkv.outs[0] // width, qkv.outs[1] // width, width),
        eps=(norms[0].variance_epsilon, norms[1].variance_epsilon),
        norms=(norms[0].weight, norms[1].weight),
        cos_SD=angles[0][0].contiguous(),
        sin_SD=angles[1][0].contiguous(),
        sequences_B4=_sequences(layer, x),
    )
    return told, [factor for group in parts for part in group for factor in part.factors]


def _site(parts: Sequence[_Part], w_IO: Tensor, w_OI: Tensor) -> SiteTensors:
    entries = [entry for part in parts for entry in part.entries]
    gates = next((part.gates for part in parts if part.gates is not None), None)
    return SiteTensors(
        w_IO, w_OI, tuple(len(part.layer.weight) for part in parts),
        tuple(sum(rank for _, _, rank in part.entries) for part in parts),
        None if gates is None else gates.per_rank(entries, w_IO.dtype),
    )  # fmt: skip


def _sequences(layer: Any, x: Tensor) -> NDArray[np.int64]:
    spans = asked_spans()
    length_B = np.full(len(x), x.shape[1]) if spans is None else spans.length_B
    is_last = layer.self_attn.layer_idx == layer.self_attn.config.num_hidden_layers - 1
    first_B = np.zeros_like(length_B) if spans is None or not is_last else spans.first_B
    assert len(length_B) == len(x)
    num_B = length_B - first_B
    return np.stack([length_B, first_B, np.cumsum(length_B) - length_B, np.cumsum(num_B) - num_B], axis=1)


def _suits(layer: Any, x: Tensor, norms: Sequence[Tensor]) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and type(x) in (Tensor, nn.Parameter)
        and x.numel() > 0
        and not is_composed()
        and not torch.is_autocast_enabled("cpu")
        and layer.self_attn.config._attn_implementation == "sdpa"
        and not (layer.training and layer.self_attn.attention_dropout)
        and not any(norm.requires_grad or norm.dtype != torch.float32 for norm in norms)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
        and library("layers") is not None
        # Who counts or traces operations knows torch's own.
        and not is_in_torch_dispatch_mode()
    )


def _part(linear: Any) -> _Part | None:
    """A layer and its adapters that are on; None where the C doesn't know how to compute them."""
    layer = linear.layer if isinstance(linear, GatedLora) else linear
    if type(layer) is not nn.Linear or getattr(layer, "bias", None) is not None:
        return None
    weight = layer.weight
    if weight.dtype != torch.float32 or weight.requires_grad or weight.numel() * 4 > MOST_MATRIX_BYTES:
        return None
    if not isinstance(linear, GatedLora) or linear.gates.rows_BE is None or not (linear.ranks_on or linear.full_on):
        return _Part(layer)
    if not linear.is_one_operation or linear.full_on:
        return None
    return _Part(layer, linear.factors(torch.float32), list(linear.ranks_on.values()), linear.gates)


class _NativeLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, told: LayerTensors, *factors: Tensor) -> Tensor:
        x = x.contiguous()
        kept = x.new_empty(sum(told.kept_sizes))
        y = layer_forward(told, x, factors, kept)
        ctx.told = told
        ctx.save_for_backward(x, kept, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(grads)
        # Under checkpointing saved tensors may be asked for once.
        x, kept, *factors = ctx.saved_tensors
        needs_x, _, *needs = ctx.needs_input_grad
        dx, slopes = layer_backward(
            ctx.told, x, factors, kept, grads[0].contiguous(), needs_x=needs_x, needs_factors=any(needs)
        )
        return dx, None, *(slope if is_asked else None for slope, is_asked in zip(slopes, needs, strict=True))
