"""What was forgotten, teacher-forced: the same held-out general clips through the base and through base plus adapter.

Deterministic and paired: no sampling, no judge. For every code of every clip both models give a distribution;
`delta_nll` is the adapter's negative log likelihood of the true code minus the base's, `kl` is KL(base || adapted),
both in nats per code, per codebook and over all. Plain prompts, so an adapter that listens to its cue scores near 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from affetto.codes.prepare import Prepared
from affetto.evaluate import results, statistics
from affetto.model.base import Base
from affetto.model.batch import Batch, Logits, Row, collate
from affetto.model.rows import make_rows
from affetto.preserve.rehearsal import spread

_ROWS = 12


@dataclass(frozen=True)
class Retention:
    """Sums per clip and codebook."""

    codes_NK: NDArray[np.int64]
    delta_nll_NK: NDArray[np.float64]
    kl_NK: NDArray[np.float64]

    def document(self) -> results.Retention:
        """RETENTION of docs/results.md; intervals by bootstrap over clips."""
        counts_N, per_code_K = self.codes_NK.sum(axis=1), self.codes_NK.sum(axis=0)
        clips = [str(index) for index in range(len(counts_N))]

        def metric(sums_NK: NDArray[np.float64]) -> results.Metric:
            estimate = statistics.bootstrap_ratio(sums_NK.sum(axis=1), counts_N, clips)
            return results.to_metric(estimate, "nats/code")

        return results.Retention(
            num_clips=len(counts_N),
            num_codes=int(counts_N.sum()),
            delta_nll=metric(self.delta_nll_NK),
            kl=metric(self.kl_NK),
            per_codebook=results.PerCodebook(
                delta_nll=(self.delta_nll_NK.sum(axis=0) / per_code_K).tolist(),
                kl=(self.kl_NK.sum(axis=0) / per_code_K).tolist(),
            ),
        )


def general_test_rows(
    base: Base, prepared: Prepared, most: int, seed: int, speakers: Mapping[str, int] | None = None
) -> list[Row]:
    """At most `most` general clips that nothing was trained on, spread over speakers and lengths, read plainly.

    `speakers` replaces the base's speaker numbers of some of the data's.
    """
    chosen = spread(prepared.select(None, "test"), prepared.num_frames(), most, f"{seed}/retention")
    by_id = {clip.id: clip for clip in prepared.clips}
    return make_rows(base, chosen, prepared.codes, {**prepared.speakers, **(speakers or {})}, by_id=by_id)


@torch.no_grad()
def measure_retention(
    base: Base, rows: Sequence[Row], gate: tuple[float, ...], on_progress: Callable[[int], object] | None = None
) -> Retention:
    """Compare the base with the bank at `gate` on `rows`, every codebook of every frame."""
    parts: dict[str, list[NDArray[Any]]] = {"codes": [], "delta": [], "kl": []}
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        batch = collate([replace(row, gate=gate) for row in part], base.num_codebooks).to(base.device)
        before = _by_codebook(base.network(batch.with_gate(batch.gate_BE[:, :0])))
        after = _by_codebook(base.network(batch))
        targets_NK = batch.depth_codes_MK
        delta_NK = _nll(after, targets_NK) - _nll(before, targets_NK)
        kl_NK = (before.exp() * (before - after)).sum(dim=-1)
        parts["codes"].append(_per_clip(torch.ones_like(delta_NK), batch, len(part)).astype(np.int64))
        parts["delta"].append(_per_clip(delta_NK, batch, len(part)))
        parts["kl"].append(_per_clip(kl_NK, batch, len(part)))
        if on_progress:
            on_progress(len(part))
    return Retention(*(np.concatenate(parts[name]) for name in ("codes", "delta", "kl")))


def _by_codebook(logits: Logits) -> Tensor:
    """Log-probabilities (N, K, V); here every frame has depth logits."""
    return torch.cat([logits.c0_NV[:, None], logits.depth_MJV], dim=1).double().log_softmax(dim=-1)


def _nll(log_probs_NKV: Tensor, targets_NK: Tensor) -> Tensor:
    flat = functional.nll_loss(log_probs_NKV.flatten(0, 1), targets_NK.flatten(), reduction="none")
    return flat.reshape(targets_NK.shape)


def _per_clip(values_NK: Tensor, batch: Batch, num_clips: int) -> NDArray[np.float64]:
    sums = values_NK.new_zeros(num_clips, values_NK.shape[1])
    return np.asarray(sums.index_add_(0, batch.frames_N2[:, 0], values_NK).cpu().numpy(), dtype=np.float64)
