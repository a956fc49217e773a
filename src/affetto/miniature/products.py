"""The device and the precision of matrix products for training the miniature's networks."""

from __future__ import annotations

from functools import cache

import torch


@cache
def training_device() -> torch.device:
    """A GPU if there is one, which turns hours into minutes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def product_dtype() -> torch.dtype:
    """bfloat16 on hardware with units for it, which saves a third of a step on CPUs with AVX-512 BF16; else float32.

    On CPUs without such units bfloat16 is 80 times slower.
    """
    has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_units or training_device().type == "cuda" else torch.float32


def fast_products() -> torch.autocast:
    """Autocast to `product_dtype`."""
    return torch.autocast(training_device().type, torch.bfloat16, enabled=product_dtype() == torch.bfloat16)
