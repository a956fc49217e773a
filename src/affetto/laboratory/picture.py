"""The ablation's picture: emotion learned against general speech forgotten, one curve per method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from affetto.laboratory.comparison import MARK, Line, Row, at_one, compare_methods, gains
from affetto.laboratory.methods import METHODS, PLAIN
from affetto.report.canvas import FAINT, INK, MARKERS, Picture, picture, plain_ticks, plot_area, system_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT, _LEGEND = 820, 480, 250


def ablation_picture(rows: Sequence[Row]) -> Picture:
    """Means over runs by intensity for every method with runs; of a family only the one that forgets least at the mark.

    Learning is measured relative to plain LoRA's gain at intensity 1 with the same emotion and seed.
    """
    shown = _best_of_families(compare_methods(rows))
    curves = {name: curve for name in shown if (curve := mean_curve(rows, name))}
    groups = list(dict.fromkeys(METHODS[name].group for name in METHODS if name in curves))

    def draw(figure: Figure) -> None:
        axes = plot_area(figure, 56, _LEGEND, 16, 44)
        axes.axhline(100 * MARK, color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
        for name, curve in curves.items():
            learned, forgotten = zip(*curve, strict=True)
            axes.plot(forgotten, [100 * share for share in learned], **_style(name, list(curves), groups))
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
        axes.set_ylim(bottom=20)
        axes.set_xlabel("forgotten: KL(base || adapted) on general speech, nats per code", color=FAINT, fontsize=10)
        axes.set_ylabel("learned: % of what plain LoRA learns", color=FAINT, fontsize=10)
        axes.annotate(
            "the mark", (0.01, 100 * MARK), xycoords=("axes fraction", "data"), xytext=(0, 4),
            textcoords="offset points", color=FAINT, fontsize=9,
        )  # fmt: skip
        if curves:
            legend = axes.legend(
                frameon=False, fontsize=9, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.01, 1.02),
                handlelength=2.2, title="least forgotten at the mark first", title_fontproperties={"size": 9},
                alignment="left",
            )  # fmt: skip
            legend.get_title().set_color(FAINT)

    named = ", ".join(METHODS[name].title for name in curves)
    alt = f"Emotion learned against general speech forgotten, by intensity, for {named}."
    return picture(_WIDTH, _HEIGHT, draw, name="ablation", alt=alt)


def mean_curve(rows: Sequence[Row], method: str) -> list[tuple[float, float]]:
    """(share of plain LoRA's gain, KL) by intensity above 0, means over the runs with a plain LoRA counterpart."""
    plain = {(row["emotion"], row["seed"]): at_one(row)["gain"] for row in rows if row["method"] == PLAIN}
    by_intensity: dict[float, list[tuple[float, float]]] = {}
    for row in rows:
        reference = plain.get((row["emotion"], row["seed"]))
        if row["method"] == method and reference is not None:
            for intensity, gain, kl in gains(row):
                if intensity > 0:
                    by_intensity.setdefault(intensity, []).append((gain / reference, kl))
    means = (np.mean(by_intensity[intensity], axis=0) for intensity in sorted(by_intensity))
    return [(float(share), float(kl)) for share, kl in means]


def _best_of_families(lines: Sequence[Line]) -> list[str]:
    """Methods by their forgetting at the mark, those that don't reach it last; one per family."""
    ordered = sorted(lines, key=lambda line: math.inf if line.share is None else line.share.mean)
    best: dict[str, str] = {}
    for line in ordered:
        best.setdefault(METHODS[line.method].family or line.method, line.method)
    return list(best.values())


def _style(name: str, names: Sequence[str], groups: Sequence[str]) -> Mapping[str, Any]:
    group = METHODS[name].group
    place = [other for other in METHODS if other in names and METHODS[other].group == group].index(name)
    return {
        "color": system_colour(groups.index(group)), "marker": MARKERS[place % len(MARKERS)], "markersize": 4,
        "linewidth": 2.0 if group in ("all", "plain") and place == 0 else 1.1, "label": METHODS[name].title,
        "linestyle": ("-", "--", ":", "-.")[place % 4],
    }  # fmt: skip
