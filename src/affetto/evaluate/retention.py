"""What was forgotten, teacher-forced: the same held-out general clips through the base and through base plus adapter.

It is deterministic and paired, without sampling or judges. For every code of every clip both models give a
distribution; `delta_nll` is the adapter's negative log likelihood of the true code minus the base's, `kl` is
KL(base || adapted), both in nats per code, per codebook and over all. Prompts are plain, so an adapter that acts only
on its cue scores near 0.

If the base's text runs in parallel with its frames (Moshi), the text is compared, too: separately in nats per token,
and within the totals per code, as in training.
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

from affetto.audio.stratified import spread
from affetto.codes.prepare import Prepared
from affetto.evaluate import results
from affetto.metrics import statistics
from affetto.model.base import Base
from affetto.model.batch import Batch, Logits, Row, collate
from affetto.model.rows import make_rows

_ROWS = 12


@dataclass(frozen=True)
class TextRetention:
    """Sums per clip over the text in parallel with its frames."""

    tokens_N: NDArray[np.int64]
    delta_nll_N: NDArray[np.float64]
    kl_N: NDArray[np.float64]

    def document(self) -> results.TextRetention:
        """The `text` of RETENTION; intervals by bootstrap over clips."""
        return results.TextRetention(
            num_tokens=int(self.tokens_N.sum()),
            delta_nll=_metric(self.delta_nll_N, self.tokens_N, "nats/token"),
            kl=_metric(self.kl_N, self.tokens_N, "nats/token"),
        )


@dataclass(frozen=True)
class Retention:
    """Sums per clip and codebook."""

    codes_NK: NDArray[np.int64]
    delta_nll_NK: NDArray[np.float64]
    kl_NK: NDArray[np.float64]
    text: TextRetention | None = None
    """Only for a base with a text stream."""

    @property
    def codes_N(self) -> NDArray[np.int64]:
        """Codes per clip."""
        return np.asarray(self.codes_NK.sum(axis=1))

    @property
    def delta_nll_N(self) -> NDArray[np.float64]:
        """Sums over all codes of each clip, and its text."""
        return np.asarray(self.delta_nll_NK.sum(axis=1) + (self.text.delta_nll_N if self.text else 0.0))

    @property
    def kl_N(self) -> NDArray[np.float64]:
        """Sums over all codes of each clip, and its text."""
        return np.asarray(self.kl_NK.sum(axis=1) + (self.text.kl_N if self.text else 0.0))

    def document(self) -> results.Retention:
        """RETENTION of docs/results.md; intervals by bootstrap over clips."""
        per_code_K = self.codes_NK.sum(axis=0)
        document = results.Retention(
            num_clips=len(self.codes_NK),
            num_codes=int(self.codes_NK.sum()),
            delta_nll=_metric(self.delta_nll_N, self.codes_N, "nats/code"),
            kl=_metric(self.kl_N, self.codes_N, "nats/code"),
            per_codebook=results.PerCodebook(
                delta_nll=(self.delta_nll_NK.sum(axis=0) / per_code_K).tolist(),
                kl=(self.kl_NK.sum(axis=0) / per_code_K).tolist(),
            ),
        )
        if self.text is not None:
            document["text"] = self.text.document()
        return document


def _metric(sums_N: NDArray[np.float64], counts_N: NDArray[np.int64], unit: str) -> results.Metric:
    clips = [str(index) for index in range(len(counts_N))]
    return results.to_metric(statistics.bootstrap_ratio(sums_N, counts_N, clips), unit)


def general_test_rows(
    base: Base, prepared: Prepared, most: int, seed: int, speakers: Mapping[str, int] | None = None
) -> list[Row]:
    """At most `most` held-out general clips, spread over speakers and lengths, with plain prompts.

    `speakers` overrides the base's speaker numbers of some of the data's speakers.
    """
    chosen = spread(prepared.select(None, "test"), prepared.num_frames(), most, f"{seed}/retention")
    by_id = {clip.id: clip for clip in prepared.clips}
    return make_rows(
        base, chosen, prepared.codes, {**prepared.speakers, **(speakers or {})}, by_id=by_id, beside_of=prepared.beside
    )


@torch.no_grad()
def measure_retention(
    base: Base, rows: Sequence[Row], gate: tuple[float, ...], on_progress: Callable[[int], object] | None = None
) -> Retention:
    """Compare the base with the bank at `gate` on `rows`: every codebook of every frame, and its text if it has one."""
    parts: dict[str, list[NDArray[Any]]] = {"codes": [], "delta": [], "kl": []}
    texts: dict[str, list[NDArray[Any]]] = {"codes": [], "delta": [], "kl": []}

    def compare(sums: dict[str, list[NDArray[Any]]], before: Tensor, after: Tensor, targets_NK: Tensor) -> None:
        delta_NK = _nll(after, targets_NK) - _nll(before, targets_NK)
        kl_NK = (before.exp() * (before - after)).sum(dim=-1)
        sums["codes"].append(_per_clip(torch.ones_like(delta_NK), batch).astype(np.int64))
        sums["delta"].append(_per_clip(delta_NK, batch))
        sums["kl"].append(_per_clip(kl_NK, batch))

    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        batch = collate([replace(row, gate=gate) for row in part], base.num_codebooks).to(base.device)
        before, after = base.network(batch.with_gate(batch.gate_BE[:, :0])), base.network(batch)
        compare(parts, _by_codebook(before), _by_codebook(after), batch.depth_codes_MK)
        if before.text_NW is not None:
            compare(texts, _of_text(before), _of_text(after), batch.text_targets_N[:, None])
        if on_progress:
            on_progress(len(part))
    codes, delta, kl = (np.concatenate(sums) for sums in parts.values())
    text = TextRetention(*(np.concatenate(sums)[:, 0] for sums in texts.values())) if texts["codes"] else None
    return Retention(codes, delta, kl, text)


def _by_codebook(logits: Logits) -> Tensor:
    """Log-probabilities (N, K, V); here every frame has depth logits."""
    return torch.cat([logits.c0_NV[:, None], logits.depth_MJV], dim=1).double().log_softmax(dim=-1)


def _of_text(logits: Logits) -> Tensor:
    """Log-probabilities (N, 1, W)."""
    assert logits.text_NW is not None
    return logits.text_NW[:, None].double().log_softmax(dim=-1)


def _nll(log_probs_NKV: Tensor, targets_NK: Tensor) -> Tensor:
    flat = functional.nll_loss(log_probs_NKV.flatten(0, 1), targets_NK.flatten(), reduction="none")
    return flat.reshape(targets_NK.shape)


def _per_clip(values_NK: Tensor, batch: Batch) -> NDArray[np.float64]:
    sums = values_NK.new_zeros(len(batch.clip_ids), values_NK.shape[1])
    return np.asarray(sums.index_add_(0, batch.frames_N2[:, 0], values_NK).cpu().numpy(), dtype=np.float64)
