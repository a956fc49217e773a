"""emotion2vec+ from its published files (Ma et al. 2024, arXiv 2312.15185), without FunASR.

A checkpoint is `config.yaml`, `model.pt` and `tokens.txt`; a linear layer after `emotion2vec_network` classifies the
emotions. `benchmarks/parity/judges.py` compares it with FunASR's code.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from affetto.errors import JudgeError
from affetto.judges.checkpoints import CheckpointListener, at_commit, checkpoint_folder, load_state, read_state
from affetto.judges.choice import Source
from affetto.judges.emotion2vec_network import Emotion2vec, Shape

FILES = ("config.yaml", "model.pt", "tokens.txt")
"""The files of a checkpoint."""
_UNUSED = "unuse"
"""Prefix of tokens that aren't a label."""


def is_laid_out_so(source: Source) -> bool:
    """Whether a source is laid out like emotion2vec's checkpoints."""
    if source.known is not None:
        return bool(source.known.layout == "funasr")
    folder = Path(source.where)
    return all((folder / name).is_file() for name in FILES) or (
        source.tier == "hub" and source.where.startswith("emotion2vec/")
    )


def load(source: Source, device: str) -> CheckpointListener:
    """Load a checkpoint with labels; JudgeError if it can't be loaded completely."""
    folder = checkpoint_folder(source, FILES)
    source = at_commit(source, folder)
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise JudgeError(f"can't read the config.yaml of {source.id}: {error}") from error
    tokens = (folder / "tokens.txt").read_text(encoding="utf-8").split("\n")
    tokens = [token.strip() for token in tokens if token.strip()]
    state = read_state(folder / "model.pt", source.id)
    if "proj.weight" not in state:
        raise JudgeError(f"{source.id} doesn't classify emotions (it has no proj.weight): use an emotion2vec_plus_*")
    if len(state["proj.weight"]) != len(tokens):
        raise JudgeError(f"{source.id} has {len(state['proj.weight'])} outputs and {len(tokens)} names for them")
    model = Emotion2vec(read_shape(config, source.id), len(tokens))
    load_state(model, state, source.id)
    names = [None if token.startswith(_UNUSED) else token for token in tokens]
    return CheckpointListener(model, names, source, device)


def read_shape(config: Mapping[str, Any], name: str) -> Shape:
    """The network's shape from a parsed `config.yaml`; JudgeError if something is missing or unknown.

    A missing switch is off, as in FunASR.
    """
    try:
        conf = config["model_conf"]
        audio = conf["modalities"]["audio"]
        if config["model"] != "Emotion2vec":
            raise JudgeError(f"{name} is a {config['model']} checkpoint, not emotion2vec's")
        if audio.get("learned_alibi"):
            raise JudgeError(f"{name} has learned positions (learned_alibi), which affetto can't run")
        depth, prenet = int(conf["depth"]), int(audio["prenet_depth"])
        heads = int(audio["num_alibi_heads"]) if audio.get("use_alibi_encoder") else 0
        by_layer = prenet + depth if audio.get("learned_alibi_scale_per_layer") else 1
        by_head = heads if audio.get("learned_alibi_scale_per_head") else 1
        return Shape(
            width=int(conf["embed_dim"]), heads=int(conf["num_heads"]),
            mlp=int(conf["embed_dim"] * conf["mlp_ratio"]), depth=depth, prenet_depth=prenet,
            norm_eps=float(conf["norm_eps"]), norm_first=bool(conf.get("layer_norm_first")),
            convolutions=read_convolutions(str(audio["feature_encoder_spec"])),
            has_layer_norm=audio["extractor_mode"] == "layer_norm",
            position_depth=int(audio["conv_pos_depth"]),
            position_kernel=max(3, int(audio["conv_pos_width"]) // int(audio["conv_pos_depth"])),
            position_groups=int(audio["conv_pos_groups"]), position_norm_first=bool(audio.get("conv_pos_pre_ln")),
            num_extra_tokens=int(audio["num_extra_tokens"]), alibi_heads=heads, alibi_scales=(by_layer, by_head),
            normalises=bool(conf.get("normalize")),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        raise JudgeError(f"the config.yaml of {name} isn't emotion2vec's: {error!r}") from error


def read_convolutions(text: str) -> tuple[tuple[int, int, int], ...]:
    """`[(512, 10, 5)] + [(512, 3, 2)] * 4` as tuples; ValueError or SyntaxError for all but triples, + and *."""

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
            left, right = value(node.left), value(node.right)
            return left + right if isinstance(node.op, ast.Add) else left * right
        return ast.literal_eval(node)

    layers = value(ast.parse(text, mode="eval").body)
    if not all(isinstance(layer, tuple) and len(layer) == 3 for layer in layers):
        raise ValueError(f"{text!r} isn't a list of (channels, kernel, stride)")
    return tuple((int(channels), int(kernel), int(stride)) for channels, kernel, stride in layers)
