"""Floating-point operations of what runs, and the rate at which large products are done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from affetto.native.functional import mm


def count_operations(epoch: Callable[[int], int]) -> float:
    """Floating-point operations of an epoch's products for each of the frames that it tells, whatever does them."""
    # Attention by plain products: the formulas of some versions don't know grouped heads in the fused kernels.
    with sdpa_kernel(SDPBackend.MATH), _Operations() as counted:
        frames = epoch(0)
    return counted.total / frames


class _Operations(TorchDispatchMode):
    """torch's FlopCounterMode without its watch over modules, which takes minutes where layers are computed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet is torch.ops.aten.addmm_:
            self.total += 2 * args[1].numel() * args[2].shape[1]
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=made)
        return made


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second (of a processor's time) of the best of some large products, in the step's precision."""
    size, repeats = (8192, 20) if device == "cuda" else (2048, 8)
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, now = float("inf"), time.perf_counter if device == "cuda" else time.process_time
    for _ in range(repeats):
        start = now()
        mm(one, other)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, now() - start)
    return 2.0 * size**3 / best
