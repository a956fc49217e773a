"""A tiny random Dia with its processor, and a DAC beside it, as transformers saves them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from transformers import (
    DacConfig,
    DacModel,
    DiaConfig,
    DiaFeatureExtractor,
    DiaForConditionalGeneration,
    DiaProcessor,
    DiaTokenizer,
)
from transformers.models.dia.configuration_dia import DiaDecoderConfig, DiaEncoderConfig

from affetto.model.batch import Row, Turn

BOOKS, CODES, HOP, RATE = 4, 64, 512, 44_100
DELAYS = [0, 2, 3, 5]
END, PAD, BOS = CODES, CODES + 1, CODES + 2


def write_dia(folder: Path, seed: int = 0) -> Path:
    """A checkpoint in `folder` whose processor names the codec in `folder`-dac."""
    codec = Path(f"{folder}-dac")
    _dac(seed).save_pretrained(codec)
    encoder = DiaEncoderConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
        intermediate_size=48, max_position_embeddings=128,
    )  # fmt: skip
    decoder = DiaDecoderConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=64, cross_num_attention_heads=2, cross_num_key_value_heads=2, cross_head_dim=16,
        cross_hidden_size=32, vocab_size=CODES + 4, num_channels=BOOKS, eos_token_id=END, pad_token_id=PAD,
        bos_token_id=BOS, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = DiaForConditionalGeneration(
        DiaConfig(encoder_config=encoder, decoder_config=decoder, delay_pattern=DELAYS)
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                # Attention isn't divided by the root of its width in Dia, so that larger weights saturate it.
                weight.normal_(std=1.2 / math.sqrt(weight.shape[1]))
    model.save_pretrained(folder)
    extractor = DiaFeatureExtractor(feature_size=1, sampling_rate=RATE, hop_length=HOP)
    DiaProcessor(extractor, DiaTokenizer(), DacModel.from_pretrained(codec)).save_pretrained(folder)
    return folder


def _dac(seed: int) -> DacModel:
    """Weights as large as a trained codec's, so that other sounds have other codes."""
    torch.manual_seed(seed)
    model = DacModel(
        DacConfig(
            encoder_hidden_size=4, decoder_hidden_size=32, downsampling_ratios=[2, 4, 8, 8], n_codebooks=BOOKS,
            codebook_size=CODES, codebook_dim=4, sampling_rate=RATE,
        )
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=1.0 / math.sqrt(weight[0].numel()))
    return model


def dia_row(
    seed: int, *, frames: tuple[int, ...] = (6,), text: str = "[S1] hello", gate: tuple[float, ...] = ()
) -> Row:
    """A row of random codes; the words of its turns differ."""
    rng, turns = np.random.default_rng(seed), []
    for place, count in enumerate(frames):
        words = f"{text}{chr(97 + seed % 26)}{place}".replace("[S1]", f"[S{place % 2 + 1}]")
        ids = DiaTokenizer()(words)["input_ids"]
        turns.append(Turn(tuple(ids), rng.integers(0, CODES, (count, BOOKS)), end_code=END))
    return Row(f"clip-{seed}", tuple(turns), gate)
