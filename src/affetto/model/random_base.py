"""Bases with random weights in a real model's shape, for benchmarks, plans and parity tests without the real weights.

They speak noise. Their id is `random:…` wherever a base's id is written, and they have hashes of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from affetto.errors import BaseModelError
from affetto.files import cache_root, hash_text, made_once, write_json, write_text
from affetto.quiet import quiet_transformers

RANDOM = "random:"
_VERSION = "2"
_SHARD_BYTES = 2**29
_DRAWN_AT_ONCE = 2**22
"""Numbers drawn from one seed, so that the result doesn't depend on the number of threads."""
_BYTES = 256
_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>")
_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "<|begin_of_text|>[{{ message['role'] }}]{{ part['text'] }}<|end_of_text|>"
    "{% elif part['type'] == 'audio' %}<|AUDIO|><|audio_eos|>{% endif %}{% endfor %}{% endfor %}"
)
"""CSM-1B's template of turns."""


def csm_1b() -> Any:
    """The published configuration of sesame/csm-1b, which is transformers' default."""
    from transformers import CsmConfig

    return CsmConfig()


def csm_1b_short() -> Any:
    """CSM-1B's widths, vocabularies and codec with a quarter of its layers, which a CPU can train in a benchmark."""
    config = csm_1b()
    config.num_hidden_layers //= 4
    config.depth_decoder_config.num_hidden_layers //= 4
    return config


def csm_tiny() -> Any:
    """CSM-1B's shape with its 32 codebooks and everything else as small as possible."""
    from transformers import CsmConfig, CsmDepthDecoderConfig, MimiConfig

    depth = CsmDepthDecoderConfig(
        backbone_hidden_size=64, vocab_size=67, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    codec = MimiConfig(
        hidden_size=16, num_filters=2, num_residual_layers=1, codebook_size=64, codebook_dim=8,
        vector_quantization_hidden_dimension=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, intermediate_size=16, upsample_groups=16, kernel_size=3, last_kernel_size=3,
    )  # fmt: skip
    begin, _, audio, audio_eos = range(_BYTES, _BYTES + 4)
    return CsmConfig(
        vocab_size=67, text_vocab_size=_BYTES + 4, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, codebook_pad_token_id=66, bos_token_id=begin,
        audio_token_id=audio, pad_token_id=audio, audio_eos_token_id=audio_eos, depth_decoder_config=depth,
        codec_config=codec,
    )  # fmt: skip


def moshi() -> Any:
    """The published configuration of kyutai/moshiko-pytorch-bf16 and moshika, which is transformers' default."""
    from transformers import MoshiConfig

    return MoshiConfig()


def moshi_tiny() -> Any:
    """Moshi's shape with everything as small as possible."""
    from transformers import MimiConfig, MoshiConfig

    # A dict, so that MoshiConfig can set the sizes that both decoders share.
    depth = {
        "vocab_size": _BYTES + 8, "hidden_size": 32, "input_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 8, "ffn_dim": 64, "audio_vocab_size": 64, "num_codebooks": 8,
    }  # fmt: skip
    codec: MimiConfig = csm_tiny().codec_config
    return MoshiConfig(
        vocab_size=_BYTES + 8, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        ffn_dim=128, audio_vocab_size=64, num_codebooks=8, audio_encoder_config=codec.to_dict(),
        depth_decoder_config=depth,
    )  # fmt: skip


def dia() -> Any:
    """The published configuration of nari-labs/Dia-1.6B-0626, which is transformers' default."""
    from transformers import DiaConfig

    return DiaConfig()


def dia_tiny() -> Any:
    """Dia's shape with its nine codebooks and everything else as small as possible."""
    from transformers import DiaConfig

    encoder = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    }  # fmt: skip
    decoder = {
        **encoder, "cross_hidden_size": 32, "cross_num_attention_heads": 2, "cross_num_key_value_heads": 2,
        "cross_head_dim": 16, "max_position_embeddings": 512,
    }  # fmt: skip
    return DiaConfig(encoder_config=encoder, decoder_config=decoder)


def _dac(config: Any) -> Any:
    """Descript's codec at 44.1 kHz; a tiny one for a tiny base."""
    from transformers import DacConfig

    if config.decoder_config.hidden_size >= DacConfig().decoder_hidden_size:
        return DacConfig(sampling_rate=44_100)
    return DacConfig(
        sampling_rate=44_100, encoder_hidden_size=2, decoder_hidden_size=32, hidden_size=32, codebook_dim=4
    )  # fmt: skip


CONFIGS: dict[str, Callable[[], Any]] = {
    "csm-1b": csm_1b, "csm-1b-short": csm_1b_short, "csm-tiny": csm_tiny, "moshi": moshi, "moshi-tiny": moshi_tiny,
    "dia": dia, "dia-tiny": dia_tiny,
}  # fmt: skip
_SPREAD = {"csm-tiny": 0.2, "moshi-tiny": 0.2, "dia-tiny": 0.2}
"""Standard deviation of the weights if the configuration's would leave logits almost uniform."""


def random_config(name: str) -> Any:
    """The configuration of `random:NAME`."""
    short = name.removeprefix(RANDOM)
    if short not in CONFIGS:
        names = ", ".join(f"{RANDOM}{item}" for item in CONFIGS)
        raise BaseModelError(f"there is no {name!r}; the bases with random weights are {names}")
    with quiet_transformers():
        return CONFIGS[short]()


def random_base(name: str) -> Path:
    """The folder of `random:NAME` in the cache: a checkpoint in bfloat16, made once, shard by shard.

    Its tokenizer is a stand-in with bytes and the base's marks only, since the real one is gated or not available, so
    texts have about four times as many tokens.
    """
    config = random_config(name)
    short = name.removeprefix(RANDOM)
    with quiet_transformers():
        key = hash_text(_VERSION, config.to_json_string())[:16]
    target = cache_root() / "random" / f"{short}-{key}"
    spread = _SPREAD.get(short, config.initializer_range)
    return made_once(target, lambda folder: _write(folder, config, spread))


def _write(folder: Path, config: Any, spread: float) -> None:
    import transformers

    with quiet_transformers():
        if config.model_type == "dia":
            _write_dia_texts(folder, config)
        elif config.model_type == "csm":
            _write_csm_texts(folder, config, _extractor(config.codec_config))
        else:
            _extractor(config.audio_encoder_config).save_pretrained(folder)
            # As in Moshi's own vocabulary the first ids are marks; 3 is padding.
            byte_tokenizer({}, first=8).save_pretrained(folder)
        kind = f"{config.model_type.capitalize()}ForConditionalGeneration"
        config.architectures = [kind]
        config.save_pretrained(folder)
        with torch.device("meta"):
            model = getattr(transformers, kind)(config)
    write_text(folder / "README.md", "Random weights: a shape for benchmarks and plans, not a trained model.\n")
    empty = {name: value for name, value in model.state_dict().items() if name != _TIED}
    index: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shard: list[str] = []
        for name in empty:
            shard.append(name)
            if sum(2 * empty[key].numel() for key in shard) >= _SHARD_BYTES:
                _write_shard(folder, {key: empty[key] for key in shard}, spread, index, pool)
                shard = []
        _write_shard(folder, {key: empty[key] for key in shard}, spread, index, pool)
    write_text(folder / "model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": index}))


_TIED = "backbone_model.embed_tokens.embed_audio_tokens.weight"
"""The table that CSM-1B stores once."""


def _extractor(codec_config: Any) -> Any:
    from transformers import EncodecFeatureExtractor

    return EncodecFeatureExtractor(feature_size=1, sampling_rate=codec_config.sampling_rate)


def _write_dia_texts(folder: Path, config: Any) -> None:
    """Write Dia's own tokenizer, which reads bytes, and its processor, which names the codec in the folder `dac`."""
    from transformers import DacModel, DiaFeatureExtractor, DiaTokenizer

    codec_config = _dac(config)
    rate, hop = codec_config.sampling_rate, codec_config.hop_length
    DiaFeatureExtractor(feature_size=1, sampling_rate=rate, hop_length=hop).save_pretrained(folder)
    DiaTokenizer().save_pretrained(folder)
    write_json(folder / "processor_config.json", {
        "processor_class": "DiaProcessor",
        "audio_tokenizer": {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "dac"},
    })  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        DacModel(codec_config).save_pretrained(folder / "dac")


def _write_csm_texts(folder: Path, config: Any, extractor: Any) -> None:
    from transformers import CsmProcessor

    specials = (config.bos_token_id, config.bos_token_id + 1, config.audio_token_id, config.audio_eos_token_id)
    tokenizer = byte_tokenizer(dict(zip(_SPECIALS, specials, strict=True)))
    CsmProcessor(extractor, tokenizer, chat_template=_TEMPLATE).save_pretrained(folder)
    depth = {"do_sample": True, "max_new_tokens": config.num_codebooks - 1, "min_new_tokens": config.num_codebooks - 1}
    depth_settings = {f"depth_decoder_{key}": value for key, value in depth.items()}
    write_json(folder / "generation_config.json", {"do_sample": True, "max_new_tokens": 125} | depth_settings)


def _write_shard(
    folder: Path, empty: dict[str, Tensor], spread: float, index: dict[str, str], pool: ThreadPoolExecutor
) -> None:
    if empty:
        file = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        drawn = {name: _drawn(name, value, spread, pool) for name, value in empty.items()}
        save_file(drawn, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        index |= dict.fromkeys(empty, file)


def _drawn(name: str, empty: Tensor, spread: float, pool: ThreadPoolExecutor) -> Tensor:
    """The value of a tensor, which depends on its name, shape and type alone."""
    if not empty.is_floating_point():
        return torch.ones(empty.shape, dtype=empty.dtype)
    value = torch.empty(empty.shape, dtype=torch.bfloat16)
    if "norm" in name or name.endswith(("cluster_usage", "initialized", "scale")):
        return value.fill_(0.0 if name.endswith("bias") else 1.0)
    is_codec = name.startswith(("codec_model.", "audio_encoder."))
    # Mimi compares its encoder's output with centroids, so its weights must keep the signal from fading.
    fan_in = max(1, value[0].numel()) if value.ndim > 1 else 1
    size = 2.0 * fan_in**-0.5 if is_codec and value.ndim > 1 else spread
    parts = torch.split(value.view(-1), _DRAWN_AT_ONCE)

    def draw(number: int) -> None:
        seed = int(hash_text(name, str(number))[:15], 16)
        parts[number].normal_(0.0, size, generator=torch.Generator().manual_seed(seed))

    list(pool.map(draw, range(len(parts))))
    return value


def byte_tokenizer(specials: dict[str, int], first: int = 0) -> Any:
    """A tokenizer of bytes, numbered from `first`, between CSM's begin and end tokens; `specials` are the marks' ids.

    Without marks it gives the bytes alone.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(letters) == _BYTES
    vocabulary = {letter: index for index, letter in enumerate(letters, start=first)} | specials
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if not specials:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    begin, end, audio, audio_eos = _SPECIALS
    ends = [(mark, specials[mark]) for mark in (begin, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=end,
        additional_special_tokens=[audio, audio_eos], padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
