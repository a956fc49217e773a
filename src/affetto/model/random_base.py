"""Bases with random weights in a real model's shape: for benchmarks, plans and parity, without the real weights.

What they say is noise. They are named `random:…` wherever a base's id is written, and their hash is their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from affetto.errors import BaseModelError
from affetto.files import cache_root, hash_text, made_once, write_json, write_text
from affetto.model.quiet import quiet_transformers

RANDOM = "random:"
_VERSION = "1"
_SHARD_BYTES = 2**29
_BYTES = 256
_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>")
_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "<|begin_of_text|>[{{ message['role'] }}]{{ part['text'] }}<|end_of_text|>"
    "{% elif part['type'] == 'audio' %}<|AUDIO|><|audio_eos|>{% endif %}{% endfor %}{% endfor %}"
)
"""Turns as CSM-1B's template writes them."""


def csm_1b() -> Any:
    """The published configuration of sesame/csm-1b, which is transformers' default one."""
    from transformers import CsmConfig

    return CsmConfig()


def csm_1b_short() -> Any:
    """CSM-1B's widths, vocabularies and codec with a quarter of its layers: what a CPU can train in a benchmark."""
    config = csm_1b()
    config.num_hidden_layers //= 4
    config.depth_decoder_config.num_hidden_layers //= 4
    return config


def csm_tiny() -> Any:
    """CSM-1B's shape, 32 codebooks and all, with everything else as small as it goes."""
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


CONFIGS: dict[str, Callable[[], Any]] = {"csm-1b": csm_1b, "csm-1b-short": csm_1b_short, "csm-tiny": csm_tiny}
_SPREAD = {"csm-tiny": 0.2}
"""Standard deviation of the weights where the configuration's would leave logits almost uniform."""


def random_config(name: str) -> Any:
    """The configuration of `random:NAME`."""
    short = name.removeprefix(RANDOM)
    if short not in CONFIGS:
        known = ", ".join(f"{RANDOM}{item}" for item in CONFIGS)
        raise BaseModelError(f"there is no {name!r}; bases of random weights are {known}")
    with quiet_transformers():
        return CONFIGS[short]()


def random_base(name: str) -> Path:
    """The folder of `random:NAME` in the cache: a checkpoint in bfloat16, made once, tensor by tensor.

    Its tokenizer is a stand-in that knows bytes and CSM's four marks, since the real one is gated: prompts are about
    four times as long as the real one's.
    """
    config = random_config(name)
    short = name.removeprefix(RANDOM)
    target = cache_root() / "random" / f"{short}-{hash_text(_VERSION, config.to_json_string())[:16]}"
    spread = _SPREAD.get(short, config.initializer_range)
    return made_once(target, lambda folder: _write(folder, config, spread))


def _write(folder: Path, config: Any, spread: float) -> None:
    from transformers import CsmProcessor, EncodecFeatureExtractor

    specials = (config.bos_token_id, config.bos_token_id + 1, config.audio_token_id, config.audio_eos_token_id)
    with quiet_transformers():
        extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=config.codec_config.sampling_rate)
        tokenizer = byte_tokenizer(dict(zip(_SPECIALS, specials, strict=True)))
        CsmProcessor(extractor, tokenizer, chat_template=_TEMPLATE).save_pretrained(folder)
        config.architectures = ["CsmForConditionalGeneration"]
        config.save_pretrained(folder)
    depth = {"do_sample": True, "max_new_tokens": config.num_codebooks - 1, "min_new_tokens": config.num_codebooks - 1}
    told = {f"depth_decoder_{key}": value for key, value in depth.items()}
    write_json(folder / "generation_config.json", {"do_sample": True, "max_new_tokens": 125} | told)
    write_text(folder / "README.md", "Random weights: a shape for benchmarks and plans, not a trained model.\n")
    index: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    for name, value in _weights(config, spread):
        shard[name] = value
        if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD_BYTES:
            _save_shard(folder, shard, index)
            shard = {}
    _save_shard(folder, shard, index)
    write_text(folder / "model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": index}))


def _save_shard(folder: Path, shard: dict[str, Tensor], index: dict[str, str]) -> None:
    if shard:
        file = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        index |= dict.fromkeys(shard, file)


def _weights(config: Any, spread: float) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of every tensor but the tied table, which CSM-1B stores once."""
    from transformers import CsmForConditionalGeneration

    with quiet_transformers(), torch.device("meta"):
        model = CsmForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name == "backbone_model.embed_tokens.embed_audio_tokens.weight":
            continue
        is_codec = name.startswith("codec_model.")
        if not value.is_floating_point():
            yield name, torch.ones(value.shape, dtype=value.dtype)
        elif "norm" in name or name.endswith(("cluster_usage", "initialized", "scale")):
            yield name, torch.full(value.shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
        else:
            # Mimi's centroids are compared with what its encoder gives, so its weights keep sound from fading.
            fan_in = max(1, value[0].numel()) if value.ndim > 1 else 1
            size = 2.0 * fan_in**-0.5 if is_codec and value.ndim > 1 else spread
            drawn = torch.empty(value.shape, dtype=torch.bfloat16).normal_(0.0, size, generator=generator)
            yield name, drawn


def byte_tokenizer(specials: dict[str, int]) -> Any:
    """A tokenizer of bytes, between CSM's begin and end tokens; `specials` are the marks' ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(letters) == _BYTES
    vocabulary = {letter: index for index, letter in enumerate(letters)} | specials
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin, end, audio, audio_eos = _SPECIALS
    ends = [(mark, specials[mark]) for mark in (begin, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=end,
        additional_special_tokens=[audio, audio_eos], padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
