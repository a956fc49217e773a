"""CSM (Sesame): transformers' modules, our road through them. Logits only; no loss and no codec inside.

A frame at position p is predicted from the backbone's state at p - 1: codebook zero by the language-model head,
the others by the depth decoder, which starts from that state (Sesame's CSM; transformers `modeling_csm`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from affetto.model.batch import Batch, Logits
from affetto.model.gates import GateSwitch


class CsmNetwork(nn.Module):
    """Teacher-forced logits of a `CsmForConditionalGeneration`, through its own modules and weights."""

    has_text_stream = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.gates = GateSwitch()
        self.backbone: Any = model.backbone_model
        self.depth: Any = model.depth_decoder
        self.embed_text: nn.Embedding = model.embed_text_tokens
        self.c0_head: nn.Linear = model.lm_head
        self.num_codebooks: int = model.config.num_codebooks
        self.vocab_size: int = model.config.vocab_size
        self.codebook_size: int = model.config.codec_config.codebook_size
        """Codes that the codec knows; a vocabulary has a few more, such as padding, which nothing can speak."""

    def forward(self, batch: Batch) -> Logits:
        """Logits of the batch's N frames (codebook zero) and M frames (the others), float32."""
        with self.gates.set(batch.gate_BE):
            hidden_BSD = self.backbone(inputs_embeds=self.embed(batch), use_cache=False).last_hidden_state
        rows, places = batch.frames_N2.unbind(dim=1)
        states_ND = hidden_BSD[rows, places - 1]
        c0_NV = self.c0_logits(states_ND)
        with self.gates.set(batch.gate_BE[rows[batch.depth_M]]):
            depth_MJV = self.depth_logits(states_ND[batch.depth_M], batch.depth_codes_MK)
        return Logits(c0_NV, depth_MJV)

    def depth_rows(self, batch: Batch) -> Tensor:
        """Which row of the batch each row that the depth decoder's layers see belongs to."""
        return batch.depth_frames_M2[:, 0]

    def embed(self, batch: Batch) -> Tensor:
        """Input embeddings (B, S, D): a text token's, or the sum over the codebooks of a frame."""
        audio_BSD = self.backbone.embed_tokens(batch.codes_BSK)
        text_BSD = self.embed_text(batch.text_BS)
        return torch.where(batch.is_audio_BS[..., None], audio_BSD, text_BSD)

    def c0_logits(self, states_ND: Tensor) -> Tensor:
        """Logits (N, V) of codebook zero, in float32: bfloat16 drowns a KL between close distributions."""
        with _full_precision(states_ND):
            return functional.linear(states_ND.float(), self.c0_head.weight.float())

    def depth_logits(self, states_MD: Tensor, codes_MK: Tensor) -> Tensor:
        """Logits (M, J, V) of codebooks 1..K-1, from the backbone's states before M frames and their codes; float32."""
        if len(states_MD) == 0:
            return torch.zeros(0, self.num_codebooks - 1, self.vocab_size, device=states_MD.device)
        table = self.depth.model.embed_tokens
        offsets_J = torch.arange(self.num_codebooks - 1, device=codes_MK.device) * self.vocab_size
        codes_MJD = table(codes_MK[:, :-1] + offsets_J)
        inputs_MKD = torch.cat([states_MD[:, None].to(codes_MJD.dtype), codes_MJD], dim=1)
        # With as many rows as positions transformers 5 takes the decoder's positions (K,) for batched ones and fails,
        # unless there is a mask.
        mask_MK = torch.ones_like(codes_MK) if len(codes_MK) == self.num_codebooks else None
        hidden_MKD = self.depth.model(
            inputs_embeds=inputs_MKD, attention_mask=mask_MK, use_cache=False
        ).last_hidden_state
        with _full_precision(hidden_MKD):
            return torch.einsum("mjd,jdv->mjv", hidden_MKD[:, 1:].float(), self.depth.codebooks_head.weight.float())

    def next_logits(self, hidden_MD: Tensor, k: int) -> Tensor:
        """Logits (M, V) of codebook k >= 1, from the depth decoder's state at that codebook's place; float32."""
        with _full_precision(hidden_MD):
            return torch.matmul(hidden_MD.float(), self.depth.codebooks_head.weight[k - 1].float())

    def enable_checkpointing(self) -> None:
        """Keep no activations inside the layers: backward computes them again, under the gates of their own forward.

        It works while the network is in train mode. In eval mode, as for the Fisher pass, nothing is computed twice.
        """

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), self.gates.set(self.gates.rows_BE)

        for part in (self.backbone, self.depth.model):
            part.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
            # transformers makes the embeddings ask for gradients, which only reentrant checkpointing needs.
            part.disable_input_require_grads()


def _full_precision(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)
