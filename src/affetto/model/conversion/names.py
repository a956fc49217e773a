"""Recipes that make transformers' tensors from the authors'.

Two things differ besides names. The package's rotary embedding rotates pairs of neighbouring channels, transformers'
the halves of a head, so the rows of query and key are permuted in layers that have one (main transformer and Mimi, not
the depth transformer). And the package has one matrix per codebook where transformers stacks them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from affetto.model.conversion.source import TensorFile

_MIMI_NAMES = (
    ("encoder.model.", "encoder.layers."), ("decoder.model.", "decoder.layers."),
    ("_transformer.transformer.", "_transformer."),
    ("convtr.convtr.", "conv."), ("conv.conv.", "conv."),
    ("downsample.conv.conv.", "downsample.conv."), ("upsample.conv.convtr.", "upsample.conv."),
    ("rvq_first.vq.", "semantic_residual_vector_quantizer."), ("rvq_first.", "semantic_residual_vector_quantizer."),
    ("rvq_rest.vq.", "acoustic_residual_vector_quantizer."), ("rvq_rest.", "acoustic_residual_vector_quantizer."),
    ("_codebook._initialized", "codebook.initialized"), ("_codebook.embedding_sum", "codebook.embed_sum"),
    ("_codebook.", "codebook."),
    (".norm1.", ".input_layernorm."), (".norm2.", ".post_attention_layernorm."),
    (".linear1.", ".mlp.fc1."), (".linear2.", ".mlp.fc2."),
    (".layer_scale_1.", ".self_attn_layer_scale."), (".layer_scale_2.", ".mlp_layer_scale."),
)  # fmt: skip
"""Replacements of Mimi's names, theirs by ours, applied in this order; attention is handled separately."""
Make = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to make one tensor of transformers' model."""

    name: str
    file: TensorFile
    sources: tuple[str, ...]
    """Tensors of `file`, in the order that `make` takes them."""
    make: Make

    def __call__(self) -> Tensor:
        """Read the sources and make the tensor."""
        return self.make([self.file.read(name) for name in self.sources]).contiguous()


def language_model_recipes(file: TensorFile, config: Any) -> Iterator[Recipe]:
    """Recipes of all tensors of `MoshiForConditionalGeneration` except the codec's."""
    num, depth = config.num_codebooks, config.depth_decoder_config

    def plain(name: str, source: str) -> Recipe:
        return Recipe(name, file, (source,), _only)

    def stacked(name: str, pattern: str, count: int = num) -> Recipe:
        return Recipe(name, file, tuple(pattern.format(k=k) for k in range(count)), _stack)

    for k in range(2 * num):
        yield plain(f"embed_tokens.{k}.weight", f"emb.{k}.weight")
    yield plain("decoder.model.embed_tokens.weight", "text_emb.weight")
    yield plain("decoder.lm_head.weight", "text_linear.weight")
    yield Recipe("decoder.model.norm.weight", file, ("out_norm.alpha",), _flat)
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"decoder.model.layers.{layer}", f"transformer.layers.{layer}"
        yield from _norms(file, ours, theirs)
        for part, make in (("q", 0), ("k", 1), ("v", 2)):
            heads = config.num_attention_heads if part in "qk" else None
            yield Recipe(
                f"{ours}.self_attn.{part}_proj.linear.weight", file, _attention(file, theirs, "in_proj", 1),
                _projection(make, 1, heads),
            )  # fmt: skip
        yield Recipe(f"{ours}.self_attn.o_proj.linear.weight", file, _attention(file, theirs, "out_proj", 1), _only)
        yield plain(f"{ours}.mlp.fc1.weight", f"{theirs}.gating.linear_in.weight")
        yield plain(f"{ours}.mlp.fc2.weight", f"{theirs}.gating.linear_out.weight")
    yield plain("depth_decoder.text_embed_tokens.weight", "depformer_text_emb.weight")
    for k in range(num - 1):
        yield plain(f"depth_decoder.embed_tokens.{k}.weight", f"depformer_emb.{k}.weight")
    yield stacked("depth_decoder.input_projections.weight", "depformer_in.{k}.weight")
    yield stacked("depth_decoder.lm_heads.weight", "linears.{k}.weight")
    for layer in range(depth.num_hidden_layers):
        ours, theirs = f"depth_decoder.layers.{layer}", f"depformer.layers.{layer}"
        yield from _norms(file, ours, theirs)
        for part, place in (("q", 0), ("k", 1), ("v", 2)):
            yield Recipe(
                f"{ours}.self_attn.{part}_proj.linear.weight", file, _attention(file, theirs, "in_proj", num),
                _projection(place, num, None),
            )  # fmt: skip
        yield Recipe(
            f"{ours}.self_attn.o_proj.linear.weight", file, _attention(file, theirs, "out_proj", num),
            lambda parts: _by_step(parts, num),
        )  # fmt: skip
        yield stacked(f"{ours}.mlp.fc1.weight", f"{theirs}.gating.{{k}}.linear_in.weight")
        yield stacked(f"{ours}.mlp.fc2.weight", f"{theirs}.gating.{{k}}.linear_out.weight")


def mimi_recipes(file: TensorFile, config: Any) -> Iterator[Recipe]:
    """Recipes of all tensors of `MimiModel`, with their names inside Moshi, as listed in the file."""
    for source in file.tensors:
        if ".self_attn." in source:
            continue
        name = source
        for theirs, ours in _MIMI_NAMES:
            name = name.replace(theirs, ours)
        yield Recipe(f"audio_encoder.{name}", file, (source,), _only)
    for side in ("encoder", "decoder"):
        for layer in range(config.num_hidden_layers):
            theirs, ours = f"{side}_transformer.transformer.layers.{layer}", f"{side}_transformer.layers.{layer}"
            for part, place in (("q", 0), ("k", 1), ("v", 2)):
                heads = config.num_attention_heads if part in "qk" else None
                yield Recipe(
                    f"audio_encoder.{ours}.self_attn.{part}_proj.weight", file, _attention(file, theirs, "in_proj", 1),
                    _projection(place, 1, heads),
                )  # fmt: skip
            yield Recipe(
                f"audio_encoder.{ours}.self_attn.o_proj.weight", file, _attention(file, theirs, "out_proj", 1), _only
            )


def halves(rows_OI: Tensor, num_heads: int) -> Tensor:
    """Rows of a query or key projection, from pairs (r0, i0, r1, i1, …) in a head to halves (r0, r1, …, i0, i1, …)."""
    pairs = rows_OI.view(num_heads, -1, 2, rows_OI.shape[1])
    return pairs.transpose(1, 2).reshape(rows_OI.shape)


def _norms(file: TensorFile, ours: str, theirs: str) -> Iterator[Recipe]:
    for name, source in (("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2")):
        yield Recipe(f"{ours}.{name}.weight", file, (f"{theirs}.{source}.alpha",), _flat)


def _attention(file: TensorFile, layer: str, which: str, count: int) -> tuple[str, ...]:
    """Sources of an attention's matrix: one for all steps, as in the published files, or one per step."""
    fused = [f"{layer}.self_attn.{which}{ending}" for ending in ("_weight", ".weight")]
    for name in fused:
        if name in file.tensors:
            return (name,)
    split = tuple(f"{layer}.self_attn.{which}s.{k}.weight" for k in range(count))
    if any(name in file.tensors for name in split):
        return split
    return (fused[0] if which == "in_proj" else fused[1],)


def _projection(place: int, count: int, num_heads: int | None) -> Make:
    """Takes query (0), key (1) or value (2) from a matrix that stacks the three, per step if there are several."""

    def make(parts: Sequence[Tensor]) -> Tensor:
        part_KOI = _by_step(parts, count).chunk(3, dim=1)[place]
        if count > 1:
            return part_KOI
        return halves(part_KOI[0], num_heads) if num_heads else part_KOI[0]

    return make


def _by_step(parts: Sequence[Tensor], count: int) -> Tensor:
    return parts[0].view(count, -1, parts[0].shape[-1]) if len(parts) == 1 else torch.stack(list(parts))


def _stack(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts))


def _only(parts: Sequence[Tensor]) -> Tensor:
    return parts[0]


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].flatten()
