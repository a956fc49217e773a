"""Adapts an earlier miniature's weights to a new codec, so that a new one can start from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from affetto.codes.vocoder import VocoderCodec

_C0_EMBEDDING, _C0_HEAD = "backbone_model.embed_tokens.embed_audio_tokens.weight", "lm_head.weight"
_DEPTH_EMBEDDING, _DEPTH_HEAD = "depth_decoder.model.embed_tokens.weight", "depth_decoder.codebooks_head.weight"


def carried_weights(earlier: Path, codec: VocoderCodec) -> dict[str, Tensor]:
    """State dict of the base in `earlier`, in float32, with its codes remapped to `codec`'s.

    A code's embeddings and head columns are those of the earlier code with the most similar sound; other weights are
    unchanged. Both codecs must have the same number and size of codebooks.
    """
    weights = {name: value.float() for name, value in load_file(earlier / "model.safetensors").items()}
    nearest_KV = nearest_codes(VocoderCodec.load(earlier), codec)
    num_codebooks, size = nearest_KV.shape
    stride = len(weights[_C0_HEAD])
    # The special codes after the codebook's own keep their places.
    places = np.tile(np.arange(stride), (num_codebooks, 1))
    places[:, :size] = nearest_KV
    chosen_KV = torch.from_numpy(places)
    rows = (chosen_KV + stride * torch.arange(num_codebooks)[:, None]).flatten()
    for name in (_C0_EMBEDDING, _DEPTH_EMBEDDING):
        weights[name] = weights[name][rows]
    weights[_C0_HEAD] = weights[_C0_HEAD][chosen_KV[0]]
    heads = weights[_DEPTH_HEAD]
    weights[_DEPTH_HEAD] = torch.stack([head[:, chosen_KV[k + 1]] for k, head in enumerate(heads)])
    return weights


def nearest_codes(earlier: VocoderCodec, later: VocoderCodec) -> NDArray[np.int64]:
    """(K, V): for each of `later`'s codes the code of `earlier` with the most similar sound, by codebook."""
    assert earlier.codebooks_KVP.shape[:2] == later.codebooks_KVP.shape[:2]
    nearest = []
    for k, (old_VP, new_VP) in enumerate(zip(earlier.codebooks_KVP, later.codebooks_KVP, strict=True)):
        # Both in the later codec's units. The first codebook holds sounds, the others what is added to them.
        old_VD = old_VP @ earlier.basis_DP.T * earlier.scale_D / later.scale_D
        new_VD = new_VP @ later.basis_DP.T
        if k == 0:
            old_VD = old_VD + (earlier.mean_D - later.mean_D) / later.scale_D
        nearest.append(((new_VD[:, None, :] - old_VD) ** 2).sum(axis=-1).argmin(axis=1))
    return np.stack(nearest)
