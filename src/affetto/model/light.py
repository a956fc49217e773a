"""A base for speaking only, loaded without transformers, whose import takes longer than speaking a sentence.

Weights, names and shapes are those of the checkpoint; the modules only hold them, for the engine and the adapter bank
to find. Any other case (several files, other rotary scalings, tokenizers without `tokenizer.json`, anything missing or
misshapen) goes through `load_base`, which also reports what is wrong.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from affetto.codes.codec import plain_frame_rate
from affetto.files import read_json
from affetto.model.base import Base, find_base, found_base, load_base
from affetto.model.csm import CsmNetwork

_WEIGHTS, _TOKENIZER = "model.safetensors", "tokenizer.json"
_HEARD, _SPOKEN = "backbone_model.embed_tokens.embed_audio_tokens.weight", "depth_decoder.model.embed_tokens.weight"
_NOT_SPOKEN = ("codec_model.", "backbone_model.embed_tokens.audio_tokens_offsets")
_PLAIN_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes of transformers that do what `tokenizer.json` says and nothing else."""


def load_for_speaking(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Base:
    """A base that speaks but can't be trained or give logits. Raises what `load_base` raises."""
    folder = find_base(name)
    try:
        parts = _plain_checkpoint(folder, dtype)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, SafetensorError):
        parts = None
    if parts is None:
        return load_base(name, device=device, dtype=dtype)
    model, tokenizer, frame_rate = parts
    network = CsmNetwork(model).eval()
    return found_base(name, folder, model, network, tokenizer, frame_rate).to(device)


def speaks_only(base: Base) -> bool:
    """Whether `base` gives no logits."""
    return isinstance(base.model, _Holder)


class _Holder(nn.Module):
    """Submodules and parameters under the checkpoint's names."""

    config: SimpleNamespace

    def forward(self, *_: object, **__: object) -> Tensor:
        raise NotImplementedError("this base was loaded for speaking only; `load_base` loads one that gives logits")


class _Tokenizer:
    """The part of a transformers tokenizer that a `Base` needs."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        # tokenizers raises plain `Exception` for everything.
        except Exception as error:
            raise ValueError(f"{path}: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Added tokens by id, as in transformers' tokenizers."""
        added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        return added

    def get_vocab(self) -> dict[str, int]:
        """Ids of all tokens, as in transformers' tokenizers."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary


def _plain_checkpoint(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, _Tokenizer, float] | None:
    """Model, tokenizer and frame rate of a plain checkpoint; for any other, None or some error."""
    config = read_json(folder / "config.json")
    kind = read_json(folder / "tokenizer_config.json")["tokenizer_class"]
    if config["model_type"] != "csm" or config.get("transformers_weights") or kind not in _PLAIN_TOKENIZERS:
        return None
    expected = _shapes(config)
    with safe_open(folder / _WEIGHTS, framework="pt") as file:
        names = {name for name in file.keys() if not name.startswith(_NOT_SPOKEN)}  # noqa: SIM118
        weights = {name: file.get_tensor(name).to(dtype) for name in names}
    if config["tie_codebooks_embeddings"] and len({_HEARD, _SPOKEN} & names) == 1:
        weights.setdefault(_HEARD, weights.get(_SPOKEN, torch.empty(0)))
        weights.setdefault(_SPOKEN, weights[_HEARD])
    if {name: tuple(value.shape) for name, value in weights.items()} != expected:
        return None
    return _model(config, weights), _Tokenizer(folder / _TOKENIZER), plain_frame_rate(folder, config)


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors except the codec's."""
    depth = config["depth_decoder_config"]
    width, inner, books, size = (
        config["hidden_size"],
        depth["hidden_size"],
        config["num_codebooks"],
        config["vocab_size"],
    )
    shapes: dict[str, tuple[int, ...]] = {
        "embed_text_tokens.weight": (config["text_vocab_size"], width),
        "lm_head.weight": (size, width),
        _HEARD: (books * size, width),
        _SPOKEN: (books * size, width),
        "depth_decoder.model.inputs_embeds_projector.weight": (inner, width),
        "depth_decoder.codebooks_head.weight": (books - 1, inner, size),
    }
    for prefix, part in (("backbone_model", config), ("depth_decoder.model", depth)):
        hidden, wide = part["hidden_size"], part["intermediate_size"]
        queries, keys = (part["head_dim"] * part[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
        shapes[f"{prefix}.norm.weight"] = (hidden,)
        for index in range(part["num_hidden_layers"]):
            layer = f"{prefix}.layers.{index}"
            shapes |= {
                f"{layer}.self_attn.q_proj.weight": (queries, hidden),
                f"{layer}.self_attn.k_proj.weight": (keys, hidden),
                f"{layer}.self_attn.v_proj.weight": (keys, hidden),
                f"{layer}.self_attn.o_proj.weight": (hidden, queries),
                f"{layer}.mlp.gate_proj.weight": (wide, hidden),
                f"{layer}.mlp.up_proj.weight": (wide, hidden),
                f"{layer}.mlp.down_proj.weight": (hidden, wide),
                f"{layer}.input_layernorm.weight": (hidden,),
                f"{layer}.post_attention_layernorm.weight": (hidden,),
            }
    return shapes


def _model(config: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The weights in a tree of modules with the checkpoint's names."""
    model = _Holder()
    for name in sorted(weights, key=_natural):
        weight = nn.Parameter(weights[name], requires_grad=False)
        path, _, leaf = name.rpartition(".")
        parent, _, child = path.rpartition(".")
        # Heads (one tensor of three dimensions) and norms (one dimension) are no layers that could be adapted.
        is_linear = weight.dim() == 2 and "embed_" not in child
        if is_linear:
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = weight
            _inside(model, parent).add_module(child, linear)
        else:
            _inside(model, path).register_parameter(leaf, weight)
    model.config = _namespace(config)
    for prefix, part in (("backbone_model", config), ("depth_decoder.model", config["depth_decoder_config"])):
        stack = _inside(model, prefix)
        stack.config, stack.rotary_emb = _namespace(part), _Holder()
        stack.rotary_emb.inv_freq = nn.Buffer(rotary_frequencies(part), persistent=False)
        stack.rotary_emb.attention_scaling = 1.0
    return model.eval()


def _inside(model: nn.Module, path: str) -> Any:
    for name in filter(None, path.split(".")):
        if name not in dict(model.named_children()):
            model.add_module(name, nn.ModuleList() if name == "layers" else _Holder())
        model = model.get_submodule(name)
    return model


def rotary_frequencies(config: dict[str, Any]) -> Tensor:
    """Frequencies of rotary positions (Su et al. 2021), plain or scaled as in Llama 3.1: (head_dim / 2,), float32.

    ValueError for other scalings.
    """
    rope = config["rope_parameters"]
    width = config["head_dim"]
    plain: Tensor = 1.0 / (rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float) / width))
    if rope["rope_type"] == "default":
        return plain
    if rope["rope_type"] != "llama3":
        raise ValueError(f"rotary scaling {rope['rope_type']!r}")
    # Low frequencies are divided by the factor, high ones stay, those between are interpolated.
    length, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    turns = length * plain / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)
    mixed: Tensor = (1 - share) * plain / rope["factor"] + share * plain
    return mixed


def _namespace(config: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(
        **{key: _namespace(value) if isinstance(value, dict) else value for key, value in config.items()}
    )


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts layer 10 after layer 9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in name.split("."))
