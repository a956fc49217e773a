"""CSM (Sesame): transformers' modules and weights with our own forward pass. Logits only; no loss and no codec.

A frame at position p is predicted from the backbone's state at p - 1: codebook zero by the language-model head,
the others by the depth decoder, which starts from that state (Sesame's CSM; transformers `modeling_csm`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from affetto.model.batch import Batch, Logits, moved_to
from affetto.model.network import Network, full_precision
from affetto.model.recompute import checkpoint_layers
from affetto.model.spans import one_sequence_a_row, read_before, read_behind_first
from affetto.native.functional import heads, linear


class CsmNetwork(Network):
    """Teacher-forced logits of a `CsmForConditionalGeneration`, through its own modules and weights."""

    depth_temperature_share = 2 / 3
    """It makes the miniature's happy words clearer and emotions no weaker (docs/training.md, "How it is drawn")."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        # A model loaded for speaking only (`affetto.model.light`) must not import transformers, which is slow.
        if type(model).__module__.startswith("transformers."):
            from affetto.model.fused import fuse

            fuse(model)
        self.backbone: Any = model.backbone_model
        self.depth: Any = model.depth_decoder
        self.embed_text: nn.Embedding = model.embed_text_tokens
        self.c0_head: nn.Linear = model.lm_head
        self.num_codebooks = model.config.num_codebooks
        self.vocab_size = model.config.vocab_size
        self.codebook_size = model.config.codec_config.codebook_size
        self.num_text_ids = int(model.config.text_vocab_size)
        self.window = int(model.config.max_position_embeddings)

    def forward(self, batch: Batch) -> Logits:
        """Logits of the batch's N frames (codebook zero) and M frames (the others), float32."""
        states_ND = self.frame_states(batch)
        c0_NV = self.c0_logits(states_ND)
        with self.gates.set(batch.gate_BE[self.depth_rows(batch)]):
            depth_MJV = self.depth_logits(states_ND[batch.depth_M], batch.depth_codes_MK)
        return Logits(c0_NV, depth_MJV)

    def frame_states(self, batch: Batch) -> Tensor:
        """The backbone's states (N, D) that the batch's frames are predicted from."""
        with self.gates.set(batch.gate_BE), one_sequence_a_row(read_before(batch.frames_N2, len(batch.gate_BE))):
            hidden_BSD = self.backbone(inputs_embeds=self.embed(batch), use_cache=False).last_hidden_state
        rows, places = batch.frames_N2.unbind(dim=1)
        states_ND: Tensor = hidden_BSD.flatten(0, 1).index_select(0, rows * hidden_BSD.shape[1] + places - 1)
        return states_ND

    def embed(self, batch: Batch) -> Tensor:
        """Input embeddings (B, S, D): a text token's, or the sum over the codebooks of a frame."""
        heard = self.backbone.embed_tokens.embed_audio_tokens.weight
        offsets_K = torch.arange(self.num_codebooks, device=heard.device) * self.vocab_size
        # Summed row by row: all codebooks' embeddings at once would take K times a layer's input.
        summed_ND = functional.embedding_bag((batch.codes_BSK + offsets_K).flatten(0, 1), heard, mode="sum")
        audio_BSD = summed_ND.view(*batch.codes_BSK.shape[:2], heard.shape[1])
        table, device = self.embed_text.weight, audio_BSD.device
        if table.device == device:
            return torch.where(batch.is_audio_BS[..., None], audio_BSD, self.embed_text(batch.text_BS))
        # The table is on the host (`Base.to`): each distinct row is copied once.
        rows_UD = moved_to(self.embed_text(batch.text_ids_U), device).to(audio_BSD.dtype)
        return torch.where(batch.is_audio_BS[..., None], audio_BSD, rows_UD[batch.text_places_BS])

    def c0_logits(self, states_ND: Tensor) -> Tensor:
        """Logits (N, V) of codebook zero, in float32: bfloat16 drowns a KL between close distributions."""
        with full_precision(states_ND):
            return linear(states_ND.float(), self.c0_head.weight.float())

    def depth_logits(self, states_MD: Tensor, codes_MK: Tensor) -> Tensor:
        """Logits (M, J, V) of codebooks 1..K-1 from the backbone's states before M frames and their codes; float32."""
        if len(states_MD) == 0:
            return torch.zeros(0, self.num_codebooks - 1, self.vocab_size, device=states_MD.device)
        table = self.depth.model.embed_tokens
        offsets_J = torch.arange(self.num_codebooks - 1, device=codes_MK.device) * self.vocab_size
        codes_MJD = table(codes_MK[:, :-1] + offsets_J)
        inputs_MKD = torch.cat([states_MD[:, None].to(codes_MJD.dtype), codes_MJD], dim=1)
        # With as many rows as positions, transformers 5 mistakes the decoder's positions (K,) for batched ones and
        # fails, unless it makes no mask (`affetto.model.fused.causal_mask`) or is given one.
        is_unmasked = len(codes_MK) != self.num_codebooks or self.depth.config._attn_implementation == "sdpa"
        mask_MK = None if is_unmasked else torch.ones_like(codes_MK)
        with one_sequence_a_row(read_behind_first(inputs_MKD)):
            hidden_MKD = self.depth.model(
                inputs_embeds=inputs_MKD, attention_mask=mask_MK, use_cache=False
            ).last_hidden_state
        with full_precision(hidden_MKD):
            return float32_heads(hidden_MKD[:, 1:], self.depth.codebooks_head.weight)

    def next_logits(self, hidden_MD: Tensor, k: int) -> Tensor:
        """Logits (M, V) of codebook k >= 1, from the depth decoder's state at that codebook's place; float32."""
        with full_precision(hidden_MD):
            return torch.matmul(hidden_MD.float(), self.depth.codebooks_head.weight[k - 1].float())

    def enable_checkpointing(self) -> None:
        """See `checkpoint_layers`."""
        checkpoint_layers((self.backbone, self.depth.model), self.gates)

    def frame_bytes(self, *, with_gradient: bool = False) -> int:
        """Approximate bytes that the depth decoder needs for one frame: a layer's activations (all layers' if they are
        kept for a gradient) and three copies of the logits. Frames dominate what a row needs.
        """
        config, weight = self.depth.config, self.c0_head.weight
        # Six tensors of the layer's width (norms and sums included); gate, up, activation and product are wider.
        layer = self.num_codebooks * (6 * config.hidden_size + 4 * config.intermediate_size) * weight.element_size()
        logits = 3 * (self.num_codebooks - 1) * self.vocab_size * 4
        return int(layer * (config.num_hidden_layers if with_gradient else 1) + logits)


def float32_heads(hidden_MJD: Tensor, weight_JDV: Tensor) -> Tensor:
    """Logits (M, J, V) of J heads in float32, without a float32 copy of frozen weights of lower precision.

    For CSM-1B's heads such a copy would take 0.26 GB from the forward to the backward pass.
    """
    if weight_JDV.dtype == torch.float32 or weight_JDV.requires_grad:
        return heads(hidden_MJD.float(), weight_JDV.float())
    logits: Tensor = _FrozenHeads.apply(hidden_MJD, weight_JDV)  # type: ignore[no-untyped-call]
    return logits


class _FrozenHeads(torch.autograd.Function):
    """The product of `float32_heads`, a few heads at a time in both directions."""

    @staticmethod
    def forward(ctx: Any, hidden_MJD: Tensor, weight_JDV: Tensor) -> Tensor:
        ctx.save_for_backward(weight_JDV)
        ctx.dtype = hidden_MJD.dtype
        logits_MJV = hidden_MJD.new_empty((*hidden_MJD.shape[:2], weight_JDV.shape[-1]), dtype=torch.float32)
        for part in _heads(len(weight_JDV)):
            hidden_JMD = hidden_MJD[:, part].float().transpose(0, 1)
            logits_MJV[:, part] = torch.bmm(hidden_JMD, weight_JDV[part].float()).transpose(0, 1)
        return logits_MJV

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient_MJV,), (weight_JDV,) = gradients, ctx.saved_tensors
        hidden_MJD = gradient_MJV.new_empty((*gradient_MJV.shape[:2], weight_JDV.shape[1]), dtype=ctx.dtype)
        for part in _heads(len(weight_JDV)):
            gradient_JMV = gradient_MJV[:, part].transpose(0, 1)
            moved_JMD = torch.bmm(gradient_JMV, weight_JDV[part].float().transpose(1, 2))
            hidden_MJD[:, part] = moved_JMD.transpose(0, 1).to(ctx.dtype)
        return hidden_MJD, None


def _heads(count: int, at_once: int = 4) -> list[slice]:
    return [slice(start, start + at_once) for start in range(0, count, at_once)]
