"""Frozen linear layers in four bits: NormalFloat-4 with a scale per 64 weights, as in QLoRA (Dettmers et al. 2023).

bitsandbytes packs and unpacks them, on CPU and GPU alike. A layer is unpacked for every product, forward and backward,
and never kept unpacked in between. Adapters, checkpointing and the Fisher see it as any other frozen layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from affetto.errors import MissingDependencyError
from affetto.native.functional import linear
from affetto.quiet import quiet_transformers

FOUR_BIT = "nf4"
"""Its name in the configuration's `base_precision`."""
BLOCK = 64
"""Weights that share a scale."""
PACKED_PARTS = ("backbone_model.layers", "decoder.model.layers", "depth_decoder.model.layers")
"""Paths of the layers that are packed; embeddings, norms, heads and the depth decoder's projector aren't."""


class FourBitLinear(nn.Module):
    """A linear layer whose frozen weight is packed; every access to `weight` unpacks it."""

    def __init__(self, packed: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype, bias: Any) -> None:
        super().__init__()
        self.packed = nn.Parameter(packed, requires_grad=False)
        """Two weights per byte."""
        self.scales = nn.Parameter(scales, requires_grad=False)
        """Absolute maximum of each block, float32."""
        self.bias = bias
        self.shape = shape
        """(out, in)."""
        self.dtype = dtype

    @property
    def weight(self) -> Tensor:
        """(out, in), in the type that the network computes in."""
        return unpack(self.packed, self.scales, self.shape, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) → (…, out)."""
        return frozen_linear(x, self)


def frozen_linear(x: Tensor, layer: Any) -> Tensor:
    """The product with a frozen layer; a four-bit one is unpacked again for the backward pass."""
    if not isinstance(layer, FourBitLinear):
        return linear(x, layer.weight, layer.bias)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        y: Tensor = _FrozenLinear.apply(x.to(dtype), layer)  # type: ignore[no-untyped-call]
    return y


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return functional.linear(x, layer.weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.weight.to(grads[0].dtype), None


def require_four_bit() -> None:
    """Raise MissingDependencyError if bitsandbytes is not installed."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"base_precision: {FOUR_BIT} needs bitsandbytes ({error}): pip install 'affetto[four-bit]', or set "
            "base_precision to bf16"
        ) from error


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(packed, scales) of a matrix, on its device."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=BLOCK, quant_type=FOUR_BIT)
    return packed, state.absmax


def unpack(packed: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The matrix (out, in) that `packed` stands for."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    # On a CPU bitsandbytes 0.50 starts a new block with every row, which is harmless if each row is one block.
    blocks = torch.Size((math.prod(shape) // BLOCK, BLOCK))
    state = QuantState(scales, blocks, dtype=dtype, blocksize=BLOCK, quant_type=FOUR_BIT)
    unpacked: Tensor = dequantize_4bit(packed, state)
    return unpacked.view(shape)


def packed_sizes(shape: tuple[int, int]) -> tuple[int, int]:
    """Bytes of the packed weight, and its number of scales."""
    return math.prod(shape) // 2, math.prod(shape) // BLOCK


def packed_linear(layer: nn.Linear, device: torch.device | str) -> FourBitLinear:
    """`layer` in four bits, on `device`, which never holds more than this one layer unpacked."""
    weight = layer.weight.detach()
    packed, scales = pack(weight.to(device))
    return FourBitLinear(packed, scales, (weight.shape[0], weight.shape[1]), weight.dtype, layer.bias)


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> int:
    """Replace the linear layers of `PACKED_PARTS` by what `make` returns for each; returns how many.

    A layer that isn't a whole number of blocks stays as it is; no real base has one.
    """
    count = 0
    with quiet_transformers():
        for path, layer in list(model.named_modules()):
            is_whole = isinstance(layer, nn.Linear) and layer.weight.numel() % BLOCK == 0
            if is_whole and path.startswith(PACKED_PARTS):
                parent, _, leaf = path.rpartition(".")
                setattr(model.get_submodule(parent), leaf, make(layer))
                count += 1
    return count
