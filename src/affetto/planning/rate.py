"""How fast a machine computes this network, from a few steps of a much smaller one of the same widths."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from affetto.adapters.bank import AdapterBank
from affetto.config import Config
from affetto.model.base import DTYPES
from affetto.model.batch import Batch
from affetto.model.csm import CsmNetwork
from affetto.model.quiet import quiet_transformers
from affetto.planning.workload import Workload
from affetto.terms import code_losses

_MOST_FLOPS = 4e11
"""Of a measured step, which a slow core does in ten seconds."""
_TEXTS = 64


@dataclass(frozen=True)
class Rate:
    """Products and additions a second, and where the figure comes from."""

    flops_per_s: float
    source: str


def stated_rate(tflops: float) -> Rate:
    """What the user says, in 10^12 a second."""
    return Rate(tflops * 1e12, "as given with --tflops")


def measured_rate(base: Any, config: Config, work: Workload, device: str) -> Rate:
    """Time steps of a network with one layer in either part, of the run's widths, shapes and precision."""
    small = copy.deepcopy(base)
    small.num_hidden_layers = small.depth_decoder_config.num_hidden_layers = 1
    small.text_vocab_size = _TEXTS
    network, parameters = _network(small, config, device)
    rows = max(1, min(work.rows, 2))
    depth = max(1, round(work.depth_frames * rows / work.rows))
    batch = _batch(network, rows, work, depth, device)
    flops, _ = _step(network, batch, parameters, device)
    while rows * flops > _MOST_FLOPS and len(batch.depth_M) > 4:
        batch = _batch(network, 1, work, max(4, len(batch.depth_M) // 4), device)
        flops, _ = _step(network, batch, parameters, device)
        rows = 1
    taken = [_step(network, batch, parameters, device)[1] for _ in range(3)]
    return Rate(flops / min(taken), f"measured on this machine's {device} with one layer of each kind")


def _network(small: Any, config: Config, device: str) -> tuple[CsmNetwork, Sequence[torch.Tensor]]:
    from transformers import CsmForConditionalGeneration

    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[config.base_precision])
    try:
        with quiet_transformers():
            model: Any = CsmForConditionalGeneration(small).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    del model.codec_model
    network = CsmNetwork(model.to(device)).eval()
    bank = AdapterBank(model, network.gates, config.target_modules, config.adapted_parts)
    bank.add("measured", config.adapter_r, config.lora_alpha, 0)
    return network, list(bank.parameters("measured").values())


def _batch(network: CsmNetwork, rows: int, work: Workload, depth: int, device: str) -> Batch:
    positions = work.text_tokens + work.frames
    frames = torch.stack(
        [torch.arange(rows).repeat_interleave(work.frames), torch.arange(work.text_tokens, positions).repeat(rows)],
        dim=1,
    )
    is_audio = torch.zeros(rows, positions, dtype=torch.bool)
    is_audio[:, work.text_tokens :] = True
    return Batch(
        text_BS=torch.zeros(rows, positions, dtype=torch.long),
        codes_BSK=torch.randint(0, network.codebook_size, (rows, positions, network.num_codebooks)),
        is_audio_BS=is_audio,
        frames_N2=frames,
        depth_M=torch.arange(min(depth, len(frames))),
        gate_BE=torch.ones(rows, 1),
        clip_ids=(),
    ).to(device)


def _step(network: CsmNetwork, batch: Batch, parameters: Sequence[torch.Tensor], device: str) -> tuple[int, float]:
    """Products of a step, and its seconds."""
    counter = FlopCounterMode(display=False)
    with counter:
        _forward_backward(network, batch, parameters)
    _wait(device)
    start = time.perf_counter()
    _forward_backward(network, batch, parameters)
    _wait(device)
    return int(counter.get_total_flops()), time.perf_counter() - start


def _forward_backward(network: CsmNetwork, batch: Batch, parameters: Sequence[torch.Tensor]) -> None:
    c0, depth = code_losses(network(batch), batch)
    torch.autograd.grad(c0.total + depth.total, parameters, allow_unused=True)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
