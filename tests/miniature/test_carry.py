"""Weights of an earlier miniature under another codec: the same sounds keep their embeddings and heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from affetto.codes.vocoder import VocoderCodec
from affetto.miniature.carry import carried_weights, nearest_codes
from affetto.model.base import MINIATURE, find_base

CODE_TABLES = (
    "backbone_model.embed_tokens.embed_audio_tokens.weight", "lm_head.weight",
    "depth_decoder.model.embed_tokens.weight", "depth_decoder.codebooks_head.weight",
)  # fmt: skip


@pytest.fixture(scope="module")
def earlier() -> Path:
    return find_base(MINIATURE)


@pytest.fixture(scope="module")
def codec(earlier: Path) -> VocoderCodec:
    return VocoderCodec.load(earlier)


def renumbered(codec: VocoderCodec, orders_KV: np.ndarray) -> VocoderCodec:
    """The same sounds under other numbers: code v of codebook k is what was code `orders_KV[k, v]`."""
    books = np.stack([book[order] for book, order in zip(codec.codebooks_KVP, orders_KV, strict=True)])
    return VocoderCodec(codec.mean_D, codec.scale_D, codec.basis_DP, books)


def test_the_same_codec_carries_everything_as_it_is(earlier: Path, codec: VocoderCodec) -> None:
    carried, stored = carried_weights(earlier, codec), load_file(earlier / "model.safetensors")
    assert carried.keys() == stored.keys()
    for name, value in stored.items():
        assert torch.equal(carried[name], value.float()), name


def test_renumbered_codes_carry_their_own_embeddings_and_heads(earlier: Path, codec: VocoderCodec) -> None:
    num_codebooks, size = codec.codebooks_KVP.shape[:2]
    rng = np.random.default_rng(1)
    orders_KV = np.stack([rng.permutation(size) for _ in range(num_codebooks)])
    later = renumbered(codec, orders_KV)
    np.testing.assert_array_equal(nearest_codes(codec, later), orders_KV)
    carried, stored = carried_weights(earlier, later), load_file(earlier / "model.safetensors")
    stride = len(stored["lm_head.weight"])
    for k in range(num_codebooks):
        for v in rng.integers(0, size, 8):
            was = orders_KV[k, v]
            for table in (CODE_TABLES[0], CODE_TABLES[2]):
                assert torch.equal(carried[table][k * stride + v], stored[table][k * stride + was].float())
            head, old = (
                (carried[CODE_TABLES[1]][v], stored[CODE_TABLES[1]][was])
                if k == 0
                else (carried[CODE_TABLES[3]][k - 1][:, v], stored[CODE_TABLES[3]][k - 1][:, was])
            )
            assert torch.equal(head, old.float())
    special = slice(size, stride)
    assert torch.equal(carried[CODE_TABLES[1]][special], stored[CODE_TABLES[1]][special].float())
    for name in stored.keys() - set(CODE_TABLES):
        assert torch.equal(carried[name], stored[name].float()), name


def test_other_units_find_the_same_sounds(codec: VocoderCodec) -> None:
    """A codec whose features are scaled and turned otherwise, around another mean, but whose sounds are the same."""
    scale, mean = codec.scale_D * 1.5, codec.mean_D + 0.3 * codec.scale_D
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(len(mean), len(mean))))[0]
    books = codec.codebooks_KVP @ codec.basis_DP.T * codec.scale_D
    books[0] += codec.mean_D - mean
    later = VocoderCodec(mean, scale, turned, books / scale @ turned)
    size = codec.codebooks_KVP.shape[1]
    np.testing.assert_array_equal(nearest_codes(codec, later), np.tile(np.arange(size), (8, 1)))
