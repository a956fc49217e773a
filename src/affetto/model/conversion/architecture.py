"""What transformers' configuration has to say, from the authors' arguments and the shapes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affetto.errors import BaseModelError
from affetto.model.conversion.source import FLOATS, AuthorsCheckpoint, TensorFile

PUBLISHED: Mapping[str, Any] = {
    "num_heads": 32, "depformer_num_heads": 16, "context": 3000, "max_period": 10000, "dim": 4096,
    "depformer_dim": 1024,
}  # fmt: skip
"""Of Moshi 7B (arXiv 2410.00037, and the package's defaults), for checkpoints without config.json."""
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
}  # fmt: skip
"""Arguments that transformers' Moshi has no choice of, where a checkpoint gives them."""


def language_model_settings(checkpoint: AuthorsCheckpoint) -> dict[str, Any]:
    """Keyword arguments of `MoshiConfig` but for the codec's. BaseModelError where the model can't be expressed."""
    file, config = checkpoint.weights, checkpoint.config
    _check_kind(file)
    _check_dtypes(file)
    if config is not None:
        _check_arguments(config, checkpoint.folder / "config.json")
    shapes = {name: info.shape for name, info in file.tensors.items()}
    (text_rows, dim), (depth_dim, _) = shapes["text_emb.weight"], shapes["depformer_in.0.weight"]
    card, num_streams, dep_q = (
        shapes["linears.0.weight"][0],
        _count(file, r"emb\.(\d+)"),
        _count(file, r"linears\.(\d+)"),
    )
    if num_streams != 2 * dep_q:
        raise BaseModelError(
            f"{file.path} hears {num_streams} audio streams and speaks {dep_q}: transformers' Moshi needs twice as "
            "many of the first (its own and the user's). It is no dialogue model such as moshiko"
        )
    if config is None and (dim, depth_dim) != (PUBLISHED["dim"], PUBLISHED["depformer_dim"]):
        raise BaseModelError(
            f"{file.path} is {dim} wide (depth {depth_dim}) and not Moshi 7B; the number of heads can't be told from "
            "the tensors: put a config.json with the package's arguments (dep_q, num_heads, …) beside it"
        )
    given = {**PUBLISHED, **(config or {})}
    return {
        "vocab_size": text_rows - 1,
        "hidden_size": dim,
        "num_hidden_layers": _count(file, r"transformer\.layers\.(\d+)"),
        "num_attention_heads": int(given["num_heads"]),
        "audio_vocab_size": card,
        "max_position_embeddings": int(given["context"]),
        "sliding_window": int(given["context"]),
        "ffn_dim": shapes[_FIRST_MLP][0],
        "rms_norm_eps": 1e-8,
        "num_codebooks": dep_q,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(given["max_period"])},
        "depth_decoder_config": {
            "hidden_size": depth_dim,
            "num_hidden_layers": _count(file, r"depformer\.layers\.(\d+)"),
            "num_attention_heads": int(given["depformer_num_heads"]),
            "max_position_embeddings": dep_q + 1,
            "sliding_window": dep_q,
            "ffn_dim": shapes[_FIRST_DEPTH_MLP][0],
            "rms_norm_eps": 1e-8,
        },
    }


def settings_of_arguments(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What `language_model_settings` finds in a checkpoint's tensors, from the package's arguments alone, those of
    config.json at `path`; what isn't said is Moshi 7B's. BaseModelError where the model can't be expressed.
    """
    given = {**PUBLISHED, **_PUBLISHED_SIZES, **config}
    _check_arguments(given, path)
    try:
        dim, depth_dim, books = int(given["dim"]), int(given["depformer_dim"]), int(given["dep_q"])
        width = given.get("dim_feedforward") or given["hidden_scale"] * dim
        return {
            "model_type": "moshi",
            "vocab_size": int(given["text_card"]),
            "hidden_size": dim,
            "num_hidden_layers": int(given["num_layers"]),
            "num_attention_heads": int(given["num_heads"]),
            "audio_vocab_size": int(given["card"]),
            "max_position_embeddings": int(given["context"]),
            "sliding_window": int(given["context"]),
            "ffn_dim": _gated(int(width), dim),
            "num_codebooks": books,
            "audio_encoder_config": {"model_type": "mimi"},
            "depth_decoder_config": {
                "hidden_size": depth_dim,
                "num_hidden_layers": int(given["depformer_num_layers"]),
                "num_attention_heads": int(given["depformer_num_heads"]),
                "max_position_embeddings": books + 1,
                "sliding_window": books,
                "ffn_dim": _gated(int(given["depformer_dim_feedforward"]), depth_dim),
            },
        }
    except (TypeError, ValueError) as error:
        raise BaseModelError(f"{path} is damaged ({error}); get it again") from error


_PUBLISHED_SIZES: Mapping[str, Any] = {
    "text_card": 32000, "card": 2048, "n_q": 16, "dep_q": 8, "num_layers": 32, "hidden_scale": 4.125,
    "depformer_num_layers": 6, "depformer_dim_feedforward": 4224,
}  # fmt: skip
"""As `PUBLISHED`, of what is read from the tensors where there are some."""


def _gated(width: int, dim: int) -> int:
    """Rows of a gating MLP's first matrix, gate and up, of the `width` that the package is told."""
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
    except (KeyError, TypeError) as error:
        name = (checkpoint.config or {}).get("mimi_config_name")
        raise BaseModelError(
            f"{checkpoint.folder / str(name)} lacks {error}; get Mimi's configuration again"
        ) from error


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
            f"{file.path} holds quantised or foreign numbers: {', '.join(wrong[:4])}. Take the weights in bfloat16, "
            "float16 or float32, such as kyutai/moshiko-pytorch-bf16's"
        )
    if len(kinds := sorted({info.dtype for info in file.tensors.values()})) > 1:
        raise BaseModelError(f"{file.path} mixes {', '.join(kinds)}; save it in one of them")


def _check_arguments(config: Mapping[str, Any], path: Path) -> None:
    own = [0, *[1] * (int(config["dep_q"]) - 1)]
    fixed = {**_FIXED, "delays": [0, *own, *own]}
    for key, value in fixed.items():
        if key in config and config[key] != value:
            raise BaseModelError(
                f"{path}: {key} is {config[key]!r}, and transformers' Moshi has {value!r} built in: this model can't "
                "be converted"
            )


def _count(file: TensorFile, pattern: str) -> int:
    """How many numbered parts there are; numbers start at 0."""
    found = [match for name in file.tensors if (match := re.match(rf"{pattern}\.", name))]
    return max((int(match.group(1)) for match in found), default=-1) + 1
