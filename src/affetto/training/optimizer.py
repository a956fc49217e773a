"""AdamW (Loshchilov & Hutter 2019), with moments in float32 or in eight bits, and its state as it is kept and read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from affetto.errors import MissingDependencyError

Bits = Literal[32, 8]
BETAS = (0.9, 0.99)


def adamw(
    parameters: Iterable[Tensor], learning_rate: float, weight_decay: float = 0.0, bits: Bits = 32
) -> torch.optim.Optimizer:
    """AdamW of an adapter, as one kernel, with no copies of all moments between.

    With 8 bits the moments of tensors of 4096 elements and more are quantised in blocks (Dettmers et al. 2022, arXiv
    2110.02861), by bitsandbytes; MissingDependencyError where that isn't installed.
    """
    given = list(parameters)
    options: dict[str, Any] = {"lr": learning_rate, "betas": BETAS, "weight_decay": weight_decay}
    if bits == 8:
        eight_bit: torch.optim.Optimizer = eight_bit_class()(given, **options)
        return eight_bit
    return torch.optim.AdamW(
        given, fused=True if given and given[0].device.type in ("cuda", "cpu") else None, **options
    )


def moment_bytes(num_parameters: int, bits: Bits = 32) -> int:
    """Bytes that the moments of so many parameters take; in eight bits with a scale for every 256 of each moment."""
    return 8 * num_parameters if bits == 32 else 2 * num_parameters + 2 * 4 * num_parameters // 256


def kept_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer knows of a parameter, as tensors of the host's."""
    return {
        key: torch.as_tensor(value).detach().cpu().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def put_state(optimizer: torch.optim.Optimizer, parameter: Tensor, kept: Mapping[str, Tensor]) -> None:
    """Let the optimizer go on with what `kept_state` told."""
    # A fused optimizer counts its steps where the weights are, torch's others on the host, bitsandbytes' in Python.
    is_fused = any(group.get("fused") for group in optimizer.param_groups)
    state: dict[str, Any] = {}
    for kind, value in kept.items():
        if kind != "step":
            state[kind] = value.to(parameter.device)
        elif "state1" in kept:
            state[kind] = int(value)
        else:
            state[kind] = value.to(parameter.device if is_fused else "cpu")
    optimizer.state[parameter] = state


def eight_bit_class() -> Any:
    """bitsandbytes' AdamW with eight bits, or MissingDependencyError."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingDependencyError(
            f"optimizer_bits: 8 needs bitsandbytes ({error}): pip install 'affetto[four-bit]', or set it to 32"
        ) from error
    return AdamW8bit
