"""The report's plots: dots with intervals, judges' answers, training curves, retention, the frontier."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from affetto.errors import counted
from affetto.report.canvas import (
    FAINT,
    FILL,
    INK,
    PAPER,
    Picture,
    marker,
    picture,
    plot_area,
    system_colour,
)
from affetto.report.measures import MINUS, Scale, write_interval, write_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAME_LENGTH = 15
_LOG_RATIO = 20.0
"""A term whose values span more than this is drawn on a log scale."""


@dataclass(frozen=True)
class Dot:
    """One system's number in a dot plot."""

    system: str
    number: int
    """The system's number on the page (`canvas.system_numbers`): its colour and marker."""
    value: float
    low: float | None
    high: float | None
    is_plain: bool = False
    """Over plain prompts: drawn hollow."""
    reason: str | None = None
    """Why it has no interval."""


@dataclass(frozen=True)
class Curve:
    """One loss term over steps, as (step, value) points."""

    train: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class FrontierPoint:
    """Expressivity and forgetting at one intensity."""

    intensity: float
    kl: float
    expressed: float
    is_recommended: bool


def without_interval(dots: Sequence[Dot]) -> list[str]:
    """Notes for below a dot plot: every reason for a missing interval once, with its systems."""
    by_reason: dict[str, list[str]] = {}
    for dot in dots:
        if dot.low is None or dot.high is None:
            names = by_reason.setdefault(dot.reason or "no reason was given", [])
            names.append(f"{dot.system}{', plain' if dot.is_plain else ''}")
    return [f"No interval of {'; '.join(names)}: {reason}." for reason, names in by_reason.items()]


def dot_plot(label: str, dots: Sequence[Dot], scale: Scale, *, name: str, name_length: int = _NAME_LENGTH) -> Picture:
    """One metric, one row per system: dot and 95 % interval, the number at the right; longer names are cut."""
    dots = sorted(dots, key=lambda dot: dot.is_plain)
    rows = [row + 0.35 * dot.is_plain for row, dot in enumerate(dots)]
    names = [_dot_name(dot, name_length) for dot in dots]
    height = 36 + 23 * len(dots)
    said = ", ".join(
        f"{dot.system}{' when not asked' if dot.is_plain else ''} {write_number(dot.value, scale)}"
        f" {write_interval(dot.low, dot.high, scale) or '(no interval)'}"
        for dot in dots
    )

    def draw(figure: Figure) -> None:
        axes = plot_area(figure, _name_room(names) + 4, 76, 4, 24)
        for row, dot in zip(rows, dots, strict=True):
            colour = system_colour(dot.number)
            if dot.low is not None and dot.high is not None:
                ends = (dot.low * scale.factor, dot.high * scale.factor)
                axes.plot(ends, (row, row), color=colour, linewidth=2.4, alpha=0.5, solid_capstyle="butt")
            axes.plot(
                dot.value * scale.factor, row, marker=marker(dot.number), markersize=8, color=colour,
                markerfacecolor=PAPER if dot.is_plain else colour, markeredgewidth=1.8, clip_on=False,
            )  # fmt: skip
            text = write_number(dot.value, scale)
            axes.text(1.05, row, text, transform=axes.get_yaxis_transform(), va="center", color=INK, fontsize=11)
        axes.set_ylim(rows[-1] + 0.6, -0.6)
        axes.set_yticks(rows, names, color=INK, fontsize=11)
        axes.tick_params(axis="y", pad=9)
        axes.grid(False, axis="y")
        _limits(axes, scale)

    width = 320 + max(0, _name_room(names) - 14 - round(6.6 * _NAME_LENGTH))
    return picture(width, height, draw, name=name, alt=f"{label} with 95 % intervals: {said}.")


def answers(system: str, number: int, counts: Mapping[str, int], target: str, *, name: str) -> Picture:
    """The emotion judge's answers for one system's emotional files: one bar per label, the target's in colour."""
    total = max(1, sum(counts.values()))
    shares = {label: count / total for label, count in counts.items()}
    said = ", ".join(f"{label} {share:.0%}" for label, share in shares.items())

    def draw(figure: Figure) -> None:
        axes = plot_area(figure, _name_room(_short(label) for label in shares), 44, 4, 4)
        colours = [system_colour(number) if label == target else FILL for label in shares]
        axes.barh(range(len(shares)), list(shares.values()), color=colours, height=0.68)
        for row, share in enumerate(shares.values()):
            axes.text(share + 0.015, row, f"{share:.0%}", va="center", color=INK, fontsize=10.5, clip_on=False)
        axes.set_yticks(range(len(shares)), [_short(label) for label in shares], color=INK, fontsize=11)
        axes.set_ylim(len(shares) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        axes.grid(False)
        axes.axvline(0, color=FAINT, linewidth=1)

    alt = f"What the emotion judge heard in {system} ({counted(sum(counts.values()), 'file')}): {said}."
    return picture(310, 10 + 23 * max(1, len(shares)), draw, name=name, alt=alt)


def training_curve(label: str, curve: Curve, *, name: str) -> Picture:
    """One loss term over steps: training as a line, validation as markers."""
    values = [value for _, value in (*curve.train, *curve.validation)]
    is_log = bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_RATIO

    def draw(figure: Figure) -> None:
        axes = plot_area(figure, 46, 12, 8, 34)
        if curve.train:
            axes.plot(*zip(*curve.train, strict=True), color=FAINT, linewidth=1.5)
        if curve.validation:
            axes.plot(*zip(*curve.validation, strict=True), color=system_colour(1), linewidth=1, alpha=0.5)
            axes.plot(
                *zip(*curve.validation, strict=True), color=system_colour(1), linestyle="none", marker="D", markersize=5
            )
        axes.set_xlabel("step", color=FAINT, fontsize=10)
        if is_log:
            _log_axis(axes, min(values), max(values))
        else:
            _few_ticks(axes)

    parts = [
        f"{split} from {points[0][1]:.4g} at step {points[0][0]} to {points[-1][1]:.4g} at step {points[-1][0]}"
        for split, points in (("training", curve.train), ("validation", curve.validation))
        if points
    ]
    scale = ", log scale" if is_log else ""
    return picture(290, 170, draw, name=name, alt=f"{label}{scale}: {'; '.join(parts) or 'no values'}.")


def codebook_bars(label: str, values: Sequence[float], *, margin: float | None, name: str) -> Picture:
    """One bar per codebook around a zero line; `margin` is drawn as a dashed line."""
    said = ", ".join(f"{number}: {_signed(value)}" for number, value in enumerate(values))

    def draw(figure: Figure) -> None:
        axes = plot_area(figure, 62, 10, 12, 36)
        colours = [system_colour(1) if value > 0 else system_colour(0) for value in values]
        axes.bar(range(len(values)), list(values), color=colours, width=0.7)
        axes.axhline(0, color=INK, linewidth=1)
        low, high = min(0.0, *values), max(0.0, *values)
        if margin is not None:
            high = max(high, margin)
            axes.axhline(margin, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
            axes.text(
                1, margin, f"margin {margin:g}", transform=axes.get_yaxis_transform(), ha="right", va="bottom",
                color=FAINT, fontsize=10,
            )  # fmt: skip
        room = 0.12 * max(high - low, 1e-9)
        axes.set_ylim(low - (room if low < 0 else 0), high + room)
        axes.set_xlim(-0.7, len(values) - 0.3)
        step = 1 if len(values) <= 12 else 4
        axes.set_xticks(range(0, len(values), step))
        axes.set_xlabel("codebook", color=FAINT, fontsize=10)
        axes.grid(False, axis="x")
        axes.yaxis.set_major_formatter(lambda value, _: _signed(value))

    return picture(440, 210, draw, name=name, alt=f"{label} by codebook, nats per code. {said}.")


def frontier_curve(
    axis: str, points: Sequence[FrontierPoint], scale: Scale, budget: float | None, *, name: str
) -> Picture:
    """Expressivity against forgetting, one dot per intensity, the recommended one ringed."""
    said = "; ".join(
        f"intensity {point.intensity:g}{' (recommended)' if point.is_recommended else ''}: "
        f"KL {point.kl:.4g}, {write_number(point.expressed, scale)}"
        for point in points
    )

    def draw(figure: Figure) -> None:
        axes = plot_area(figure, 58, 26, 22, 42)
        xs, ys = [point.kl for point in points], [point.expressed * scale.factor for point in points]
        axes.plot(xs, ys, color=system_colour(1), linewidth=1.6, alpha=0.6)
        for x, y, point in zip(xs, ys, points, strict=True):
            if point.is_recommended:
                axes.plot(x, y, marker="o", markersize=17, markerfacecolor="none", color=INK, markeredgewidth=1.6)
            axes.plot(x, y, marker="o", markersize=8, color=system_colour(1))
            text = f"{point.intensity:g}{' recommended' if point.is_recommended else ''}"
            axes.annotate(
                text, (x, y), xytext=(10, -14), textcoords="offset points", color=INK, fontsize=11,
                annotation_clip=False, fontweight="bold" if point.is_recommended else "normal",
            )  # fmt: skip
        if budget is not None:
            axes.axvline(budget, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
            axes.text(
                budget, 1.01, f"budget {budget:g}", transform=axes.get_xaxis_transform(), ha="center", va="bottom",
                color=FAINT, fontsize=10,
            )  # fmt: skip
        axes.margins(0.1, 0.16)
        axes.set_xlim(left=min(0.0, *xs) - 0.02 * max(xs[-1], 1e-6))
        axes.set_xlabel("forgetting: KL from the base, nats per code", color=FAINT, fontsize=10.5)
        axes.set_ylabel(f"{axis}{f', {scale.unit}' if scale.unit else ''}", color=FAINT, fontsize=10.5)

    return picture(520, 320, draw, name=name, alt=f"{axis} against KL by intensity. {said}.")


def _dot_name(dot: Dot, length: int) -> str:
    return f"{_short(dot.system, length - 6)}, plain" if dot.is_plain else _short(dot.system, length)


def _short(text: str, length: int = _NAME_LENGTH) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _name_room(names: Iterable[str]) -> int:
    """Margin in CSS pixels that fits the longest of `names` at 11 px."""
    return 14 + round(6.6 * max(map(len, names), default=0))


def _limits(axes: Axes, scale: Scale) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = axes.get_xlim()
    if scale.unit == "%":
        axes.set_xlim(0, 100 if 40 < high <= 104 else max(5, 1.06 * high))
    else:
        room = max(0.04 * (high - low), 0.02 * abs(high), 0.01)
        axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))


def _log_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    is_wide = math.log10(high / low) > 3
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 3.0), numticks=8))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(False, axis="x")
    axes.locator_params(axis="x", nbins=5, integer=True)


def _few_ticks(axes: Axes) -> None:
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(False, axis="x")


def _signed(value: float) -> str:
    return f"{value:.3g}".replace("-", MINUS)
