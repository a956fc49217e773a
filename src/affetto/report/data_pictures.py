"""Pictures of a collection of clips: durations, who speaks what, pitch and level by emotion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from affetto.errors import counted
from affetto.report.canvas import FAINT, INK, PAPER, RULE, Picture, picture, plot_area, system_colour
from affetto.report.measures import MINUS
from affetto.types import EMOTIONS, Clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GENERAL = "general"
_WIDTH = 500
_ROW = 36
_BINS = 40
_MOST_SPEAKERS = 24
_LEFT = 96


def emotion_of(clip: Clip) -> str:
    """The clip's row in every picture."""
    return clip.emotion or GENERAL


def in_order(emotions: Sequence[str]) -> list[str]:
    """Affetto's emotions first, others after them, general speech last."""
    known = {name: place for place, name in enumerate(EMOTIONS)}
    return sorted(set(emotions), key=lambda name: (name == GENERAL, known.get(name, len(known)), name))


def durations_picture(clips: Sequence[Clip], seconds: Mapping[str, float]) -> Picture:
    """A histogram of durations per emotion, each scaled to its own height; the median is marked."""
    rows = _values(clips, seconds)
    longest = max((value for values in rows.values() for value in values), default=1.0)
    shown = float(np.percentile([value for values in rows.values() for value in values], 99.5)) if rows else 1.0
    limit = longest if longest <= 1.6 * shown else shown
    edges = np.linspace(0, limit, _BINS + 1)

    def draw(figure: Figure) -> None:
        axes = _rows_area(figure, list(rows), bottom=40)
        for row, values in enumerate(rows.values()):
            counts, _ = np.histogram(np.clip(values, 0, limit), bins=edges)
            heights = 0.8 * counts / max(1, counts.max())
            axes.bar(edges[:-1], heights, np.diff(edges) * 0.88, bottom=-row, align="edge", color=system_colour(0))
            _median(axes, float(np.median(values)), row, f"{np.median(values):.1f} s")
        axes.set_xlim(0, limit * 1.02)
        _say_unit(axes, "seconds" + (f", longer ones (to {longest:.0f}) at the end" if limit < longest else ""))

    medians = ", ".join(f"{name} {np.median(values):.1f} s" for name, values in rows.items())
    alt = f"Histograms of clips' durations; medians: {medians}."
    return picture(_WIDTH, 56 + _ROW * len(rows), draw, name="durations", alt=alt)


def speakers_picture(clips: Sequence[Clip]) -> Picture:
    """A grid of clip counts by speaker and emotion; an empty cell means that the speaker has no such clip."""
    counts = Counter((clip.speaker, emotion_of(clip)) for clip in clips)
    totals = Counter(clip.speaker for clip in clips)
    names = [name for name, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))]
    shown, rest = names[:_MOST_SPEAKERS], names[_MOST_SPEAKERS:]
    rows = sorted(shown) + ([counted(len(rest), "other")] if rest else [])
    for (speaker, emotion), count in list(counts.items()):
        if speaker in rest:
            counts[rows[-1], emotion] += count
    columns = in_order([emotion_of(clip) for clip in clips])
    most = max((counts[row, column] for row in rows for column in columns), default=1)
    left = min(220, 26 + 7 * max(map(len, rows), default=1))
    height = 46 + 28 * len(rows)

    def draw(figure: Figure) -> None:
        axes = plot_area(figure, left, 10, 34, 8)
        axes.grid(visible=False)
        for row, speaker in enumerate(rows):
            for column, emotion in enumerate(columns):
                count = counts[speaker, emotion]
                share = count / most
                if count:
                    axes.barh(row, 0.94, 0.88, column - 0.47, color=system_colour(0), alpha=0.12 + 0.78 * share)
                axes.text(
                    column, row, str(count) if count else "·", ha="center", va="center", fontsize=9.5,
                    color=PAPER if share > 0.62 else INK if count else FAINT,
                )  # fmt: skip
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.set_xticks(range(len(columns)), columns, fontsize=9)
        axes.set_yticks(range(len(rows)), rows)
        axes.xaxis.tick_top()

    empty = sum(not counts[row, column] for row in rows for column in columns)
    cells = counted(empty, "cell is", "cells are")
    alt = f"Clips by speaker ({counted(len(rows), 'row')}) and emotion ({', '.join(columns)}); {cells} empty."
    return picture(max(_WIDTH, left + 10 + 51 * len(columns)), height, draw, name="speakers", alt=alt)


def strips_picture(
    clips: Sequence[Clip],
    values: Mapping[str, float],
    *,
    name: str,
    unit: str,
    decimals: int = 1,
    at: float | None = None,
) -> Picture:
    """A dot per clip in its emotion's row, with a bar from the first to the third quartile and the median marked.

    `at` is a reference value, drawn as a line; numbers then carry their sign.
    """
    rows = _values(clips, values)
    sign = "" if at is None else "+z"  # z: no minus before a rounded zero

    def draw(figure: Figure) -> None:
        axes = _rows_area(figure, list(rows), bottom=40)
        if at is not None:
            axes.axvline(at, color=FAINT, linewidth=1, zorder=0)
        for row, numbers in enumerate(rows.values()):
            spread = np.random.default_rng(0).uniform(0.06, 0.62, len(numbers))
            axes.plot(
                numbers, spread - row, "o", color=system_colour(0), markersize=3.2, alpha=0.45, markeredgewidth=0
            )  # fmt: skip
            low, median, high = np.percentile(numbers, [25, 50, 75])
            axes.plot([low, high], [-row, -row], color=system_colour(0), linewidth=4, solid_capstyle="butt")
            _median(axes, float(median), row, f"{float(median):{sign}.{decimals}f}".replace("-", MINUS))
        _say_unit(axes, unit)
        axes.margins(x=0.04)

    medians = ", ".join(f"{emotion} {np.median(numbers):.{decimals}f}" for emotion, numbers in rows.items())
    return picture(_WIDTH, 56 + _ROW * len(rows), draw, name=name, alt=f"{unit} by emotion; medians: {medians}.")


def _say_unit(axes: Axes, unit: str) -> None:
    axes.set_xlabel(unit, color=FAINT, fontsize=10)


def _values(clips: Sequence[Clip], values: Mapping[str, float]) -> dict[str, list[float]]:
    """Values by emotion; emotions without any are left out."""
    rows: dict[str, list[float]] = {}
    for emotion in in_order([emotion_of(clip) for clip in clips]):
        own = [values[clip.id] for clip in clips if emotion_of(clip) == emotion and clip.id in values]
        if own:
            rows[emotion] = own
    return rows


def _rows_area(figure: Figure, names: Sequence[str], *, bottom: int) -> Axes:
    """Axes with a named row per emotion, the first on top, each one unit high from its baseline."""
    axes = plot_area(figure, _LEFT, 62, 16, bottom)
    axes.grid(visible=False, axis="y")
    axes.set_yticks([-row for row in range(len(names))], names)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(-len(names) + 0.75, 1.0)
    axes.text(1.02, 0.98, "median", transform=axes.get_yaxis_transform(), va="top", fontsize=8.5, color=FAINT)
    for row in range(len(names)):
        axes.axhline(-row, color=RULE, linewidth=0.8)
    return axes


def _median(axes: Axes, value: float, row: int, words: str) -> None:
    axes.plot([value, value], [-row, -row + 0.8], color=INK, linewidth=1.4)
    axes.text(1.02, -row, words, transform=axes.get_yaxis_transform(), va="bottom", fontsize=10, color=INK)
