"""How much an adapter will make its base forget, predicted from weights alone: nothing is spoken or sampled.

With the adapter's gate at x every code's logits move by x · dz to first order, and KL(base || adapted) is
x²/2 · Var_p(dz) to second order, p being the base's distribution of that code. Summed over codes this is dW^T F dW of
the *whole* true Fisher, cross-layer and cross-position terms included (Martens 2020, on the Fisher as generalised
Gauss-Newton), with the expectation over labels taken exactly where `estimate_fisher` samples it. The text beside a
frame, where a base has one, counts with the frame's codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from affetto.model.base import Base
from affetto.model.batch import Batch, Logits, Row, collate
from affetto.model.fused import composed

_ROWS = 8


@dataclass(frozen=True)
class Forecast:
    """Fisher forms of a bank's adapters at gate 1, for each clip."""

    codes_C: NDArray[np.int64]
    forms_CE: NDArray[np.float64]
    """dW^T F dW summed over a clip's codes, nats."""

    def kl(self, adapter: int, intensity: float = 1.0) -> float:
        """Predicted KL(base || adapted), nats per code."""
        return float(0.5 * intensity**2 * self.forms_CE[:, adapter].sum() / self.codes_C.sum())


def forecast(
    base: Base, rows: Sequence[Row], num_adapters: int, on_progress: Callable[[int], object] | None = None
) -> Forecast:
    """Fisher forms of the `num_adapters` adapters of the bank inside `base`, on general `rows`.

    About five forward passes each, and the memory of a training step on eight rows.
    """
    codes, forms = [], []
    for start in range(0, len(rows), _ROWS):
        part = [Row(row.clip_id, row.turns) for row in rows[start : start + _ROWS]]
        batch = collate(part, base.num_codebooks).to(base.device)
        gate_BE = torch.zeros(len(part), num_adapters, device=base.device, requires_grad=True)
        # Fused attention and the GPU kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), composed():
            logits = base.network(batch.with_gate(gate_BE))
            changes = [logit_changes(logits, gate_BE, adapter) for adapter in range(num_adapters)]
        forms.append(np.stack([_by_clip(logits, change, batch) for change in changes], axis=1))
        codes.append(np.asarray([row.num_frames * base.num_codebooks for row in part]))
        if on_progress:
            on_progress(len(part))
    return Forecast(np.concatenate(codes), np.concatenate(forms))


def logit_changes(logits: Logits, gate_BE: Tensor, adapter: int) -> Logits:
    """Derivative of every logit by its row's gate for one adapter, at the gates that `logits` were computed with.

    Forward-mode differentiation by two backward passes: v ↦ J^T v is linear, so its derivative by v, applied to ones,
    is J times ones; and a row's logits depend on no other row's gate.
    """
    outputs = [logits.c0_NV, logits.depth_MJV, *([] if logits.text_NW is None else [logits.text_NW])]
    probes = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    (by_gate_BE,) = torch.autograd.grad(outputs, gate_BE, probes, create_graph=True)
    return Logits(*torch.autograd.grad(by_gate_BE[:, adapter].sum(), probes, retain_graph=True))


@torch.no_grad()
def _by_clip(logits: Logits, changes: Logits, batch: Batch) -> NDArray[np.float64]:
    """Sum over each clip's codes, and its text, of Var_p(dz)."""
    rows_N = batch.frames_N2[:, 0]
    sums_C = torch.zeros(len(batch.clip_ids), dtype=torch.float64, device=rows_N.device)
    sums_C.index_add_(0, rows_N, _variance(logits.c0_NV, changes.c0_NV))
    sums_C.index_add_(0, rows_N[batch.depth_M], _variance(logits.depth_MJV, changes.depth_MJV).sum(dim=-1))
    if logits.text_NW is not None and changes.text_NW is not None:
        sums_C.index_add_(0, rows_N, _variance(logits.text_NW, changes.text_NW))
    return sums_C.cpu().numpy()


def _variance(logits: Tensor, changes: Tensor) -> Tensor:
    """Variance of `changes` (…, V) under softmax(logits), float64 (…)."""
    p, z = logits.double().softmax(dim=-1), changes.double()
    centred = z - (p * z).sum(dim=-1, keepdim=True)
    return (p * centred.square()).sum(dim=-1)
