"""CSM's layers on a GPU: norms, SwiGLU and rotary positions are one kernel each, and layers with one input are merged.

transformers composes the elementwise steps from some thirty kernels per layer, each of which reads and writes all
activations; together they take as long as the matrix products (docs/performance.md). Here sums are in float32 and
results are rounded once. Adapted layers that read the same input (queries, keys and values; gate and up) are one
operation. On a CPU whole layers run in C (`affetto.model.native_layers`). Elsewhere, and without Triton, transformers'
own steps run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.csm import modeling_csm

from affetto.model.spans import is_one_sequence_a_row
from affetto.model.triton_runs import triton_runs
from affetto.native.functional import linear


def fuse(model: Any) -> None:
    """Make the modules of a CSM choose their code by their input's device; weights and names stay as they are."""
    from affetto.model.native_layers import NativeLayer

    for module in model.modules():
        if type(module) is modeling_csm.CsmRMSNorm:
            module.__class__ = FusedNorm
        elif type(module) is modeling_csm.CsmMLP and module.config.hidden_act == "silu":
            module.__class__ = FusedMlp
        elif type(module) is modeling_csm.CsmAttention:
            module.__class__ = FusedAttention
        elif type(module) is modeling_csm.CsmDecoderLayer and module.mlp.config.hidden_act == "silu":
            module.__class__ = NativeLayer
        elif type(module) is modeling_csm.CsmDepthDecoderModel:
            module.inputs_embeds_projector.__class__ = RoutedLinear
    modeling_csm.apply_rotary_pos_emb = turned_pair
    modeling_csm.create_causal_mask = causal_mask


class FusedNorm(modeling_csm.CsmRMSNorm):  # type: ignore[misc]
    """RMSNorm (Zhang & Sennrich 2019)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """x (…, D) → (…, D), in x's type."""
        if hidden_states.device.type != "cuda" or is_composed():
            plain: Tensor = super().forward(hidden_states)
            return plain
        with torch.autocast("cuda", enabled=False):
            weight_D = self.weight.to(hidden_states.dtype)
            return functional.rms_norm(hidden_states, weight_D.shape, weight_D, self.variance_epsilon)


class RoutedLinear(nn.Linear):
    """A layer that uses the fastest product (`affetto.native.functional`)."""

    def forward(self, x: Tensor) -> Tensor:
        """x (…, I) → (…, O)."""
        return linear(x, self.weight, self.bias)


class FusedMlp(modeling_csm.CsmMLP):  # type: ignore[misc]
    """SwiGLU (Shazeer 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D) → (…, D)."""
        if not _runs(x):
            plain: Tensor = super().forward(x)
            return plain
        inner: Tensor = _SwiGlu.apply(*_together([self.gate_proj, self.up_proj], x))  # type: ignore[no-untyped-call]
        y: Tensor = self.down_proj(inner)
        return y


class FusedAttention(modeling_csm.CsmAttention):  # type: ignore[misc]
    """Attention whose queries, keys and values are computed in one operation."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, S, D) → (B, S, D), and the attention's weights if it returns them."""
        if past_key_values is not None or position_embeddings is None or not _runs(hidden_states):
            plain: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, position_embeddings, attention_mask, past_key_values, **options
            )
            return plain
        read = _together([self.q_proj, self.k_proj, self.v_proj], hidden_states)
        q, k, v = (y.view(*y.shape[:-1], -1, self.head_dim).transpose(1, 2) for y in read)
        q, k = turned_pair(q, k, *position_embeddings)
        attend = modeling_csm.ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, modeling_csm.eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        y_BSHD, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **options)
        y: Tensor = self.o_proj(y_BSHD.flatten(-2))
        return y, weights


def _together(layers: Sequence[Any], x: Tensor) -> Sequence[Tensor]:
    """Each layer's output for x; adapted layers (`affetto.adapters.bank`) compute them in one operation."""
    together = getattr(layers[0], "with_others", None)
    return [layer(x) for layer in layers] if together is None else together(layers[1:], x)


PLAIN_TURN = modeling_csm.apply_rotary_pos_emb
"""transformers' own."""


def turned_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, H, S, Dh) rotated by cos and sin (B or 1, S, Dh)."""
    if unsqueeze_dim != 1 or not _runs(q):
        plain: tuple[Tensor, Tensor] = PLAIN_TURN(q, k, cos, sin, unsqueeze_dim)
        return plain
    turned: tuple[Tensor, Tensor] = _Turn.apply(q, k, cos, sin)  # type: ignore[no-untyped-call]
    return turned


PLAIN_MASK = modeling_csm.create_causal_mask
"""transformers' own."""


def causal_mask(config: Any, inputs_embeds: Tensor, attention_mask: Any = None, *rest: Any, **options: Any) -> Any:
    """The attention's mask; None is plain causality.

    transformers checks whether rows are packed, for which the host has to wait for the GPU. Ours never are.
    """
    if is_one_sequence_a_row() and attention_mask is None and config._attn_implementation == "sdpa":
        return None
    return PLAIN_MASK(config, inputs_embeds, attention_mask, *rest, **options)


_IS_COMPOSED: ContextVar[bool] = ContextVar("of transformers' own steps", default=False)


@contextmanager
def composed() -> Iterator[None]:
    """Inside the block transformers' own steps run, since the kernels have no second derivative."""
    before = _IS_COMPOSED.set(True)
    try:
        yield
    finally:
        _IS_COMPOSED.reset(before)


def is_composed() -> bool:
    """Whether the code runs inside `composed`."""
    return _IS_COMPOSED.get()


def _runs(x: Tensor) -> bool:
    return not is_composed() and _has_kernels(x)


def _has_kernels(x: Tensor) -> bool:
    return x.device.type == "cuda" and triton_runs()


def refuse_second_derivative(grads: Sequence[Tensor]) -> None:
    """Raise if a second derivative may be taken: autograd would silently treat the kernels' results as constants.

    `once_differentiable` doesn't notice derivatives by the gradients themselves, which the forecast takes.
    """
    if torch.is_grad_enabled() and any(grad.requires_grad for grad in grads):
        raise RuntimeError("CSM's kernels have no second derivative: compute inside affetto.model.fused.composed()")


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        from affetto.model.fused_kernels import swiglu

        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        from affetto.model.fused_kernels import swiglu_backward

        refuse_second_derivative(grads)
        return swiglu_backward(grads[0].contiguous(), *ctx.saved_tensors)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos_BSD: Tensor, sin_BSD: Tensor) -> tuple[Tensor, Tensor]:
        from affetto.model.fused_kernels import turn

        ctx.save_for_backward(cos_BSD, sin_BSD)
        return turn(q, cos_BSD, sin_BSD, is_back=False), turn(k, cos_BSD, sin_BSD, is_back=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from affetto.model.fused_kernels import turn

        refuse_second_derivative(grads)
        # Under checkpointing saved tensors can be unpacked only once.
        angles = ctx.saved_tensors
        q, k = (turn(grad, *angles, is_back=True) for grad in grads)
        return q, k, None, None
