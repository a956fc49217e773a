"""emotion2vec's network: data2vec 2.0 for audio (Baevski et al. 2022, arXiv 2212.07525), as `emotion2vec` reads it.

Convolutions over samples, convolutions over frames for position, then transformer blocks whose attention falls off with
distance (ALiBi, Press et al. 2022, with a learned scale per head), and a few learned tokens before the frames. An
utterance's vector is the mean of the last layer's frames. Parameters are named as in the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affetto.judges.checkpoints import fewest_samples


@dataclass(frozen=True)
class Shape:
    """The values of `config.yaml` that determine the network."""

    width: int
    heads: int
    mlp: int
    depth: int
    prenet_depth: int
    norm_eps: float
    norm_first: bool
    convolutions: tuple[tuple[int, int, int], ...]
    """Channels, kernel and stride of each convolution."""
    has_layer_norm: bool
    """Whether there is a layer norm after each convolution; else there is one group norm after the first."""
    position_depth: int
    position_kernel: int
    position_groups: int
    position_norm_first: bool
    num_extra_tokens: int
    alibi_heads: int
    """0 without ALiBi."""
    alibi_scales: tuple[int, int]
    """Number of scales by layer and by head; 1 if all share one."""
    normalises: bool
    """Whether a sound is normalised to mean 0 and variance 1."""


class Emotion2vec(nn.Module):
    """Samples to frames, and frames to labels; parameters are named as in the checkpoint."""

    def __init__(self, shape: Shape, num_labels: int) -> None:
        super().__init__()
        self.shape = shape
        self.modality_encoders = nn.ModuleDict({"AUDIO": _Front(shape)})
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.depth))
        self.norm = _norm(shape) if shape.norm_first else nn.Identity()
        self.proj = nn.Linear(shape.width, num_labels)

    @property
    def fewest_samples(self) -> int:
        """Number of samples that make one frame."""
        return fewest_samples([(kernel, stride) for _, kernel, stride in self.shape.convolutions])

    def frames(self, sound_1S: Tensor) -> Tensor:
        """The last layer's frames (1, T, D) of one sound."""
        if self.shape.normalises:
            sound_1S = F.layer_norm(sound_1S, sound_1S.shape)
        front = self.modality_encoders["AUDIO"]
        assert isinstance(front, _Front)
        x_1TD, biases = front(sound_1S)
        for block, bias in zip(self.blocks, biases, strict=True):
            x_1TD = block(x_1TD, bias)
        frames_1TD: Tensor = self.norm(x_1TD)[:, self.shape.num_extra_tokens :]
        return frames_1TD

    def vector(self, sound_1S: Tensor) -> Tensor:
        """The mean (1, D) of the last layer's frames."""
        return self.frames(sound_1S).mean(dim=1)

    def scores(self, sound_1S: Tensor) -> Tensor:
        """Logits (1, labels)."""
        logits: Tensor = self.proj(self.vector(sound_1S))
        return logits


class _Swap(nn.Module):
    """(…, A, B) to (…, B, A), because convolutions take channels before frames."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(-2, -1)


class _SameLength(nn.Module):
    """Drops the frame that an even kernel adds."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.extra = 1 - kernel % 2

    def forward(self, x_BDT: Tensor) -> Tensor:
        return x_BDT[..., : x_BDT.shape[-1] - self.extra]


class _Front(nn.Module):
    """Samples to the first block's frames and each block's attention bias."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.local_encoder = _Convolutions(shape)
        last = shape.convolutions[-1][0]
        self.project_features = nn.Sequential(_Swap(), nn.LayerNorm(last), nn.Linear(last, shape.width))
        self.relative_positional_encoder = _positions(shape)
        self.context_encoder = _Context(shape)
        if shape.num_extra_tokens:
            self.extra_tokens = nn.Parameter(torch.zeros(1, shape.num_extra_tokens, shape.width))
        if shape.alibi_heads:
            by_layer, by_head = shape.alibi_scales
            self.alibi_scale = nn.Parameter(torch.ones(by_layer, 1, by_head, 1, 1))

    def forward(self, sound_1S: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Frames (1, T, D), the extra tokens first, and the biases (1, H, T, T) of the following blocks."""
        shape, x = self.shape, sound_1S[:, None]
        x = self.local_encoder(x)
        x_1TD = self.project_features(x)
        x_1TD = x_1TD + self.relative_positional_encoder(x_1TD)
        biases = self._biases(x_1TD.shape[1])
        if shape.num_extra_tokens:
            x_1TD = torch.cat([self.extra_tokens, x_1TD], dim=1)
        return self.context_encoder(x_1TD, biases[: shape.prenet_depth]), biases[shape.prenet_depth :]

    def _biases(self, num_frames: int) -> list[Tensor | None]:
        """Each block's bias (1, H, T, T), which is 0 in the extra tokens' rows and columns."""
        shape, num_blocks = self.shape, self.shape.prenet_depth + self.shape.depth
        if not shape.alibi_heads:
            return [None] * num_blocks
        places = torch.arange(num_frames, device=self.alibi_scale.device)
        minus_distance_TT = -(places[:, None] - places[None]).abs().float()
        slopes_H = torch.tensor(alibi_slopes(shape.alibi_heads), device=minus_distance_TT.device)
        bias = F.pad(slopes_H[:, None, None] * minus_distance_TT, (shape.num_extra_tokens, 0) * 2)[None]
        scales = self.alibi_scale.clamp_min(0).expand(num_blocks, -1, -1, -1, -1)
        return [bias * scale for scale in scales]


class _Block(nn.Module):
    """A transformer block; `norm_first` puts its norms before or after attention and MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.norm_first = shape.heads, shape.norm_first
        self.norm1, self.norm2 = _norm(shape), _norm(shape)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(shape.width, 3 * shape.width), "proj": nn.Linear(shape.width, shape.width)}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(shape.width, shape.mlp), "fc2": nn.Linear(shape.mlp, shape.width)})

    def forward(self, x_BTD: Tensor, bias_BHTT: Tensor | None) -> Tensor:
        if self.norm_first:
            x_BTD = x_BTD + self._attend(self.norm1(x_BTD), bias_BHTT)
            # As published: the residual is the MLP's own output, not its input.
            return 2 * self._transform(self.norm2(x_BTD))
        x_BTD = self.norm1(x_BTD + self._attend(x_BTD, bias_BHTT))
        output_BTD: Tensor = self.norm2(x_BTD + self._transform(x_BTD))
        return output_BTD

    def _attend(self, x_BTD: Tensor, bias_BHTT: Tensor | None) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.attn["qkv"](x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if bias_BHTT is not None and bias_BHTT.shape[1] < self.heads:
            bias_BHTT = F.pad(bias_BHTT, (0, 0, 0, 0, 0, self.heads - bias_BHTT.shape[1]))
        attended_BHTC = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHTT)
        output_BTD: Tensor = self.attn["proj"](attended_BHTC.transpose(1, 2).reshape(B, T, D))
        return output_BTD

    def _transform(self, x_BTD: Tensor) -> Tensor:
        output_BTD: Tensor = self.mlp["fc2"](F.gelu(self.mlp["fc1"](x_BTD)))
        return output_BTD


def alibi_slopes(num_heads: int) -> list[float]:
    """ALiBi's slope of each head (Press et al. 2022): powers of 2^(-8/n) if n is a power of two; else those of the
    next smaller power of two, then every other one of twice that."""
    below = 2 ** int(log2(num_heads))
    slopes = [2 ** (-8 * (head + 1) / below) for head in range(below)]
    return slopes if below == num_heads else slopes + alibi_slopes(2 * below)[::2][: num_heads - below]


def _norm(shape: Shape) -> nn.LayerNorm:
    return nn.LayerNorm(shape.width, eps=shape.norm_eps)


class _Convolutions(nn.Module):
    """Samples (B, 1, S) to (B, D, T)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        layers, before = [], 1
        for number, (channels, kernel, stride) in enumerate(shape.convolutions):
            parts: list[nn.Module] = [nn.Conv1d(before, channels, kernel, stride, bias=False), nn.Identity()]
            if shape.has_layer_norm:
                parts.append(nn.Sequential(_Swap(), nn.LayerNorm(channels), _Swap()))
            elif number == 0:
                parts.append(nn.GroupNorm(channels, channels))
            layers.append(nn.Sequential(*parts, nn.GELU()))
            before = channels
        self.conv_layers = nn.Sequential(*layers)

    def forward(self, x_B1S: Tensor) -> Tensor:
        x_BDT: Tensor = self.conv_layers(x_B1S)
        return x_BDT


class _Context(nn.Module):
    """The prenet's blocks, after a norm unless they start with their own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.prenet_depth))
        self.norm = nn.Identity() if shape.norm_first else _norm(shape)

    def forward(self, x_BTD: Tensor, biases: Sequence[Tensor | None]) -> Tensor:
        x_BTD = self.norm(x_BTD)
        for block, bias in zip(self.blocks, biases, strict=True):
            x_BTD = block(x_BTD, bias)
        return x_BTD


def _positions(shape: Shape) -> nn.Sequential:
    width, kernel = shape.width, shape.position_kernel
    layers = nn.Sequential(
        _Swap(),
        *(
            nn.Sequential(
                nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=shape.position_groups),
                _SameLength(kernel), _Swap(), nn.LayerNorm(width, elementwise_affine=False), _Swap(), nn.GELU(),
            )
            for _ in range(shape.position_depth)
        ),
        _Swap(),
    )  # fmt: skip
    return nn.Sequential(nn.LayerNorm(width), layers) if shape.position_norm_first else layers
