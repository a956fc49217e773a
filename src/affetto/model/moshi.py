"""Moshi (Kyutai): transformers' modules and weights with our own forward pass. Logits only; no loss and no codec.

At every step of 80 ms the main transformer's input is the sum of the last step's embeddings: a token of the inner
monologue, K codes of its own speech and K of the user's. Its state predicts the next token; from that state and token
the depth transformer predicts the next codes, each with its own weights. Acoustic codes (all but the first) are one
step late, for its own speech and for the user's (Défossez et al. 2024, arXiv 2410.00037, section 3.4.4).

So the step after p frames predicts the text and first code of frame p, and the acoustic codes of frame p - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from affetto.model.batch import Batch, Logits
from affetto.model.monologue import TAIL_FRAMES
from affetto.model.network import Network, full_precision
from affetto.model.outline import Outline
from affetto.model.recompute import checkpoint_layers


class MoshiNetwork(Network):
    """Teacher-forced logits of a `MoshiForConditionalGeneration`, through its own modules and weights."""

    has_text_stream = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.backbone: Any = model.decoder.model
        self.text_head: nn.Linear = model.decoder.lm_head
        self.embed_codes: nn.ModuleList = model.embed_tokens
        """K tables of its own codes, then K of the user's."""
        self.depth: Any = model.depth_decoder
        for module in self.depth.modules():
            # By name, as in `affetto.adapters.bank`.
            if type(module).__name__ == "MoshiFlexibleLinear":
                module.forward = partial(matrix_by_matrix, module)
        self.num_codebooks = model.config.num_codebooks
        self.vocab_size = model.config.audio_vocab_size
        self.codebook_size = model.config.audio_vocab_size
        self.window = int(model.config.sliding_window)
        self.text_start = self.text_size = self.num_text_ids = int(model.config.vocab_size)
        """The text token before the first frame."""
        self.audio_start: int = model.config.audio_vocab_size
        """The code before anything was said or heard."""

    def forward(self, batch: Batch) -> Logits:
        """Logits of the batch's N frames (text, codebook zero) and M frames (the other codebooks), float32.

        The layers attend back to a row's beginning, which equals Moshi's sliding attention up to `window` positions.
        """
        width = batch.text_BS.shape[1]
        assert width <= self.window, f"a row of {width} positions: Moshi's window is {self.window}"
        with self.gates.set(batch.gate_BE):
            hidden_BSD = self.backbone(inputs_embeds=self.embed(batch), use_cache=False).last_hidden_state
        steps_U2 = self.steps(batch)
        rows_U, places_U = steps_U2.unbind(dim=1)
        states_UD = hidden_BSD[rows_U, places_U]
        with self.gates.set(batch.gate_BE[rows_U]):
            hidden_UKD = self.depth_states(states_UD, self._depth_inputs(batch, steps_U2))
        # A row has one step more than predicted frames, for its last frame's acoustic codes.
        now_N = torch.arange(len(batch.frames_N2), device=rows_U.device) + _rank(batch.frames_N2[:, 0])
        text_NW = self.text_logits(states_UD[now_N])
        c0_NV = self.code_logits(hidden_UKD[now_N, :1], range(1))[:, 0]
        next_M = now_N[batch.depth_M] + 1
        depth_MJV = self.code_logits(hidden_UKD[next_M, 1:], range(1, self.num_codebooks))
        return Logits(c0_NV, depth_MJV, text_NW)

    def prompt(self, text: str, speaker: int) -> str:  # noqa: ARG002
        """The words to be said, whoever speaks."""
        return text

    def room(self, num_ids: int) -> None:
        """Unlimited: words run in parallel with the frames, and the oldest of both drop out of the window."""

    def steps(self, batch: Batch) -> Tensor:
        """(row, position) of every step of the depth transformer (U, 2)."""
        rows_N, places_N = batch.frames_N2.unbind(dim=1)
        is_last_N = torch.ones_like(rows_N, dtype=torch.bool)
        is_last_N[:-1] = rows_N[1:] != rows_N[:-1]
        after_B2 = torch.stack([rows_N[is_last_N], places_N[is_last_N] + 1], dim=1)
        both_U2 = torch.cat([batch.frames_N2, after_B2])
        order_U = (both_U2[:, 0] * batch.text_BS.shape[1] + both_U2[:, 1]).argsort()
        return both_U2[order_U]

    def depth_rows(self, batch: Batch) -> Tensor:
        """The batch's row that each row of the depth transformer's input belongs to."""
        return self.steps(batch)[:, 0]

    def embed(self, batch: Batch) -> Tensor:
        """Input embeddings (B, S, D): at every position what was said and heard before it."""
        assert batch.user_BSK is not None, "Moshi's rows have streams"
        text_BS = _later(batch.text_BS, 1, self.text_start)
        codes_BSC = torch.cat([self._late(batch.codes_BSK), self._late(batch.user_BSK)], dim=2)
        return self.embed_step(text_BS, _later(codes_BSC, 1, self.audio_start))

    def embed_step(self, text_BS: Tensor, codes_BSC: Tensor) -> Tensor:
        """Sum (B, S, D) of the embeddings of text and both speakers' codes (C = 2K), acoustic ones already delayed."""
        total_BSD: Tensor = self.backbone.embed_tokens(text_BS)
        for place, table in enumerate(self.embed_codes):
            total_BSD = total_BSD + table(codes_BSC[..., place])
        return total_BSD

    def _late(self, codes_BSK: Tensor) -> Tensor:
        """Codes with the acoustic ones one position later."""
        return torch.cat([codes_BSK[..., :1], _later(codes_BSK[..., 1:], 1, self.audio_start)], dim=2)

    def _depth_inputs(self, batch: Batch, steps_U2: Tensor) -> Tensor:
        """(U, K): the step's text, its first code, and the acoustic codes of the frame before but for the last."""
        rows_U, places_U = steps_U2.unbind(dim=1)
        codes_UK = self._late(batch.codes_BSK)[rows_U, places_U]
        return torch.cat([batch.text_BS[rows_U, places_U, None], codes_UK[:, :-1]], dim=1)

    def depth_states(self, states_UD: Tensor, inputs_UL: Tensor, first: int = 0, cache: Any = None) -> Tensor:
        """States (U, L, D') of the depth transformer at L codebooks from `first` on, from the token before each."""
        codebooks_L = torch.arange(first, first + inputs_UL.shape[1], device=inputs_UL.device)
        tables = [self.depth.text_embed_tokens, *self.depth.embed_tokens]
        tokens = [tables[first + place](inputs_UL[:, place]) for place in range(inputs_UL.shape[1])]
        hidden_ULD: Tensor = torch.stack(tokens, dim=1)
        states_ULD = states_UD[:, None].expand(-1, len(codebooks_L), -1)
        hidden_ULD = hidden_ULD + self.depth.input_projections(states_ULD.to(hidden_ULD.dtype), codebooks_L)
        for layer in self.depth.layers:
            hidden_ULD = layer(hidden_ULD, past_key_values=cache, codebook_idx=codebooks_L)[0]
        return hidden_ULD

    def text_logits(self, states_ND: Tensor) -> Tensor:
        """Logits (N, W) of the inner monologue, float32."""
        with full_precision(states_ND):
            return functional.linear(states_ND.float(), self.text_head.weight.float())

    def code_logits(self, hidden_MLD: Tensor, codebooks: Sequence[int]) -> Tensor:
        """Logits (M, L, V) of `codebooks` from the depth transformer's states at them; float32."""
        heads_LVD = self.depth.lm_heads.weight[codebooks[0] : codebooks[-1] + 1]
        with full_precision(hidden_MLD):
            return torch.einsum("mld,lvd->mlv", hidden_MLD.float(), heads_LVD.float())

    def enable_checkpointing(self) -> None:
        """See `checkpoint_layers`."""
        checkpoint_layers((self.backbone, self.depth), self.gates)

    def frame_bytes(self, *, with_gradient: bool = False) -> int:
        """Approximate bytes that one frame needs: a layer's activations in each transformer (all layers' if they are
        kept for a gradient) and three copies of the logits of text and codes.
        """
        total = 0
        for config, positions in ((self.backbone.config, 1), (self.depth.config, self.num_codebooks)):
            # Six tensors of the layer's width (norms and sums included); gate, up, activation and product.
            layer = positions * (6 * config.hidden_size + 2 * config.ffn_dim) * self.text_head.weight.element_size()
            total += layer * (config.num_hidden_layers if with_gradient else 1)
        return int(total + 3 * (self.text_size + self.num_codebooks * self.vocab_size) * 4)


def matrix_by_matrix(stack: Any, x_ULI: Tensor, layer_idx: Tensor | None = None) -> Tensor:
    """The output (U, L, O) of transformers' `MoshiFlexibleLinear` with its matrices `layer_idx` (L,), or all.

    transformers multiplies all pairs of rows and matrices in one batch, which copies the matrices for every row: for
    Moshi's input projections 67 MB per row in bfloat16.
    """
    places = list(range(len(stack.weight))) if layer_idx is None else layer_idx.tolist()
    return torch.stack([functional.linear(x_ULI[:, n], stack.weight[k]) for n, k in enumerate(places)], dim=1)


MOSHI = Outline(
    "MoshiConfig", "MoshiForConditionalGeneration", ("num_hidden_layers", "depth_decoder_config.num_hidden_layers"),
    12.5, codec="audio_encoder", tokens_per_s=0, template_tokens=0, end_frames=TAIL_FRAMES - 1,
    reads_indices=True,
)  # fmt: skip
"""Its text takes no positions of its own, and the last frame of the silence after a clip is only input."""


def load_moshi(folder: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model, without Mimi, and tokenizer of a converted checkpoint. BaseModelError if damaged or another model's."""
    from transformers import MoshiConfig, MoshiForConditionalGeneration

    from affetto.model.text_ids import load_tokenizer
    from affetto.tensors import check_tensors, only_shapes, stored_tensors

    class WithoutCodec(MoshiForConditionalGeneration):  # type: ignore[misc]
        """Training needs only the codes, so Mimi isn't even read."""

        _keys_to_ignore_on_load_unexpected = (r"^audio_encoder\.",)

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            del self.audio_encoder

    config = MoshiConfig.from_pretrained(folder)
    with only_shapes(folder):
        model = WithoutCodec(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stored = {name: value for name, value in stored_tensors(folder).items() if not name.startswith("audio_encoder.")}
    check_tensors(folder, stored, expected, "Moshi")
    model, report = WithoutCodec.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    # So that what is saved or copied later is transformers' own class.
    model.__class__ = MoshiForConditionalGeneration
    left = set(report["missing_keys"]) | set(report["unexpected_keys"])
    assert not left, f"weights that would be drawn at random or dropped: {sorted(left)}"
    return model, load_tokenizer(folder)


def _later(values: Tensor, steps: int, before: int) -> Tensor:
    """Values (B, S, …) shifted `steps` positions later and filled up with `before`; the last ones drop out."""
    start = values.new_full((len(values), steps, *values.shape[2:]), before)
    return torch.cat([start, values], dim=1)[:, : values.shape[1]]


def _rank(rows_N: Tensor) -> Tensor:
    """For each frame, how many rows with frames precede its row; rows come in order."""
    is_new_N = torch.zeros_like(rows_N)
    is_new_N[1:] = rows_N[1:] != rows_N[:-1]
    return is_new_N.cumsum(dim=0)
