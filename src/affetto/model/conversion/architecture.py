"""transformers' configuration, derived from the authors' arguments and the shapes of their tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affetto.errors import BaseModelError, listed
from affetto.model.conversion.source import FLOATS, AuthorsCheckpoint, TensorFile

PUBLISHED: Mapping[str, Any] = {
    "num_heads": 32, "depformer_num_heads": 16, "context": 3000, "max_period": 10000, "dim": 4096,
    "depformer_dim": 1024,
}  # fmt: skip
"""Moshi 7B's arguments (arXiv 2410.00037, and the package's defaults), for checkpoints without config.json."""
_SIZED = ("text_emb.weight", "emb.0.weight", "depformer_in.0.weight", "linears.0.weight")
_FIRST_MLP, _FIRST_DEPTH_MLP = (
    "transformer.layers.0.gating.linear_in.weight", "depformer.layers.0.gating.0.linear_in.weight",
)  # fmt: skip
_FIXED: Mapping[str, Any] = {
    "norm": "rms_norm_f32", "gating": "silu", "depformer_gating": "silu", "positional_embedding": "rope",
    "depformer_pos_emb": "none", "causal": True, "depformer_multi_linear": True, "depformer_weights_per_step": True,
    "depformer_weights_per_step_schedule": None, "depformer_low_rank_embeddings": None, "norm_emb": False,
    "bias_proj": False, "layer_scale": None, "demux_second_stream": False, "demux_second_text_stream": False,
    "quantize": False, "model_type": "moshi", "cross_attention": False, "depformer_norm": None,
    "existing_text_padding_id": 3,
}  # fmt: skip
"""Arguments that transformers' Moshi has built in; a checkpoint that gives them must have these values."""
_PUBLISHED_SIZES: Mapping[str, Any] = {
    "text_card": 32000, "card": 2048, "n_q": 16, "dep_q": 8, "num_layers": 32, "hidden_scale": 4.125,
    "depformer_num_layers": 6, "depformer_dim_feedforward": 4224,
}  # fmt: skip
"""Like `PUBLISHED`, for arguments that the tensors' shapes show, too."""
_COUNTED = {"num_layers": "transformer.layers", "depformer_num_layers": "depformer.layers", "n_q": "emb",
            "dep_q": "linears"}  # fmt: skip
"""Arguments that count parts of the model, and the prefix of those parts' tensors."""


def language_model_settings(checkpoint: AuthorsCheckpoint) -> dict[str, Any]:
    """Keyword arguments of `MoshiConfig` except the codec's.

    Sizes and counts come from the tensors and are checked against config.json, or Moshi 7B without one.
    BaseModelError if they differ or if transformers' Moshi can't express the model.
    """
    file, path = checkpoint.weights, checkpoint.folder / "config.json"
    _check_kind(file)
    _check_dtypes(file)
    shapes = {name: info.shape for name, info in file.tensors.items()}
    (text_rows, dim), (depth_dim, _) = shapes["text_emb.weight"], shapes["depformer_in.0.weight"]
    if checkpoint.config is None and (dim, depth_dim) != (PUBLISHED["dim"], PUBLISHED["depformer_dim"]):
        raise BaseModelError(
            f"{file.path} is {dim} wide (depth {depth_dim}), which is not Moshi 7B, and tensors don't show the number "
            "of heads: put a config.json with the package's arguments (dep_q, num_heads, …) beside it"
        )
    given = {**PUBLISHED, **_PUBLISHED_SIZES, **(checkpoint.config or {})}
    sizes = {"dim": ("text_emb.weight", dim), "text_card": ("text_emb.weight", text_rows - 1),
             "card": ("linears.0.weight", shapes["linears.0.weight"][0]),
             "depformer_dim": ("depformer_in.0.weight", depth_dim)}  # fmt: skip
    for key, (name, size) in sizes.items():
        if size != (stated := _whole(given, key, path)):
            raise BaseModelError(
                f"{file.path}: {name} is {shapes[name]}, so {key} is {size}, and {_source(checkpoint, key)} {stated}: "
                "they are of different models; get both again, from one place"
            )
    counts = {key: _counted(checkpoint, key, _whole(given, key, path)) for key in _COUNTED}
    dep_q = counts["dep_q"]
    if counts["n_q"] != 2 * dep_q:
        raise BaseModelError(
            f"{file.path} reads {counts['n_q']} audio streams and predicts {dep_q}: transformers' Moshi must read "
            "twice as many as it predicts (its own and the user's). It is no dialogue model such as moshiko"
        )
    _check_arguments(given, path)
    return {
        "vocab_size": text_rows - 1,
        "hidden_size": dim,
        "num_hidden_layers": counts["num_layers"],
        "num_attention_heads": _heads(given, "num_heads", "dim", path),
        "audio_vocab_size": sizes["card"][1],
        "max_position_embeddings": _whole(given, "context", path),
        "sliding_window": _whole(given, "context", path),
        "ffn_dim": _rows_of_pairs(file, _FIRST_MLP),
        "rms_norm_eps": 1e-8,
        "num_codebooks": dep_q,
        "rope_parameters": {"rope_type": "default", "rope_theta": _above_zero(given, "max_period", path)},
        "depth_decoder_config": {
            "hidden_size": depth_dim,
            "num_hidden_layers": counts["depformer_num_layers"],
            "num_attention_heads": _heads(given, "depformer_num_heads", "depformer_dim", path),
            "max_position_embeddings": dep_q + 1,
            "sliding_window": dep_q,
            "ffn_dim": _rows_of_pairs(file, _FIRST_DEPTH_MLP),
            "rms_norm_eps": 1e-8,
        },
    }


def settings_of_arguments(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`language_model_settings` without tensors, from the package's arguments in the config.json at `path` alone;
    missing ones are Moshi 7B's. BaseModelError if transformers' Moshi can't express the model.
    """
    given = {**PUBLISHED, **_PUBLISHED_SIZES, **config}
    _check_arguments(given, path)
    dim, depth_dim, books, context = (_whole(given, key, path) for key in ("dim", "depformer_dim", "dep_q", "context"))
    width, depth_width = (
        _whole(given, key, path) if given.get(key) else int(_above_zero(given, "hidden_scale", path) * size)
        for key, size in (("dim_feedforward", dim), ("depformer_dim_feedforward", depth_dim))
    )
    return {
        "model_type": "moshi",
        "vocab_size": _whole(given, "text_card", path),
        "hidden_size": dim,
        "num_hidden_layers": _whole(given, "num_layers", path),
        "num_attention_heads": _heads(given, "num_heads", "dim", path),
        "audio_vocab_size": _whole(given, "card", path),
        "max_position_embeddings": context,
        "sliding_window": context,
        "ffn_dim": _gated(width, dim),
        "num_codebooks": books,
        "audio_encoder_config": {"model_type": "mimi"},
        "depth_decoder_config": {
            "hidden_size": depth_dim,
            "num_hidden_layers": _whole(given, "depformer_num_layers", path),
            "num_attention_heads": _heads(given, "depformer_num_heads", "depformer_dim", path),
            "max_position_embeddings": books + 1,
            "sliding_window": books,
            "ffn_dim": _gated(depth_width, depth_dim),
        },
    }


def _gated(width: int, dim: int) -> int:
    """Rows of a gating MLP's first matrix (gate and up), from the package's argument `width`."""
    return 2 * (21 * dim // 8 if width == 4 * dim else 2 * width // 3)


def mimi_settings(checkpoint: AuthorsCheckpoint) -> dict[str, Any]:
    """Keyword arguments of `MimiConfig`; the defaults of transformers are the published Mimi's."""
    config = checkpoint.mimi_config
    if config is None:
        return {}
    try:
        seanet, quantizer, transformer = config["seanet"], config["quantizer"], config["transformer"]
        return {
            "sampling_rate": config["sample_rate"],
            "audio_channels": config["channels"],
            "hidden_size": seanet["dimension"],
            "num_filters": seanet["n_filters"],
            "num_residual_layers": seanet["n_residual_layers"],
            "upsampling_ratios": list(seanet["ratios"]),
            "kernel_size": seanet["kernel_size"],
            "last_kernel_size": seanet["last_kernel_size"],
            "residual_kernel_size": seanet["residual_kernel_size"],
            "dilation_growth_rate": seanet["dilation_base"],
            "compress": seanet["compress"],
            "pad_mode": seanet["pad_mode"],
            "use_conv_shortcut": not seanet["true_skip"],
            "codebook_size": quantizer["bins"],
            "codebook_dim": quantizer["dimension"],
            "vector_quantization_hidden_dimension": quantizer["dimension"],
            "num_quantizers": quantizer["n_q"],
            "upsample_groups": seanet["dimension"],
            "num_hidden_layers": transformer["num_layers"],
            "intermediate_size": transformer["dim_feedforward"],
            "num_attention_heads": transformer["num_heads"],
            "num_key_value_heads": transformer["num_heads"],
            "sliding_window": transformer["context"],
            "rope_parameters": {"rope_type": "default", "rope_theta": float(transformer["max_period"])},
        }
    except KeyError as error:
        raise BaseModelError(f"{mimi_path(checkpoint)} lacks {error}; get Mimi's configuration again") from error
    except (TypeError, ValueError) as error:
        raise BaseModelError(f"{mimi_path(checkpoint)} is damaged ({error}); get Mimi's configuration again") from error


def mimi_path(checkpoint: AuthorsCheckpoint) -> Path | None:
    """The path of Mimi's configuration; None if the checkpoint has none of its own."""
    name = (checkpoint.config or {}).get("mimi_config_name")
    return checkpoint.folder / str(name).rpartition("/")[2] if name else None


def _check_kind(file: TensorFile) -> None:
    needed = (*_SIZED, _FIRST_MLP, _FIRST_DEPTH_MLP)
    if missing := [name for name in needed if name not in file.tensors]:
        some = ", ".join(sorted(file.tensors)[:3])
        raise BaseModelError(
            f"{file.path} is not Moshi's: it has no {missing[0]} (it has {some}, …). Give the folder of "
            "kyutai/moshiko-pytorch-bf16 or of a model tuned from it"
        )
    if wrong := [name for name in needed if len(file.tensors[name].shape) != 2]:
        raise BaseModelError(f"{file.path}: {wrong[0]} is {file.tensors[wrong[0]].shape}, not a matrix; get it again")


def _check_dtypes(file: TensorFile) -> None:
    wrong = [f"{name} is {info.dtype}" for name, info in file.tensors.items() if info.dtype not in FLOATS]
    if wrong:
        raise BaseModelError(
            f"{file.path} holds quantised or unknown types: {', '.join(wrong[:4])}. Take the weights in bfloat16, "
            "float16 or float32, such as kyutai/moshiko-pytorch-bf16's"
        )
    kinds = Counter(info.dtype for info in file.tensors.values())
    if len(kinds) > 1:
        usual = kinds.most_common(1)[0][0]
        odd = [f"{name} is {info.dtype}" for name, info in file.tensors.items() if info.dtype != usual]
        raise BaseModelError(
            f"{file.path} mixes {', '.join(sorted(kinds))}: {listed(odd, 4)}, the others {usual}; save it in one of "
            "them"
        )


def _check_arguments(given: Mapping[str, Any], path: Path) -> None:
    """Raise BaseModelError if an argument differs from what transformers' Moshi has built in."""
    own = [0, *[1] * (_whole(given, "dep_q", path) - 1)]
    fixed = {**_FIXED, "delays": [0, *own, *own]}
    for key, value in fixed.items():
        if key in given and given[key] != value:
            raise BaseModelError(
                f"{path}: {key} is {given[key]!r}, and transformers' Moshi has {value!r} built in: this model can't "
                "be converted"
            )
    for key in ("conditioners", "fuser", "extra_heads_num_heads"):
        value = given.get(key)
        # A fuser lists which conditions go where; one with only empty lists does nothing, whatever else it sets.
        is_used = any(isinstance(part, list) and part for part in value.values()) if isinstance(value, dict) else value
        if is_used or (key == "conditioners" and value):
            raise BaseModelError(
                f"{path}: {key} is {value!r}, which transformers' Moshi doesn't have: this model can't be converted"
            )
    window, steps = given.get("depformer_context"), _whole(given, "dep_q", path)
    if window is not None and _whole(given, "depformer_context", path) < steps:
        raise BaseModelError(
            f"{path}: depformer_context is {window!r}, and transformers' depth decoder attends to all {steps} "
            "codebooks: this model can't be converted"
        )


def _counted(checkpoint: AuthorsCheckpoint, key: str, stated: int) -> int:
    """The number of parts, among the tensors, that `key` counts. BaseModelError if it isn't `stated`."""
    file, stem = checkpoint.weights, _COUNTED[key]
    pattern = re.compile(rf"{re.escape(stem)}\.(\d+)\.")
    numbers = {int(match[1]) for name in file.tensors if (match := pattern.match(name))}
    count, source = max(numbers, default=-1) + 1, _source(checkpoint, key)
    if count < stated:
        raise BaseModelError(
            f"{file.path} lacks all tensors of {listed([f'{stem}.{k}' for k in range(count, stated)], 4)}, and "
            f"{source} {stated}: get it again, or from where it was trained"
        )
    if count > stated:
        raise BaseModelError(
            f"{file.path} has tensors of {listed([f'{stem}.{k}' for k in range(stated, count)], 4)}, and {source} "
            f"{stated}: they are of different models; get both again, from one place"
        )
    return count


def _source(checkpoint: AuthorsCheckpoint, key: str) -> str:
    """Where the value of the argument `key` comes from, as a clause that the value completes."""
    if checkpoint.config is None:
        return f"Moshi 7B, which is assumed without a config.json, has a {key} of"
    says = "says" if key in checkpoint.config else "doesn't say, so that Moshi 7B's is assumed,"
    return f"{checkpoint.folder / 'config.json'} {says} {key}:"


def _whole(given: Mapping[str, Any], key: str, path: Path) -> int:
    """The argument `key`, a whole number above zero. BaseModelError if it is anything else."""
    value = _above_zero(given, key, path)
    if not value.is_integer():
        raise _senseless(given, key, path, "a whole number above 0")
    return int(value)


def _above_zero(given: Mapping[str, Any], key: str, path: Path) -> float:
    value = given.get(key)
    # Integers in JSON may be larger than any float, and floats infinite.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < _MOST:
        raise _senseless(given, key, path, "a number above 0")
    return float(value)


_MOST = 1e9
"""Larger than any sensible argument of a model."""


def _senseless(given: Mapping[str, Any], key: str, path: Path, wanted: str) -> BaseModelError:
    return BaseModelError(f"{path}: {key} is {given.get(key)!r} and must be {wanted}; fix it, or get the file again")


def _heads(given: Mapping[str, Any], key: str, width_key: str, path: Path) -> int:
    """A number of attention heads. BaseModelError if it doesn't divide the layer's width."""
    heads, width = _whole(given, key, path), _whole(given, width_key, path)
    if width % heads:
        raise BaseModelError(f"{path}: {key} is {heads}, which doesn't divide {width_key}, {width}; get the file again")
    return heads


def _rows_of_pairs(file: TensorFile, name: str) -> int:
    """Rows of a gating MLP's first matrix, half of which are the gate's."""
    rows = file.tensors[name].shape[0]
    if rows % 2 or not rows:
        raise BaseModelError(
            f"{file.path}: {name} is {file.tensors[name].shape}, and its number of rows must be even; get it again"
        )
    return rows
