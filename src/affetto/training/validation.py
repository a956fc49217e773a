"""Validation: fixed clips, every code, the same numbers every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from affetto.files import cache_root
from affetto.model.base import Base
from affetto.model.batch import Batch, Logits, Row, collate
from affetto.model.losses import LossTerm, code_losses, text_loss
from affetto.model.rows_at_once import rows_at_once
from affetto.preserve.distillation import distillation_kl
from affetto.preserve.teacher import TeacherCache, TeacherClip, teacher_cache

_ROWS = 16
INTENSITIES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_MOST_LOOKS, _NEAR, _NARROW = 30, 0.02, 0.001
"""The search for the largest intensity inside a budget: most steps, and when it is close enough, by share of the budget
and by width in intensity."""


class Validation:
    """How well the emotion is learned and how much is forgotten, in nats per code over all codebooks (and text).

    The best checkpoint minimises `value`, the sum of the emotion's NLL and the general KL: one nat forgotten weighs as
    much as one nat learned. Without general clips forgetting is None, and `value` is the emotion's NLL alone. The rows
    have their gates at intensity 1.
    """

    def __init__(
        self, base: Base, emotional: Sequence[Row], general: Sequence[Row], folder: Path | None = None
    ) -> None:  # fmt: skip
        assert emotional, "validation needs emotional clips"
        assert all(any(row.gate) for row in (*emotional, *general)), "a row without a gate is the base's"
        self.base = base
        self.emotional = list(emotional)
        self.general = list(general)
        self.teacher: TeacherCache | None = None
        if self.general:
            where = folder or cache_root() / "teacher"
            self.teacher = teacher_cache(where, base.network, base.answers_hash, self.general, depth_share=1.0)

    @torch.no_grad()
    def __call__(self, intensity: float = 1.0) -> dict[str, float | None]:
        """`emotion_nll`, `general_nll`, `general_kl` and `value` with the adapter at `intensity`."""
        emotion_nll = self.emotion_nll(intensity)
        if self.teacher is None:
            return {"emotion_nll": emotion_nll, "general_nll": None, "general_kl": None, "value": emotion_nll}
        general_nll, general_kl = self._general(intensity)
        return {
            "emotion_nll": emotion_nll, "general_nll": general_nll, "general_kl": general_kl,
            "value": emotion_nll + general_kl,
        }  # fmt: skip

    @torch.no_grad()
    def emotion_nll(self, intensity: float) -> float:
        """Negative log likelihood of the emotional clips, nats per code."""
        emotion = LossTerm.zero()
        for part in self._parts([row.at(intensity) for row in self.emotional]):
            emotion = emotion + self._answer(part)[2]
        return emotion.mean.item()

    def general_kl(self, intensity: float) -> float:
        """KL(base || adapted) on the general clips, nats per code; there must be some."""
        return self._general(intensity)[1]

    @torch.no_grad()
    def _general(self, intensity: float) -> tuple[float, float]:
        """Negative log likelihood and KL of the general clips."""
        assert self.teacher is not None, "there is no general clip"
        general, kl = LossTerm.zero(), LossTerm.zero()
        for part in self._parts([row.at(intensity) for row in self.general]):
            batch, logits, nll = self._answer(part)
            general = general + nll
            kl = kl + _teacher_kl([self.teacher[row.clip_id] for row in part], batch, logits)
        return general.mean.item(), kl.mean.item()

    def _parts(self, rows: Sequence[Row]) -> list[list[Row]]:
        at_once = rows_at_once(self.base.network, rows, _ROWS)
        return [list(rows[start : start + at_once]) for start in range(0, len(rows), at_once)]

    def _answer(self, rows: Sequence[Row]) -> tuple[Batch, Logits, LossTerm]:
        """The batch of `rows`, its logits, and the negative log likelihood of all its codes."""
        batch = collate(rows, self.base.num_codebooks).to(self.base.device)
        logits = self.base.network(batch)
        c0, depth = code_losses(logits, batch)
        return batch, logits, _on_cpu((c0 + depth).beside(text_loss(logits, batch)))


def frontier(validation: Validation, budget: float | None = None) -> list[dict[str, Any]]:
    """What each intensity conveys and costs: rows of `intensity`, `kl` (None if unknown) and `emotion_nll`, ascending.

    With a budget (nats per code) the largest intensity inside it is among them.
    """
    points: list[dict[str, Any]] = []
    for intensity in INTENSITIES:
        values = validation(intensity)
        points.append({"intensity": intensity, "kl": values["general_kl"], "emotion_nll": values["emotion_nll"]})
    if budget is not None:
        known = {point["intensity"]: point["kl"] for point in points}
        fitted, kl = fit_intensity(validation.general_kl, budget, known)
        if fitted not in known:
            points.append({"intensity": fitted, "kl": kl, "emotion_nll": validation.emotion_nll(fitted)})
    return sorted(points, key=lambda point: point["intensity"])


def recommend(points: Sequence[Mapping[str, Any]], budget: float | None = None) -> float:
    """The intensity with the smallest sum of emotion NLL and forgetting (where known).

    With a budget it is the largest inside it, but at least the smallest of INTENSITIES: below that so little of the
    emotion is left that the budget counts as not met.
    """
    if budget is None:
        return float(min(points, key=lambda point: point["emotion_nll"] + (point["kl"] or 0.0))["intensity"])
    inside = [float(point["intensity"]) for point in points if point["kl"] <= budget]
    return max([*inside, INTENSITIES[0]])


def fit_intensity(kl_at: Callable[[float], float], budget: float, known: Mapping[float, float]) -> tuple[float, float]:
    """The largest intensity, up to the last of INTENSITIES, at which `kl_at` is inside `budget`, and the KL there.

    `known` has some KLs by intensity. The KL is roughly a power of the intensity (near zero its square, being half of
    dW^T F dW), which predicts where to look next, so two or three steps usually do; every third step halves the
    bracket, which works for any curve. It ends within 2 % of the budget, or 0.001 of the intensity.
    """
    found = {0.0: 0.0, **{intensity: max(kl, 0.0) for intensity, kl in known.items()}}
    for look in range(_MOST_LOOKS):
        inside = max(intensity for intensity, kl in found.items() if kl <= budget)
        outside = min((intensity for intensity in found if intensity > inside), default=math.inf)
        is_near = found[inside] >= (1 - _NEAR) * budget or outside - inside <= _NARROW
        if is_near or inside >= INTENSITIES[-1]:
            break
        guess = _power_guess(found, inside, outside, (1 - _NEAR / 2) * budget)
        if look % 3 == 2 or not inside < guess < outside:
            guess = (inside + min(outside, INTENSITIES[-1])) / 2
        found[round(guess, 4)] = max(kl_at(round(guess, 4)), 0.0)
    inside = max(intensity for intensity, kl in found.items() if kl <= budget)
    return inside, found[inside]


def _power_guess(found: Mapping[float, float], inside: float, outside: float, kl: float) -> float:
    """The intensity with `kl` by the power law through both ends of the bracket, or by the square law through one."""
    if found[inside] == 0 and outside == math.inf:
        return INTENSITIES[-1]
    power, nearest = 2.0, inside if found[inside] > 0 else outside
    if found[inside] > 0 and outside < math.inf:
        power = max(math.log(found[outside] / found[inside]) / math.log(outside / inside), 0.1)
    guess: float = nearest * (kl / found[nearest]) ** (1 / power)
    return min(guess, INTENSITIES[-1]) if outside == math.inf else guess


def _teacher_kl(answers: Sequence[TeacherClip], batch: Batch, logits: Logits) -> LossTerm:
    """KL(base || adapted) summed over all codes of clips whose every frame has an answer."""
    device = batch.codes_BSK.device
    c0 = distillation_kl(torch.cat([answer.c0_TV for answer in answers]).to(device), logits.c0_NV)
    depth = distillation_kl(torch.cat([answer.depth_FJV for answer in answers]).to(device), logits.depth_MJV)
    total = c0 + depth
    if logits.text_NW is not None:
        texts = [answer.text_TW for answer in answers if answer.text_TW is not None]
        total = total.beside(distillation_kl(torch.cat(texts).to(device), logits.text_NW))
    return _on_cpu(total)


def _on_cpu(term: LossTerm) -> LossTerm:
    return LossTerm(term.total.cpu(), term.count)
