"""Random bases: the published shape, never taken for a trained model, and a checkpoint like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    CsmConfig,
    CsmForConditionalGeneration,
    CsmProcessor,
    DiaConfig,
    DiaForConditionalGeneration,
    MoshiConfig,
    MoshiForConditionalGeneration,
)

from affetto.codes.codec import load_codec
from affetto.errors import BaseModelError
from affetto.model.base import load_base
from affetto.model.random_base import random_base, random_config


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))


def test_csm_1b_has_the_published_shape() -> None:
    """Sesame's card and the checkpoint's config.json: a Llama 3.2 1B backbone, a decoder of 100 million."""
    config = random_config("random:csm-1b")
    assert config.to_dict() == CsmConfig().to_dict()
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (2048, 16, 8192)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (32, 8, 64)
    assert (config.text_vocab_size, config.vocab_size, config.num_codebooks) == (128256, 2051, 32)
    depth = config.depth_decoder_config
    assert (depth.hidden_size, depth.num_hidden_layers, depth.intermediate_size) == (1024, 4, 8192)
    assert (depth.num_attention_heads, depth.num_key_value_heads) == (8, 2)
    with torch.device("meta"):
        model = CsmForConditionalGeneration(config)
    parts = (model.backbone_model, model.depth_decoder.model)
    layers = sum(p.numel() for part in parts for p in part.layers.parameters())
    attention = 2048 * (2048 + 512 + 512 + 2048)
    small = 1024 * (1024 + 256 + 256 + 1024)
    by_hand = 16 * (attention + 3 * 2048 * 8192 + 2 * 2048) + 4 * (small + 3 * 1024 * 8192 + 2 * 1024)
    assert layers == by_hand


def test_the_short_one_differs_by_its_number_of_layers_alone() -> None:
    full, short = (random_config(f"random:{name}").to_dict() for name in ("csm-1b", "csm-1b-short"))
    assert (short.pop("num_hidden_layers"), full.pop("num_hidden_layers")) == (4, 16)
    depths = short["depth_decoder_config"], full["depth_decoder_config"]
    assert [depth.pop("num_hidden_layers") for depth in depths] == [1, 4]
    assert short == full


def test_a_random_base_is_a_whole_checkpoint_and_says_what_it_is() -> None:
    base = load_base("random:csm-tiny")
    assert base.id == "random:csm-tiny"
    assert base.num_codebooks == 32
    table = base.network.depth.model.embed_tokens.weight
    assert base.network.backbone.embed_tokens.embed_audio_tokens.weight is table, "tied, as CSM-1B's"
    assert "not a trained model" in (base.folder / "README.md").read_text()
    theirs = CsmForConditionalGeneration.from_pretrained(base.folder, dtype=torch.float32)
    assert torch.equal(theirs.lm_head.weight, base.network.c0_head.weight)
    assert load_codec(base.folder).num_codebooks == 32
    assert random_base("random:csm-tiny") == base.folder, "made once"
    assert [path.name for path in base.folder.parent.iterdir()] == [base.folder.name]


def test_a_random_moshi_is_a_whole_checkpoint_too() -> None:
    base = load_base("random:moshi-tiny")
    assert base.has_text_stream
    assert base.num_codebooks == 8
    assert base.prompt_ids("é a", 0) == tuple(
        8 + token for token in load_base("random:csm-tiny").prompt_ids("é a", 0)[4:-1]
    )
    theirs = MoshiForConditionalGeneration.from_pretrained(base.folder, dtype=torch.float32)
    assert torch.equal(theirs.decoder.lm_head.weight, base.network.text_head.weight)
    assert load_codec(base.folder).num_codebooks == 8
    published = random_config("random:moshi")
    assert published.to_dict() == MoshiConfig().to_dict()
    assert (published.hidden_size, published.num_hidden_layers, published.vocab_size) == (4096, 32, 32000)


def test_a_random_dia_is_a_whole_checkpoint_too() -> None:
    base = load_base("random:dia-tiny")
    assert base.num_codebooks == 9
    theirs = DiaForConditionalGeneration.from_pretrained(base.folder, dtype=torch.float32)
    assert torch.equal(theirs.logits_dense.weight, base.network.heads.weight)
    codec = load_codec(base.folder)
    assert (codec.num_codebooks, codec.sample_rate) == (9, 44_100)
    codes_TK = codec.encode(np.random.default_rng(0).standard_normal(22_050).astype(np.float32))
    assert codes_TK.shape == (44, 9)
    assert len(np.unique(codes_TK)) > 9


def test_dia_has_the_published_shape() -> None:
    """The authors' config.json: twelve layers that read, eighteen that speak; 1.6 billion weights."""
    config = random_config("random:dia")
    assert config.to_dict() == DiaConfig().to_dict()
    encoder, decoder = config.encoder_config, config.decoder_config
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.intermediate_size) == (1024, 12, 4096)
    assert (decoder.hidden_size, decoder.num_hidden_layers, decoder.intermediate_size) == (2048, 18, 8192)
    assert (decoder.vocab_size, decoder.num_channels, decoder.num_key_value_heads) == (1028, 9, 4)
    with torch.device("meta"):
        model = DiaForConditionalGeneration(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.61e9, rel=0.005)


def test_what_is_drawn_goes_by_name_and_not_by_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = load_file(next(random_base("random:csm-tiny").glob("*.safetensors")))
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "again"))
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    again = load_file(next(random_base("random:csm-tiny").glob("*.safetensors")))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    drawn = [value for name, value in first.items() if name.endswith("proj.weight")]
    assert len({tuple(value.flatten()[:4].tolist()) for value in drawn}) == len(drawn)


def test_the_stand_in_tokenizer_knows_every_byte() -> None:
    base = load_base("random:csm-tiny")
    processor = CsmProcessor.from_pretrained(base.folder)
    for text in ("plain", "naïve ½ 日本語 🎉", "", " [3]<b> \n\t"):
        ids = base.prompt_ids(text, 7)
        turn = {"role": "7", "content": [{"type": "text", "text": text}]}
        theirs = processor.apply_chat_template([turn], tokenize=True, return_dict=True)["input_ids"][0]
        assert ids == tuple(theirs.tolist())
        assert len(ids) == len(f"[7]{text}".encode()) + 2
        assert base.tokenizer.decode(ids[1:-1]) == f"[7]{text}"


def test_an_unknown_random_base_names_the_known_ones() -> None:
    with pytest.raises(
        BaseModelError, match=r"no 'random:csm-7b'.*random:csm-1b, random:csm-1b-short, .*random:moshi, .*random:dia,"
    ):
        load_base("random:csm-7b")
