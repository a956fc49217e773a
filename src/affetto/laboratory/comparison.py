"""Methods at matched expressivity: what each forgets where it has learned nearly as much as plain LoRA.

A run's frontier (intensities from 0 up) says what it conveys and costs on test clips. The gain at an intensity is the
fall of the emotion's loss from the base's, nats per code. The mark is a share of plain LoRA's own gain at intensity 1,
with the same emotion and seed; a method's forgetting there is read off its frontier, straight between intensities. So
plain LoRA's own row is the cheap baseline that scales it down (WiSE-FT, Wortsman et al. 2022).

The loss says little of what is heard. So methods are also held against each other where each speaks as strongly as the
clips (`evaluate.matching`): the same expressivity by prosody, whatever the intensity it takes.
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
"""Of plain LoRA's gain at intensity 1."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """A mean over runs with its 95 % interval (Student's t); None with fewer than three runs.

    Of two it would be thirteen standard errors to either side.
    """

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """One method over its runs."""

    method: str
    title: str
    num_runs: int
    gain: Interval
    """At intensity 1, nats per code."""
    kl: Interval
    delta_nll: Interval
    """Both at intensity 1, of general speech."""
    num_matched: int
    """Runs whose frontier reaches the mark."""
    matched_kl: Interval | None
    """KL at the mark, over the runs that reach it."""
    share: Interval | None
    """`matched_kl` over plain LoRA's KL at intensity 1, geometric mean."""
    heard: Mapping[str, Interval | None]
    """Over runs: `recall`, `wer`, `plain_recall`, `plain_wer`, `base_wer`; None where a run's wasn't heard."""


def gains(row: Row) -> list[tuple[float, float, float]]:
    """(intensity, gain, KL) of a run, by intensity."""
    points = sorted(row["points"], key=lambda point: point["intensity"])
    base = next(point["emotion_nll"] for point in points if point["intensity"] == 0)
    return [(point["intensity"], base - point["emotion_nll"], point["kl"]) for point in points]


def kl_at(row: Row, gain: float) -> float | None:
    """KL at the weakest intensity whose gain is `gain`; None where no intensity reaches it."""
    for (_, before, kl_before), (_, after, kl_after) in pairwise(gains(row)):
        if before < gain <= after:
            return float(kl_before + (gain - before) / (after - before) * (kl_after - kl_before))
    return None


def compare_methods(rows: Sequence[Row]) -> list[Line]:
    """A line per method, in the order of `METHODS`."""
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
    found: dict[str, Interval | None] = {}
    for name, (kind, metric) in wanted.items():
        values = [row["heard"][kind][metric] for row in rows]
        known = [value for value in values if value is not None]
        found[name] = interval(known) if len(known) == len(values) else None
    return found


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
    """The table, a row per method."""
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
    """One method at the intensities at which its runs are as strong as their clips."""

    method: str
    title: str
    num_runs: int
    num_matched: int
    """Runs that could be matched, which all else is of."""
    intensity: Interval
    strength: Interval
    """What was reached there, of the clips': 1, but for a run that doesn't come so far and stays at its nearest."""
    kl: Interval
    delta_nll: Interval
    heard: Mapping[str, Interval | None]
    """As `Line.heard`."""


def reached(point: Mapping[str, Any]) -> float:
    """How strong a run is where it was matched, of its clips: 1 between two looks, else as its nearest look was."""
    looks = [float(look["strength"]) for look in point["strengths"]]
    if min(looks) <= 1 <= max(looks):
        return 1.0
    return min(looks, key=lambda strength: abs(strength - 1))


def compare_as_acted(rows: Sequence[Row]) -> list[ActedLine]:
    """A line per method with runs that were matched, in the order of `METHODS`."""
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
    """The table of `compare_as_acted`; a line that says so where no run was matched."""
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
    """The mean, and the interval where there is one, each by `form`."""
    mean = form.format(value.mean)
    if value.low is None or value.high is None:
        return mean
    return f"{mean} [{form.format(value.low)}, {form.format(value.high)}]"


def _percent(value: Interval | None) -> str:
    return "" if value is None else written(value, "{:.1%}")
