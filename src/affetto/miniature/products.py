"""Where the miniature's networks are trained, and in what precision their matrix products run."""

from __future__ import annotations

from functools import cache

import torch


@cache
def training_device() -> torch.device:
    """A GPU where there is one: hours become minutes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def product_dtype() -> torch.dtype:
    """bfloat16 on hardware that multiplies it, which takes a third off a step on CPUs with AVX-512 BF16; else float32.

    On CPUs without such units bfloat16 is 80 times slower.
    """
    has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_units or training_device().type == "cuda" else torch.float32


def fast_products() -> torch.autocast:
    """Autocast to `product_dtype`."""
    return torch.autocast(training_device().type, torch.bfloat16, enabled=product_dtype() == torch.bfloat16)
