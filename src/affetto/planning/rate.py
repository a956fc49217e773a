"""Measures a machine's speed on a base's network, from a few steps of a much smaller one of the same widths."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from affetto.adapters.bank import AdapterBank
from affetto.config import Config
from affetto.model.base import BASES, DTYPES
from affetto.model.batch import Batch
from affetto.model.losses import code_losses, text_loss
from affetto.model.network import Network
from affetto.planning.blank import blank_batch
from affetto.planning.workload import Workload

_MOST_FLOPS = 4e11
"""Most for a measured step: ten seconds on a slow core."""
_FEW_FLOPS = 4e10
"""Up to this the measured step gets as many rows as the run's: one second on a slow core."""


@dataclass(frozen=True)
class Rate:
    """Multiplications and additions a second, and where the figure comes from."""

    flops_per_s: float
    source: str


def stated_rate(tflops: float) -> Rate:
    """The rate that the user gives, in 10^12 operations a second."""
    return Rate(tflops * 1e12, "as given with --tflops")


def measured_rate(base: Any, config: Config, work: Workload, device: str) -> Rate:
    """Time steps of a network with one layer in each part, with the run's widths, shapes and precision."""
    network, parameters = _network(BASES[base.model_type].outline.short(base), config, device)
    rows = max(1, min(work.rows, 2))
    batch = _batch(network, rows, work, _depth(work, rows), device)
    flops, _ = _step(network, batch, parameters, device)
    # Small matrix products are slow, so use the run's number of rows if that doesn't take long.
    if (most := min(work.rows, int(rows * _FEW_FLOPS // flops))) > rows:
        batch = _batch(network, most, work, _depth(work, most), device)
        flops, _ = _step(network, batch, parameters, device)
    while flops > _MOST_FLOPS and len(batch.depth_M) > 4:
        batch = _batch(network, 1, work, max(4, len(batch.depth_M) // 4), device)
        flops, _ = _step(network, batch, parameters, device)
    times_s = [_step(network, batch, parameters, device)[1] for _ in range(3)]
    return Rate(flops / min(times_s), f"measured on this machine's {device} with one layer of each kind")


def _depth(work: Workload, rows: int) -> int:
    return max(1, round(work.depth_frames * rows / work.rows))


def _network(small: Any, config: Config, device: str) -> tuple[Network, Sequence[torch.Tensor]]:
    kind, before = BASES[small.model_type], torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[config.base_precision])
    try:
        model = kind.outline.model(small)
    finally:
        torch.set_default_dtype(before)
    network = kind.network(model.to(device)).eval()
    bank = AdapterBank(model, network.gates, config.target_modules, config.adapted_parts)
    bank.add("measured", config.adapter_r, config.lora_alpha, 0)
    return network, list(bank.parameters("measured").values())


def _batch(network: Network, rows: int, work: Workload, depth: int, device: str) -> Batch:
    return blank_batch(network, rows, work.frames, work.text_tokens, depth).to(device)


def _step(network: Network, batch: Batch, parameters: Sequence[torch.Tensor], device: str) -> tuple[int, float]:
    """FLOPs of a step, and its seconds."""
    counter = FlopCounterMode(display=False)
    with counter:
        _forward_backward(network, batch, parameters)
    _wait(device)
    start = time.perf_counter()
    _forward_backward(network, batch, parameters)
    _wait(device)
    return int(counter.get_total_flops()), time.perf_counter() - start


def _forward_backward(network: Network, batch: Batch, parameters: Sequence[torch.Tensor]) -> None:
    logits = network(batch)
    c0, depth = code_losses(logits, batch)
    torch.autograd.grad(c0.total + depth.total + text_loss(logits, batch).total, parameters, allow_unused=True)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
