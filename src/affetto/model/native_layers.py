"""CSM's decoder layers on a CPU in float32, by `layers.c`: forward and backward are one call per layer each.

transformers composes a layer from some forty steps, and autograd from as many again, each of which reads and writes
all activations; here a few sequences at a time go through the whole layer, low-rank adapters included, and stay in the
processor's cache. In cases that the C code can't handle (`_is_supported`, `_part`) transformers' own steps run
(docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from transformers.models.csm import modeling_csm

from affetto.model.fused import FusedAttention, FusedMlp, FusedNorm, is_composed, refuse_second_derivative
from affetto.model.gated_lora import GatedLora
from affetto.model.gates import GateSwitch
from affetto.model.spans import asked_spans
from affetto.model.watch import Watch, watch_of
from affetto.native.compiler import MOST_MATRIX_BYTES, library
from affetto.native.functional import mkl_is_slow
from affetto.native.layers import LayerTensors, SiteRecord, SiteTensors, layer_backward, layer_forward


class NativeLayer(modeling_csm.CsmDecoderLayer):  # type: ignore[misc]
    """A pre-norm layer of attention and SwiGLU with the weights, names and results of transformers' layer."""

    _turned: tuple[Any, Sequence[Tensor]] | None = None

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
        arguments = None
        if attention_mask is None and past_key_values is None and position_embeddings is not None and not options:
            arguments = _arguments(self, hidden_states, position_embeddings)
        if arguments is None:
            plain: Tensor = super().forward(
                hidden_states, attention_mask, position_ids, past_key_values, use_cache, position_embeddings, **options
            )
            return plain
        tensors, factors = arguments
        watches = _watches(self)
        if watches and not hidden_states.requires_grad:
            hidden_states = hidden_states.detach().requires_grad_()
        if not torch.is_grad_enabled() or not any(value.requires_grad for value in (hidden_states, *factors)):
            return layer_forward(tensors, hidden_states.contiguous(), factors)
        for watch in watches.values():
            watch.begin()
        y: Tensor = _NativeLayer.apply(hidden_states, tensors, watches, *factors)  # type: ignore[no-untyped-call]
        return y

    def __getstate__(self) -> dict[str, Any]:
        """The state without the cached transposed weights."""
        return {name: value for name, value in self.__dict__.items() if name != "_turned"}

    def turned(self, groups: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """Per group of matrices (out, in) with one input, their transposes (in, out) side by side, cached.

        torch doesn't count in-place changes of `weight.data`, so whoever changes it must assign a new tensor.
        """
        key = tuple((weight.data_ptr(), weight._version) for group in groups for weight in group)
        if self._turned is None or self._turned[0] != key:
            self._turned = key, [torch.cat([weight.detach().T for weight in group], dim=1) for group in groups]
        return self._turned[1]


@dataclass(frozen=True)
class _Part:
    """A frozen layer and the factors A and B of its active adapters, concatenated along the rank."""

    layer: Any
    factors: tuple[Tensor, ...] = ()
    entries: Sequence[tuple[int, float, int]] = ()
    """Gate's column, scale and rank of each adapter."""
    gates: GateSwitch | None = None


def _groups(layer: Any) -> Sequence[Sequence[Any]]:
    """Linear layers, with their adapters, grouped by the input they share, in the order of `LayerTensors.sites`."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
        (attention.q_proj, attention.k_proj, attention.v_proj), (attention.o_proj,), (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )  # fmt: skip


def _watches(layer: Any) -> dict[tuple[int, int], Watch]:
    """The watches by site and place in it."""
    return {
        (site, place): watch
        for site, group in enumerate(_groups(layer))
        for place, linear in enumerate(group)
        if (watch := watch_of(linear)) is not None
    }


def _arguments(layer: Any, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[LayerTensors, list[Tensor]] | None:
    """The C code's arguments for a layer, and its adapters' factors; None if the C code can't handle it."""
    attention, groups = layer.self_attn, _groups(layer)
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if not _is_supported(layer, x) or angles[0].shape[:2] != (1, x.shape[1]):
        return None
    parts = [[part for linear in group if (part := _part(linear)) is not None] for group in groups]
    if [len(group) for group in parts] != [len(group) for group in groups]:
        return None
    weights = [[part.layer.weight for part in group] for group in parts]
    largest = max(weight.numel() for group in weights for weight in group)
    is_narrow = 4 * largest <= MOST_MATRIX_BYTES
    if not is_narrow and not mkl_is_slow():
        return None
    transposed = layer.turned(weights) if is_narrow else [None] * len(weights)
    sites = [_site(group, w_IO, len(x)) for group, w_IO in zip(parts, transposed, strict=True)]
    outs, width = sites[0].outs, attention.head_dim
    tensors = LayerTensors(
        sites=sites,
        heads=(outs[0] // width, outs[1] // width, width),
        eps=(norms[0].variance_epsilon, norms[1].variance_epsilon),
        norms=(norms[0].weight, norms[1].weight),
        cos_SD=angles[0][0].contiguous(),
        sin_SD=angles[1][0].contiguous(),
        sequences_B4=_sequences(layer, x),
    )
    return tensors, [factor for group in parts for part in group for factor in part.factors]


def _site(parts: Sequence[_Part], w_IO: Tensor | None, num_rows: int) -> SiteTensors:
    entries = [entry for part in parts for entry in part.entries]
    gates = next((part.gates for part in parts if part.gates is not None), None)
    gate_BR = None if gates is None else gates.per_rank(entries, torch.float32).flatten(1)
    assert gate_BR is None or gate_BR.shape == (num_rows, sum(rank for _, _, rank in entries)), "a gate for each row"
    weights_OI = tuple(part.layer.weight.detach() for part in parts)
    return SiteTensors(weights_OI, w_IO, tuple(sum(rank for _, _, rank in part.entries) for part in parts), gate_BR)


def _sequences(layer: Any, x: Tensor) -> NDArray[np.int64]:
    spans = asked_spans()
    length_B = np.full(len(x), x.shape[1]) if spans is None else spans.length_B
    is_last = layer.self_attn.layer_idx == layer.self_attn.config.num_hidden_layers - 1
    first_B = np.zeros_like(length_B) if spans is None or not is_last else spans.first_B
    assert len(length_B) == len(x), "a span for each row"
    assert ((first_B >= 0) & (first_B <= length_B) & (length_B <= x.shape[1])).all()
    num_B = length_B - first_B
    return np.stack([length_B, first_B, np.cumsum(length_B) - length_B, np.cumsum(num_B) - num_B], axis=1)


def _is_supported(layer: Any, x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and type(x) in (Tensor, nn.Parameter)
        and x.numel() > 0
        and not is_composed()
        and not torch.is_autocast_enabled("cpu")
        and _is_plain(layer)
        and library("layers") is not None
        # Counting or tracing operations and forward-mode differentiation need torch's own operations.
        and torch.autograd.forward_ad._current_level < 0
        and not is_in_torch_dispatch_mode()
    )


def _is_plain(layer: Any) -> bool:
    """Whether the layer is as transformers makes it, without hooks that the C code would bypass."""
    attention, norms = layer.self_attn, (layer.input_layernorm, layer.post_attention_layernorm)
    linears = [linear for group in _groups(layer) for linear in group]
    return (
        (type(attention), type(layer.mlp)) == (FusedAttention, FusedMlp)
        and attention.config._attn_implementation == "sdpa"
        and attention.is_causal
        and attention.scaling == attention.head_dim**-0.5
        and not (layer.training and attention.attention_dropout)
        and all(type(norm) is FusedNorm and _is_frozen(norm.weight) for norm in norms)
        and not any(_is_hooked(module, linears) for module in layer.modules())
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def _is_hooked(module: nn.Module, linears: Sequence[nn.Module]) -> bool:
    """Whether `module` has hooks other than the one `Watch` per linear that the C code serves."""
    hooks = (module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    others = [hook for hook in module._forward_hooks.values() if not isinstance(hook, Watch)]
    num_watches = len(module._forward_hooks) - len(others)
    is_served = num_watches == 0 or (num_watches == 1 and any(module is linear for linear in linears))
    return any(hooks) or bool(others) or not is_served or "forward" in module.__dict__


def _is_frozen(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and not weight.requires_grad and not weight.is_inference()


def _part(linear: Any) -> _Part | None:
    """A layer and its active adapters; None if the C code can't compute them."""
    layer = linear.layer if isinstance(linear, GatedLora) else linear
    if type(layer) is not nn.Linear or getattr(layer, "bias", None) is not None:
        return None
    if not _is_frozen(layer.weight) or not layer.weight.is_contiguous():
        return None
    if not isinstance(linear, GatedLora) or linear.gates.rows_BE is None or not (linear.ranks_on or linear.full_on):
        return _Part(layer)
    if not linear.is_one_operation or linear.full_on:
        return None
    return _Part(layer, linear.factors(torch.float32), list(linear.ranks_on.values()), linear.gates)


class _NativeLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tensors: LayerTensors, watches: dict[tuple[int, int], Watch], *factors: Tensor
    ) -> Tensor:  # fmt: skip
        x = x.contiguous()
        kept = x.new_empty(sum(tensors.kept_sizes))
        y = layer_forward(tensors, x, factors, kept)
        ctx.tensors, ctx.watches = tensors, watches
        # The weights, too, so that torch notices if one changes before the backward pass.
        weights = [weight_OI for site in tensors.sites for weight_OI in site.weights_OI]
        ctx.save_for_backward(x, kept, *factors, *weights)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(grads)
        needs_x, _, _, *needs = ctx.needs_input_grad
        # Under checkpointing saved tensors can be unpacked only once.
        x, kept, *factors = ctx.saved_tensors[: 2 + len(needs)]
        records = [_record(site, x) for site in ctx.tensors.sites] if ctx.watches else None
        dx, slopes = layer_backward(
            ctx.tensors, x, factors, kept, grads[0].contiguous(), needs_x=needs_x, needs_factors=any(needs),
            records=records,
        )  # fmt: skip
        for (site, place), watch in ctx.watches.items():
            assert records is not None
            watch.tell(records[site].x_BSI, records[site].dy_BSO.split(ctx.tensors.sites[site].outs, dim=-1)[place])
        return dx, None, None, *(slope if is_needed else None for slope, is_needed in zip(slopes, needs, strict=True))


def _record(site: SiteTensors, x: Tensor) -> SiteRecord:
    return SiteRecord(*(x.new_empty(*x.shape[:2], width) for width in (site.num_in, sum(site.outs))))
