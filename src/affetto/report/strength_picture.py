"""The plot of metrics by intensity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from affetto.report.canvas import FAINT, INK, Picture, marker, picture, plot_area, system_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class StrengthLine:
    """One share by intensity, as (intensity, value, low, high), and its value for real recordings."""

    label: str
    points: tuple[tuple[float, float, float | None, float | None], ...]
    real: float | None
    recorded: tuple[tuple[float, float], ...] = ()
    """(intensity, value) of recordings by their acted intensity."""


def strength_curve(lines: Sequence[StrengthLine], evaluated: float, *, name: str) -> Picture:
    """Shares by intensity, in percent; the vertical line is the evaluated intensity.

    Dashed lines are real recordings, hollow markers recordings acted at that intensity.
    """
    said = ". ".join(
        f"{line.label}: "
        + ", ".join(
            [f"{100 * value:.0f} % at {x:g}" for x, value, _, _ in line.points]
            + [f"recordings acted at {x:g} {100 * value:.0f} %" for x, value in line.recorded]
        )
        for line in lines
    )

    def draw(figure: Figure) -> None:
        axes = plot_area(figure, 58, 26, 22, 42)
        axes.axvline(evaluated, color=FAINT, linewidth=1, linestyle=(0, (1, 3)))
        for number, line in enumerate(lines):
            colour = system_colour(number + 1)
            xs, ys = [point[0] for point in line.points], [100 * point[1] for point in line.points]
            axes.plot(xs, ys, color=colour, linewidth=1.8, marker=marker(number), markersize=7, clip_on=False)
            for x, _, low, high in line.points:
                if low is not None and high is not None:
                    axes.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=2, alpha=0.35)
            for x, value in line.recorded:
                axes.plot([x], [100 * value], color=colour, marker=marker(number), markersize=9, markerfacecolor="none",
                          markeredgewidth=1.6, clip_on=False, linestyle="none")  # fmt: skip
            if line.real is not None:
                axes.axhline(100 * line.real, color=colour, linewidth=1, linestyle=(0, (4, 3)), alpha=0.8)
            axes.annotate(
                line.label, (xs[-1], ys[-1]), xytext=(0, 10), textcoords="offset points", ha="right", color=INK,
                fontsize=11, annotation_clip=False,
            )  # fmt: skip
        axes.set_ylim(0, 104)
        axes.set_xlabel("intensity", color=FAINT, fontsize=10.5)
        axes.set_ylabel("%", color=FAINT, fontsize=10.5)

    return picture(520, 300, draw, name=name, alt=f"What is heard by intensity. {said}.")
