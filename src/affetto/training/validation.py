"""Validation: fixed clips, every code, the same numbers every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from affetto.files import cache_root
from affetto.model.base import Base
from affetto.model.batch import Batch, Logits, Row, collate
from affetto.preserve.distillation import distillation_kl
from affetto.preserve.teacher import TeacherCache, TeacherClip, teacher_cache
from affetto.terms import LossTerm, code_losses

_ROWS = 16
INTENSITIES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


class Validation:
    """Emotion learned and general speech forgotten, in nats per code over all codebooks.

    `value`, which the best checkpoint minimises, is their sum: one nat forgotten for one nat learned. Without general
    clips forgetting can't be measured; it is None then, and `value` is the emotion's alone.
    """

    def __init__(
        self, base: Base, emotional: Sequence[Row], general: Sequence[Row], folder: Path | None = None
    ) -> None:
        assert emotional, "validation needs emotional clips"
        self.base = base
        self.emotional = list(emotional)
        self.general = list(general)
        self.teacher: TeacherCache | None = None
        if self.general:
            where = folder or cache_root() / "teacher"
            self.teacher = teacher_cache(where, base.network, base.hash, self.general, depth_share=1.0)

    @torch.no_grad()
    def __call__(self, intensity: float = 1.0) -> dict[str, float | None]:
        """`emotion_nll`, `general_nll`, `general_kl` and `value` with the adapter at `intensity`."""
        emotion = LossTerm.zero()
        for part in _parts(_gated(self.emotional, intensity)):
            emotion = emotion + self._answer(part)[2]
        emotion_nll = emotion.mean.item()
        if self.teacher is None:
            return {"emotion_nll": emotion_nll, "general_nll": None, "general_kl": None, "value": emotion_nll}
        general, kl = LossTerm.zero(), LossTerm.zero()
        for part in _parts(_gated(self.general, intensity)):
            batch, logits, nll = self._answer(part)
            general = general + nll
            kl = kl + _teacher_kl([self.teacher[row.clip_id] for row in part], batch, logits)
        general_nll, general_kl = general.mean.item(), kl.mean.item()
        return {
            "emotion_nll": emotion_nll, "general_nll": general_nll, "general_kl": general_kl,
            "value": emotion_nll + general_kl,
        }  # fmt: skip

    def _answer(self, rows: Sequence[Row]) -> tuple[Batch, Logits, LossTerm]:
        """The batch of `rows`, its logits, and the negative log likelihood of all its codes."""
        batch = collate(rows, self.base.num_codebooks).to(self.base.device)
        logits = self.base.network(batch)
        c0, depth = code_losses(logits, batch)
        return batch, logits, _on_cpu(c0 + depth)


def frontier(validation: Validation) -> list[dict[str, Any]]:
    """What each intensity conveys and costs: rows of `intensity`, `kl` (None where unknown), `emotion_nll`."""
    points = []
    for intensity in INTENSITIES:
        values = validation(intensity)
        points.append({"intensity": intensity, "kl": values["general_kl"], "emotion_nll": values["emotion_nll"]})
    return points


def recommend(points: Sequence[Mapping[str, Any]]) -> float:
    """The intensity at which learning and forgetting (where known) together cost least."""
    return float(min(points, key=lambda point: point["emotion_nll"] + (point["kl"] or 0.0))["intensity"])


def _teacher_kl(answers: Sequence[TeacherClip], batch: Batch, logits: Logits) -> LossTerm:
    """KL(base || adapted) summed over all codes of clips whose every frame has an answer."""
    device = batch.codes_BSK.device
    c0 = distillation_kl(torch.cat([answer.c0_TV for answer in answers]).to(device), logits.c0_NV)
    depth = distillation_kl(torch.cat([answer.depth_FJV for answer in answers]).to(device), logits.depth_MJV)
    return _on_cpu(c0 + depth)


def _on_cpu(term: LossTerm) -> LossTerm:
    return LossTerm(term.total.cpu(), term.count)


def _gated(rows: Sequence[Row], intensity: float) -> list[Row]:
    return [replace(row, gate=(intensity,)) for row in rows]


def _parts(rows: Sequence[Row]) -> list[list[Row]]:
    return [list(rows[start : start + _ROWS]) for start in range(0, len(rows), _ROWS)]
