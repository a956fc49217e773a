"""Dia (Nari Labs): transformers' modules and weights with our own forward pass. Logits only; no loss and no codec.

An encoder reads the script as bytes, `[S1] …` and `[S2] …`; the decoder predicts frames of Descript's codec, one code
per codebook at every position, with codebook k of frame t at t + d_k (`delay_pattern`: MusicGen's delays, Copet et al.
2023, arXiv 2306.05284). A row's frames begin with BOS and end with a frame of EOS, after which there is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from affetto.model.batch import Batch, Logits, Row, stack_gates
from affetto.model.csm import float32_heads
from affetto.model.network import Network, Pick, Said, full_precision
from affetto.model.outline import Outline
from affetto.model.recompute import checkpoint_layers
from affetto.model.text_ids import load_tokenizer
from affetto.tensors import check_tensors, only_shapes, stored_tensors

_FIRST, _SECOND = 1, 2
"""The tokenizer's `[S1]` and `[S2]`."""


class DiaNetwork(Network):
    """Teacher-forced logits of a `DiaForConditionalGeneration`, and its speech, through its own modules and weights."""

    least_temperature = 1.0
    """As in transformers."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.encoder: Any = model.model.encoder
        self.decoder: Any = model.model.decoder
        self.heads: nn.Linear = model.logits_dense
        config = model.config.decoder_config
        self.num_codebooks = config.num_channels
        self.vocab_size = config.vocab_size
        self.num_text_ids = int(model.config.encoder_config.vocab_size)
        self.end_code = self.codebook_size = config.eos_token_id
        """EOS, padding and BOS are numbered after the codec's codes."""
        self.pad_code: int = config.pad_token_id
        self.start_code: int = config.bos_token_id
        self.delays: list[int] = list(model.config.delay_pattern)
        # Only frames take the decoder's positions, so counting a row's text, too, is stricter than needed. A text as
        # long as the encoder's window, a thousand bytes, takes longer to say than the decoder's window lasts.
        self.window = int(config.max_position_embeddings) - max(self.delays) - 1
        generation = model.generation_config
        self.guidance: float = generation.guidance_scale or 1.0
        self.guidance_top_k: int = generation.top_k or 0

    def prompt(self, text: str, speaker: int) -> str:
        """A line of the script; Dia has two speakers."""
        return f"[S{speaker % 2 + 1}] {text}"

    def room(self, num_ids: int) -> int:  # noqa: ARG002
        """The window, which only frames use."""
        return self.window

    def forward(self, batch: Batch) -> Logits:
        """Logits of the batch's N frames (codebook zero) and M frames (the other codebooks), float32."""
        places_BS, delayed_BLK = self._sound(batch)
        with self.gates.set(batch.gate_BE):
            text_BPD, mask_BP = self._read(*_script(batch))
            hidden_BLD = self.decoder(
                input_ids=delayed_BLK, encoder_hidden_states=text_BPD, encoder_attention_mask=mask_BP, use_cache=False
            ).last_hidden_state
        rows_N, positions_N = batch.frames_N2.unbind(dim=1)
        states_NK = places_BS[rows_N, positions_N, None] - 1 + self._delays(rows_N.device)
        c0_N1D = hidden_BLD[rows_N[:, None], states_NK[:, :1]]
        depth_MJD = hidden_BLD[rows_N[batch.depth_M, None], states_NK[batch.depth_M, 1:]]
        return Logits(self._logits(c0_N1D, 0)[:, 0], self._logits(depth_MJD, 1))

    def _logits(self, hidden_MLD: Tensor, first: int) -> Tensor:
        """Logits (M, L, V) of L codebooks from `first` on, from the states that predict them; float32."""
        weight_KVD = self.heads.weight.view(self.num_codebooks, self.vocab_size, -1)
        with full_precision(hidden_MLD):
            return float32_heads(hidden_MLD, weight_KVD[first : first + hidden_MLD.shape[1]].transpose(1, 2))

    def _read(self, script_BP: Tensor, is_text_BP: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's states (B, P, D) for scripts, and its mask."""
        # A script must begin with the first speaker, whoever that is in the data.
        is_mark_BP = (script_BP == _FIRST) | (script_BP == _SECOND)
        is_swapped_BP = (script_BP[:, :1] == _SECOND) & is_mark_BP
        script_BP = torch.where(is_swapped_BP, _FIRST + _SECOND - script_BP, script_BP)
        mask_BP = is_text_BP.long()
        return self.encoder(input_ids=script_BP, attention_mask=mask_BP).last_hidden_state, mask_BP

    def _sound(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each frame's index in its row's sound (B, S), from 1 since BOS comes first; and the decoder's input."""
        is_predicted_BS = torch.zeros_like(batch.is_audio_BS)
        is_predicted_BS[batch.frames_N2[:, 0], batch.frames_N2[:, 1]] = True
        # Earlier turns run on into the last one, without an end frame.
        is_end_BS = (batch.codes_BSK[..., 0] == self.end_code) & ~is_predicted_BS
        is_kept_BS = batch.is_audio_BS & ~is_end_BS
        places_BS = is_kept_BS.cumsum(dim=1)
        sound_BLK = self._silence(len(places_BS), int(places_BS.max()) + 1)
        rows_X, positions_X = is_kept_BS.nonzero().unbind(dim=1)
        sound_BLK[rows_X, places_BS[rows_X, positions_X]] = batch.codes_BSK[rows_X, positions_X]
        # The input of the last step that is needed has all but the last codebook's end.
        return places_BS, self._delayed(sound_BLK, range(sound_BLK.shape[1] + max(self.delays) - 1))

    def _silence(self, num_rows: int, length: int) -> Tensor:
        """BOS followed by padding (B, L, K)."""
        shape = (num_rows, length, self.num_codebooks)
        sound_BLK = torch.full(shape, self.pad_code, device=self.heads.weight.device)
        sound_BLK[:, 0] = self.start_code
        return sound_BLK

    def _delayed(self, sound_BLK: Tensor, steps: range) -> Tensor:
        """The decoder's input at `steps`: a sound with every codebook shifted by its delay."""
        device, last = sound_BLK.device, sound_BLK.shape[1] - 1
        places_XK = torch.arange(steps.start, steps.stop, device=device)[:, None] - self._delays(device)
        heard_BXK = sound_BLK[:, places_XK.clamp(0, last), torch.arange(self.num_codebooks, device=device)]
        return heard_BXK.masked_fill(places_XK > last, self.pad_code)

    def _delays(self, device: torch.device) -> Tensor:
        return torch.tensor(self.delays, device=device)

    def enable_checkpointing(self) -> None:
        """See `checkpoint_layers`."""
        checkpoint_layers((self.encoder, self.decoder), self.gates)

    def frame_bytes(self, *, with_gradient: bool = False) -> int:
        """Approximate bytes that one frame needs: a decoder layer's activations (all layers' if they are kept for a
        gradient) and three copies of the logits.
        """
        config = self.decoder.config
        # Ten tensors of the layer's width (norms, sums, both attentions); gate, up, activation and product are wider.
        layer = (10 * config.hidden_size + 4 * config.intermediate_size) * self.heads.weight.element_size()
        logits = 3 * self.num_codebooks * self.vocab_size * 4
        return int(layer * (config.num_hidden_layers if with_gradient else 1) + logits)

    def speak(self, rows: Sequence[Row], max_frames: Sequence[int], pick: Pick) -> list[Said]:
        """See `Network.speak`. Earlier turns come first in both the script and the sound.

        All rows start together; during a row's earlier turns nothing is drawn. With guidance, a setting of the
        checkpoint, a second pass reads no text, and codes are drawn from those that the text favours most (Nari Labs'
        variant of Ho & Salimans 2022).
        """
        from transformers import DynamicCache, EncoderDecoderCache

        script_BP, is_text_BP = _padded([[token for turn in row.turns for token in turn.text_ids] for row in rows])
        gate_BE = stack_gates([row.gate for row in rows])
        if self.guidance != 1:
            script_BP = torch.cat([script_BP, torch.zeros_like(script_BP)])
            is_text_BP, gate_BE = is_text_BP.repeat(2, 1), gate_BE.repeat(2, 1)
        sounds = _Sounds(self, rows, max_frames)
        device, cache = sounds.end_B1.device, EncoderDecoderCache(DynamicCache(), DynamicCache())
        with self.gates.set(gate_BE.to(device)):
            text_BPD, mask_BP = self._read(script_BP.to(device), is_text_BP.to(device))
            while not sounds.are_over:
                heard_B1K = sounds.heard()
                hidden_BD = self.decoder(
                    input_ids=heard_B1K if self.guidance == 1 else heard_B1K.repeat(2, 1, 1), past_key_values=cache,
                    encoder_hidden_states=text_BPD, encoder_attention_mask=mask_BP, use_cache=True,
                ).last_hidden_state[:, -1:]  # fmt: skip
                logits_BKV = self._logits(hidden_BD.expand(-1, self.num_codebooks, -1), 0)
                sounds.add(logits_BKV if self.guidance == 1 else self._guided(logits_BKV), pick)
        return sounds.said()

    def _guided(self, logits_XKV: Tensor) -> Tensor:
        """Guided logits (B, K, V) from those with and without the text."""
        with_BKV, without_BKV = logits_XKV.chunk(2)
        guided_BKV = with_BKV + self.guidance * (with_BKV - without_BKV)
        if not self.guidance_top_k:
            return guided_BKV
        least_BK1 = guided_BKV.topk(min(self.guidance_top_k, self.vocab_size), dim=-1).values[..., -1:]
        return with_BKV.masked_fill(guided_BKV < least_BK1, -torch.inf)


class _Sounds:
    """The growing sounds of rows that are spoken together."""

    def __init__(self, network: DiaNetwork, rows: Sequence[Row], max_frames: Sequence[int]) -> None:
        self.network, self.step = network, 0
        given = [[turn.codes_TK for turn in row.turns if turn.codes_TK is not None] for row in rows]
        counts = [sum(map(len, turns)) for turns in given]
        caps = [max(0, min(cap, network.window - count)) for count, cap in zip(counts, max_frames, strict=True)]
        self.codes_BLK = network._silence(len(rows), max(map(sum, zip(counts, caps, strict=True))) + 2)
        device = self.codes_BLK.device
        for b, turns in enumerate(given):
            if turns:
                self.codes_BLK[b, 1 : counts[b] + 1] = torch.as_tensor(np.concatenate(turns), device=device)
        self.given_B1, self.cap_B1 = (torch.tensor(values, device=device)[:, None] for values in (counts, caps))
        self.never = self.codes_BLK.shape[1]
        self.end_B1 = torch.full_like(self.given_B1, self.never)
        """Index of the frame that ends a row's sound."""
        self.hit_cap_B1 = torch.zeros_like(self.end_B1, dtype=torch.bool)

    @property
    def are_over(self) -> bool:
        """Whether every row has its last frame's last codebook."""
        return bool((self.step >= self.end_B1 - 1 + max(self.network.delays)).all())

    def heard(self) -> Tensor:
        """The decoder's input (B, 1, K) at this step."""
        return self.network._delayed(self.codes_BLK, range(self.step, self.step + 1))

    def add(self, logits_BKV: Tensor, pick: Pick) -> None:
        """Draw this step's codes. EOS isn't drawn: a row ends when EOS is the likeliest code of codebook zero."""
        size, delays_K = self.network.codebook_size, self.network._delays(logits_BKV.device)
        codes_BK = pick(logits_BKV[..., :size], self.step)
        wants_B1 = logits_BKV[:, 0, : size + 1].argmax(dim=-1, keepdim=True) == size
        self.step += 1
        places_K, books_K = self.step - delays_K, torch.arange(len(delays_K), device=delays_K.device)
        is_due_B1 = (self.end_B1 == self.never) & (places_K[0] > self.given_B1)
        is_late_B1 = places_K[0] > self.given_B1 + self.cap_B1
        self.end_B1 = torch.where(is_due_B1 & (wants_B1 | is_late_B1), places_K[0], self.end_B1)
        self.hit_cap_B1 |= is_due_B1 & is_late_B1 & ~wants_B1
        is_end_BK = places_K == self.end_B1
        is_new_BK = is_end_BK | ((places_K > self.given_B1) & (places_K < self.end_B1))
        codes_BK = codes_BK.masked_fill(is_end_BK, self.network.end_code)
        places_K = places_K.clamp(0, self.never - 1)
        self.codes_BLK[:, places_K, books_K] = torch.where(is_new_BK, codes_BK, self.codes_BLK[:, places_K, books_K])

    def said(self) -> list[Said]:
        """New codes (T, K) of each row, without its earlier turns, and whether its cap ended it."""
        ends = zip(self.given_B1[:, 0].tolist(), self.end_B1[:, 0].tolist(), strict=True)
        codes_BLK = self.codes_BLK.cpu().numpy()
        return [
            (codes_BLK[b, count + 1 : end], hit)
            for b, ((count, end), hit) in enumerate(zip(ends, self.hit_cap_B1[:, 0].tolist(), strict=True))
        ]


DIA = Outline(
    "DiaConfig", "DiaForConditionalGeneration",
    ("encoder_config.num_hidden_layers", "decoder_config.num_hidden_layers"), 44_100 / 512,
    tokens_per_s=14, template_tokens=17, reads_indices=True,
)  # fmt: skip
"""Its tokens are bytes, and its codec is Descript's at 44.1 kHz with 512 samples per frame (Kumar et al. 2023)."""


def load_dia(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of a checkpoint. BaseModelError if it is damaged or of another model."""
    from transformers import DiaConfig, DiaForConditionalGeneration

    config = DiaConfig.from_pretrained(folder)
    with only_shapes(folder):
        model = DiaForConditionalGeneration(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_tensors(folder, stored_tensors(folder), expected, "Dia")
    return DiaForConditionalGeneration.from_pretrained(folder, dtype=dtype), load_tokenizer(folder)


def _script(batch: Batch) -> tuple[Tensor, Tensor]:
    """The texts of each row's turns, concatenated (B, P), and a mask of where they are."""
    is_before_sound_BS = batch.is_audio_BS.flip(1).cumsum(dim=1).flip(1) > 0
    is_text_BS = is_before_sound_BS & ~batch.is_audio_BS
    lengths_B1 = is_text_BS.sum(dim=1, keepdim=True)
    script_BP = torch.zeros_like(batch.text_BS[:, : int(lengths_B1.max())])
    is_text_BP = torch.arange(script_BP.shape[1], device=script_BP.device) < lengths_B1
    script_BP[is_text_BP] = batch.text_BS[is_text_BS]
    return script_BP, is_text_BP


def _padded(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids (B, P) padded with zeros on the right, and a mask of where they are."""
    width = max(map(len, texts))
    ids_BP = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in texts])
    return ids_BP, torch.arange(width) < torch.tensor([[len(ids)] for ids in texts])
