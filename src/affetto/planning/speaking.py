"""Memory of a process that speaks with adapters loaded: what `affetto.speak` keeps, counted from shapes.

The engine's weights can't be shape-only tensors (on a GPU they read memory addresses), so unlike for training this uses
formulas; a test compares each of them with what the engine really keeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch

from affetto.codes.neural import HEARING
from affetto.model.base import host_part
from affetto.model.outline import Outline
from affetto.planning.storage import adapter_parameters, weight_bytes
from affetto.planning.tracing import ShapeOnly
from affetto.preserve.curvature.memory import Shapes
from affetto.speak.generation import frame_cap
from affetto.speak.state import FRAMES_OF_A_ROOM, MOST_OPEN_ROOMS, SLOTS_OF_A_ROOM
from affetto.speak.takes import FEWEST
from affetto.speak.weights import MOST_ARRANGEMENTS, MOST_MERGED_BYTES

_CHARS_PER_S = 14
"""Characters of text per second, as `Outline` assumes."""
_TOGETHER = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}
"""Layers with the same input are fused into one matrix product."""


@dataclass(frozen=True)
class Speaking:
    """What speaking needs with every emotion's adapter loaded, one sentence after another."""

    device: str
    precision: str
    num_adapters: int
    takes: int
    """How often a sentence is spoken."""
    parts: Mapping[str, int]
    """Bytes that stay allocated, by kind."""
    peak_bytes: int

    def to_document(self) -> dict[str, Any]:
        """Strict JSON."""
        return asdict(self)


def plan_speaking(
    config: Any, outline: Outline, shape: ShapeOnly, rank: int | None, num_adapters: int, clip_s: float, *,
    device: str, runtime: int, takes: int = 1,
) -> Speaking | None:  # fmt: skip
    """Memory of speaking sentences of `clip_s` seconds, `takes` times each; None if the engine can't speak the base.

    `config` is the base's, `shape` its network as the run trains it, whose layers carry the adapters.
    """
    if config.model_type != "csm":
        return None
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = _model(config, outline, dtype)
    shapes = {path: tuple(site.shape) for path, site in shape.bank.sites.items()}
    on_host = host_part(model, shape.network) or "embed_text_tokens"
    weights = weight_bytes(model, (f"{on_host}.",) if device == "cuda" else ())
    products = _products(model)
    stays = {
        "runtime": runtime,
        "weights": weights,
        "copies": _copies(config, products, dtype, is_shared=device == "cuda"),
        # With a GPU they wait on the host.
        "adapters": 0 if device == "cuda" else 4 * num_adapters * adapter_parameters(shapes, rank),
        # With a GPU the codec's encoder waits on the host too.
        "codec": codec_bytes(config, HEARING if device == "cuda" else ()),
    }
    prompt = round(outline.tokens_per_s * clip_s) + outline.template_tokens
    frames = frame_cap("x" * round(_CHARS_PER_S * clip_s), outline.frame_rate)
    room = takes * _row_bytes(config, prompt, frames, dtype)
    each = arrangement_bytes(products, shapes, rank, dtype)
    # On a GPU open rooms hold their arrangement as well, and one more is in use.
    # With several takes, witnesses speak at a lower intensity, so they have gates of their own.
    gates = num_adapters * (2 if takes >= FEWEST else 1)
    most = (
        MOST_OPEN_ROOMS + 1 if device == "cuda" else min(MOST_ARRANGEMENTS, max(1, MOST_MERGED_BYTES // max(1, each)))
    )
    alive = min(gates, most)
    stays |= {"arrangements": alive * each, "rooms": (max(1, alive) if device == "cuda" else 1) * room}
    peak = sum(stays.values())
    if device == "cuda":
        # Layers with the same input are concatenated before there is an arrangement.
        fused = max(dtype.itemsize * width * sum(outs.values()) for width, outs in products.values() if len(outs) > 1)
        peak = max(peak, sum(stays[part] for part in ("weights", "copies", "adapters")) + fused)
    return Speaking(device, str(dtype).removeprefix("torch."), num_adapters, takes, stays, peak)


def codec_bytes(config: Any, left_out: Sequence[str] = ()) -> int:
    """Bytes of a CSM's codec without the parts `left_out`; it is float32 whatever the base's precision."""
    from transformers import AutoModel

    with torch.device("meta"):
        return weight_bytes(AutoModel.from_config(config.codec_config), [f"{part}." for part in left_out])


def _model(config: Any, outline: Outline, dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return outline.model(config)
    finally:
        torch.set_default_dtype(before)


def _products(model: Any) -> dict[str, tuple[int, dict[str, int]]]:
    """By product of the engine: its number of inputs, and the number of outputs of each of its layers, by path."""
    linear = [
        (name, layer) for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and ("layers." in name or name.endswith("inputs_embeds_projector"))
    ]  # fmt: skip
    products = {}
    for product, layers in groupby(linear, key=lambda item: product_of(item[0])):
        members = list(layers)
        products[product] = (members[0][1].in_features, {name: layer.out_features for name, layer in members})
    return products


def product_of(path: str) -> str:
    """The fused product that a layer is part of."""
    parent, _, leaf = path.rpartition(".")
    return f"{parent}.{_TOGETHER.get(leaf, leaf)}"


def arrangement_bytes(
    products: Mapping[str, tuple[int, Mapping[str, int]]], shapes: Shapes, rank: int | None, dtype: torch.dtype
) -> int:
    """Bytes of one adapter in the engine, if all rows speak with it.

    In float32, and with full rank, the adapter is merged, so every adapted product has weights of its own. Otherwise
    the low-rank factors of a product's layers are concatenated, each as wide as the outputs of all.
    """
    total = 0
    for width, layers in products.values():
        adapted, outs = sum(path in shapes for path in layers), sum(layers.values())
        if rank is None or dtype == torch.float32:
            total += width * outs * bool(adapted)
        else:
            total += rank * adapted * (width + outs)
    return dtype.itemsize * total


def _copies(
    config: Any, products: Mapping[str, tuple[int, Mapping[str, int]]], dtype: torch.dtype, *, is_shared: bool
) -> int:
    """Bytes that the engine keeps besides the base's own weights: heads, and on a CPU every product."""
    size = config.codec_config.codebook_size
    heads: int = (config.num_codebooks - 1) * size * config.depth_decoder_config.hidden_size * dtype.itemsize
    if is_shared:
        return heads
    own: int = sum(width * sum(layers.values()) for width, layers in products.values())
    return heads + 4 * int(size * config.hidden_size) + dtype.itemsize * own


def _row_bytes(config: Any, prompt: int, frames: int, dtype: torch.dtype) -> int:
    """Bytes of one row's caches for a sentence: keys, values, rotary tables and random draws."""
    slots = SLOTS_OF_A_ROOM * math.ceil((prompt + frames) / SLOTS_OF_A_ROOM)
    frames = FRAMES_OF_A_ROOM * math.ceil(frames / FRAMES_OF_A_ROOM)
    total: int = 4 * frames * config.num_codebooks
    for stack, places in ((config, slots), (config.depth_decoder_config, config.num_codebooks)):
        keys = stack.num_hidden_layers * stack.num_key_value_heads * stack.head_dim
        total += 2 * dtype.itemsize * places * (keys + stack.head_dim)
    return total
