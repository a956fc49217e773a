"""`Frames` in torch, on any device, in any precision; on a CPU in float32 C and NumPy are faster."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from affetto.speak.layers import Rotary, normed, product, spread, step
from affetto.speak.state import SpeakingBatch
from affetto.speak.weights import SpeakingWeights


class TorchFrames:
    """`Frames` in torch."""

    def __init__(self, weights: SpeakingWeights, batch: SpeakingBatch, rotary: Rotary, depth_rotary: Rotary) -> None:
        self.weights, self.batch, self.rotary = weights, batch, rotary
        self.eps, self.depth_eps = (
            torch.tensor([shape.eps], dtype=torch.float32, device=weights.device)
            for shape in (weights.backbone_shape, weights.depth_shape)
        )
        self.offsets_K = torch.arange(weights.num_codebooks, device=weights.device) * weights.vocab_size
        self.first_two = depth_rotary.cos_S2H[:2], depth_rotary.sin_S2H[:2]
        self.rotations = list(zip(depth_rotary.cos_S2H, depth_rotary.sin_S2H, strict=True))
        self.depth_places = [batch.depth_cache.places(k) for k in range(weights.num_codebooks)]

    def frame(self) -> Tensor:
        """See `Frames`."""
        weights, batch, shape, eps = self.weights, self.batch, self.weights.depth_shape, self.depth_eps
        states_BD, pick = batch.states_BD, batch.sampling.pick
        layers, projector = batch.weights.depth, batch.weights.projector
        uniform = torch.split(batch.uniform_BTK[:, batch.num_frames], 1, dim=1)
        codes = [pick(logits(states_BD, weights.c0_head_DC), uniform[0], 0)]
        hidden_BD = self._begin(codes[0])
        for k in range(1, weights.num_codebooks):
            last_BD = normed(hidden_BD.float(), eps, weights.head_norm_D)
            codes.append(pick(logits(last_BD, weights.heads_DC[k - 1]), uniform[k], k))
            if k < weights.num_codebooks - 1:
                x_BD = product(weights.spoken_tables[k].index_select(0, codes[k]), projector)
                hidden_BD = step(x_BD, layers, shape, self.depth_places[k + 1], eps, *self.rotations[k + 1])
        return torch.stack(codes, dim=1)

    def first_logits(self) -> list[Tensor]:
        """Logits (B, C) of every codebook from the depth decoder's output after two positions.

        Nothing is drawn from these, but every layer and head takes part in them, so that NaN in any of them shows.
        """
        weights, c0_BC = self.weights, logits(self.batch.states_BD, self.weights.c0_head_DC)
        last_BD = normed(self._begin(c0_BC.argmax(dim=-1)).float(), self.depth_eps, weights.head_norm_D)
        return [c0_BC, *(logits(last_BD, head_DC) for head_DC in weights.heads_DC)]

    def _begin(self, c0_B: Tensor) -> Tensor:
        """The depth decoder's output (B, D) after two positions: the backbone's states and codebook 0's code."""
        batch, states_BD = self.batch, self.batch.states_BD
        pair_B2D = torch.stack([states_BD, self.weights.spoken_tables[0].index_select(0, c0_B)], dim=1)
        x_B2D = product(pair_B2D.flatten(0, 1), batch.weights.projector).view(len(states_BD), 2, -1)
        return spread(
            x_B2D, batch.weights.depth, self.weights.depth_shape, batch.depth_cache, self.depth_eps, *self.first_two
        )

    def hear(self, codes_BK: Tensor) -> None:
        """See `Frames`."""
        weights, batch, slot, mask = self.weights, self.batch, self.batch.slot, self.batch.mask_N1S
        x_BD = functional.embedding(codes_BK + self.offsets_K, weights.heard_table).sum(1)
        place: int | Tensor = slot if batch.starts_B is None else slot - batch.starts_B
        cos, sin = self.rotary.cos_S2H[place], self.rotary.sin_S2H[place]
        if mask is not None:
            cos, sin, mask = cos[:, None], sin[:, None], mask[..., : slot + 1]
        places = batch.cache.places(slot)
        x_BD = step(x_BD, batch.weights.backbone, weights.backbone_shape, places, self.eps, cos, sin, mask)
        batch.states_BD = normed(x_BD, self.eps) * weights.norm_D


def logits(x_BD: Tensor, head_DC: Tensor) -> Tensor:
    """x W (B, C), in float32 whatever the dtypes."""
    return torch.mm(x_BD.float(), head_DC.float())
