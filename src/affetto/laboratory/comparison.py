"""Compares methods at matched expressivity: how much each forgets when it has learned nearly as much as plain LoRA.

A run's frontier (intensities from 0 up) shows expressivity and forgetting on test clips. The gain at an intensity is
the decrease of the emotion's loss from the base's, in nats per code. The mark is a share of plain LoRA's gain at
intensity 1 with the same emotion and seed; a method's forgetting at the mark is interpolated linearly on its frontier.
So plain LoRA's own row is the cheap baseline of scaling it down (WiSE-FT, Wortsman et al. 2022).

The loss says little about what is heard. So methods are also compared at the intensity at which each speaks as strongly
as the clips (`evaluate.matching`): equal expressivity by prosody, whatever intensity that takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import stdtrit

from affetto.errors import counted
from affetto.laboratory.methods import METHODS, PLAIN

MARK = 0.9
"""Share of plain LoRA's gain at intensity 1."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """A mean over runs with its 95 % interval (Student's t); None with fewer than three runs, since that of two would
    reach thirteen standard errors to either side.
    """

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """The results of one method over its runs."""

    method: str
    title: str
    num_runs: int
    gain: Interval
    """At intensity 1, nats per code."""
    kl: Interval
    delta_nll: Interval
    """Both at intensity 1, on general speech."""
    num_matched: int
    """Runs whose frontier reaches the mark."""
    matched_kl: Interval | None
    """KL at the mark, over the runs that reach it."""
    share: Interval | None
    """`matched_kl` over plain LoRA's KL at intensity 1, geometric mean."""
    heard: Mapping[str, Interval | None]
    """Over runs: `recall`, `wer`, `plain_recall`, `plain_wer`, `base_wer`; None if a run has no value."""


def gains(row: Row) -> list[tuple[float, float, float]]:
    """(intensity, gain, KL) of a run, by intensity."""
    points = sorted(row["points"], key=lambda point: point["intensity"])
    base = next(point["emotion_nll"] for point in points if point["intensity"] == 0)
    return [(point["intensity"], base - point["emotion_nll"], point["kl"]) for point in points]


def kl_at(row: Row, gain: float) -> float | None:
    """KL at the weakest intensity whose gain is `gain`; None if no intensity reaches it."""
    for (_, before, kl_before), (_, after, kl_after) in pairwise(gains(row)):
        if before < gain <= after:
            return float(kl_before + (gain - before) / (after - before) * (kl_after - kl_before))
    return None


def compare_methods(rows: Sequence[Row]) -> list[Line]:
    """One line per method, in the order of `METHODS`."""
    plain = {(row["emotion"], row["seed"]): row for row in rows if row["method"] == PLAIN}
    lines = []
    for name, method in METHODS.items():
        mine = [row for row in rows if row["method"] == name]
        if mine:
            lines.append(_line(name, method.title, mine, plain))
    return lines


def _line(name: str, title: str, rows: Sequence[Row], plain: Mapping[tuple[str, int], Row]) -> Line:
    full = [at_one(row) for row in rows]
    matched, shares = [], []
    for row in rows:
        reference = plain.get((row["emotion"], row["seed"]))
        if reference is None:
            continue
        mark = at_one(reference)
        kl = kl_at(row, MARK * mark["gain"])
        if kl is not None:
            matched.append(kl)
            shares.append(math.log(max(kl, 1e-12) / mark["kl"]))
    share = interval(shares) if shares else None
    gain, kl_full, delta_nll = (interval([point[key] for point in full]) for key in ("gain", "kl", "delta_nll"))
    return Line(
        name, title, len(rows), gain, kl_full, delta_nll, len(matched), interval(matched) if matched else None,
        _exp(share) if share else None, _heard(rows),
    )  # fmt: skip


def at_one(row: Row) -> dict[str, float]:
    """Gain, KL and ΔNLL at intensity 1."""
    points = {point["intensity"]: point for point in row["points"]}
    base, full = points[0.0], points[1.0]
    return {
        "gain": base["emotion_nll"] - full["emotion_nll"],
        "kl": full["kl"],
        "delta_nll": full["general_nll"] - base["general_nll"],
    }


def _heard(rows: Sequence[Row]) -> dict[str, Interval | None]:
    wanted = {
        "recall": ("emotional", "recall"), "wer": ("emotional", "wer"), "plain_wer": ("plain", "wer"),
        "base_wer": ("base", "wer"), "plain_recall": ("plain", "recall"),
    }  # fmt: skip
    heard: dict[str, Interval | None] = {}
    for name, (kind, metric) in wanted.items():
        values = [row["heard"][kind][metric] for row in rows]
        known = [value for value in values if value is not None]
        heard[name] = interval(known) if len(known) == len(values) else None
    return heard


def interval(values: Sequence[float]) -> Interval:
    """Mean of one value per run, and its 95 % t-interval."""
    mean = float(np.mean(values))
    if len(values) < 3:
        return Interval(mean, None, None)
    half = float(stdtrit(len(values) - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def _exp(logs: Interval) -> Interval:
    low, high = (None if bound is None else math.exp(bound) for bound in (logs.low, logs.high))
    return Interval(math.exp(logs.mean), low, high)


def markdown(rows: Sequence[Row]) -> str:
    """The table, one row per method."""
    lines = [
        "| method | runs | emotion learned | KL | ΔNLL | recall | WER | WER, plain prompts | KL at the mark "
        "| of plain LoRA's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in compare_methods(rows):
        reached = (
            "" if line.num_matched == line.num_runs else f" ({line.num_matched} of {counted(line.num_runs, 'run')})"
        )
        matched = "not reached" if line.matched_kl is None else written(line.matched_kl, "{:.4f}") + reached
        share = "" if line.share is None else written(line.share, "{:.1%}")
        heard = [_percent(line.heard[name]) for name in ("recall", "wer", "plain_wer")]
        lines.append(
            f"| {line.title} | {line.num_runs} | {written(line.gain, '{:.3f}')} | {written(line.kl, '{:.4f}')} "
            f"| {written(line.delta_nll, '{:.4f}')} | {' | '.join(heard)} | {matched} | {share} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class ActedLine:
    """The results of one method at the intensities at which its runs are as strong as their clips."""

    method: str
    title: str
    num_runs: int
    num_matched: int
    """Runs that could be matched, which all other numbers are over."""
    intensity: Interval
    strength: Interval
    """The strength relative to the clips': 1, except for runs that don't reach it and stay at their nearest."""
    kl: Interval
    delta_nll: Interval
    heard: Mapping[str, Interval | None]
    """As `Line.heard`."""


def reached(point: Mapping[str, Any]) -> float:
    """The strength of a matched run relative to its clips: 1 if measurements enclose it, else the nearest measured."""
    looks = [float(look["strength"]) for look in point["strengths"]]
    if min(looks) <= 1 <= max(looks):
        return 1.0
    return min(looks, key=lambda strength: abs(strength - 1))


def compare_as_acted(rows: Sequence[Row]) -> list[ActedLine]:
    """One line per method with matched runs, in the order of `METHODS`."""
    lines = []
    for name, method in METHODS.items():
        mine = [row for row in rows if row["method"] == name]
        matched = [row for row in mine if (row.get("as_acted") or {}).get("intensity") is not None]
        if matched:
            points = [row["as_acted"] for row in matched]
            bases = [next(point for point in row["points"] if point["intensity"] == 0) for row in matched]
            lost = [point["general_nll"] - base["general_nll"] for point, base in zip(points, bases, strict=True)]
            intensity, kl = (interval([point[key] for point in points]) for key in ("intensity", "kl"))
            strength = interval([reached(point) for point in points])
            lines.append(
                ActedLine(
                    name, method.title, len(mine), len(matched), intensity, strength, kl, interval(lost), _heard(points)
                )
            )
    return lines


def acted_markdown(rows: Sequence[Row]) -> str:
    """The table of `compare_as_acted`, or a sentence that says that no run was matched."""
    lines = compare_as_acted(rows)
    if not lines:
        return "No run was matched to the strength of its clips."
    table = [
        "| as strong as the clips | runs | intensity | strength | recall | WER | recall, plain prompts "
        "| WER, plain prompts | KL | ΔNLL |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        runs = str(line.num_runs) if line.num_matched == line.num_runs else f"{line.num_matched} of {line.num_runs}"
        heard = [_percent(line.heard[name]) for name in ("recall", "wer", "plain_recall", "plain_wer")]
        table.append(
            f"| {line.title} | {runs} | {written(line.intensity, '{:.2f}')} | {written(line.strength, '{:.2f}')} "
            f"| {' | '.join(heard)} "
            f"| {written(line.kl, '{:.4f}')} | {written(line.delta_nll, '{:.4f}')} |"
        )
    return "\n".join(table)


def written(value: Interval, form: str) -> str:
    """The mean, and the interval if there is one, formatted by `form`."""
    mean = form.format(value.mean)
    if value.low is None or value.high is None:
        return mean
    return f"{mean} [{form.format(value.low)}, {form.format(value.high)}]"


def _percent(value: Interval | None) -> str:
    return "" if value is None else written(value, "{:.1%}")
