"""The ablation's picture: emotion learned against general speech forgotten, one curve per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from affetto.evaluate.canvas import FAINT, INK, MARKERS, Picture, picture, plot_area, system_colour
from affetto.laboratory.comparison import Row, gains
from affetto.laboratory.methods import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT, _LEGEND = 760, 460, 230


def ablation_picture(rows: Sequence[Row], methods: Sequence[str] = ()) -> Picture:
    """Curves of `methods` (all that have runs, if empty): mean gain and KL over runs, by intensity."""
    curves = {name: mean_curve([row for row in rows if row["method"] == name]) for name in methods or METHODS}
    curves = {name: curve for name, curve in curves.items() if curve}
    groups = list(dict.fromkeys(METHODS[name].group for name in curves))

    def draw(figure: Figure) -> None:
        axes = plot_area(figure, 56, _LEGEND, 16, 44)
        for name, curve in curves.items():
            axes.plot([kl for _, kl in curve], [gain for gain, _ in curve], **_style(name, list(curves), groups))
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xlabel("forgotten: KL(base || adapted) on general speech, nats per code", color=FAINT, fontsize=10)
        axes.set_ylabel("learned: fall of the emotion's loss, nats per code", color=FAINT, fontsize=10)
        axes.legend(
            frameon=False, fontsize=9, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.01, 1.02), handlelength=2.2
        )

    shown = ", ".join(METHODS[name].title for name in curves)
    alt = f"Emotion learned against general speech forgotten, by intensity, for {shown}."
    return picture(_WIDTH, _HEIGHT, draw, name="ablation", alt=alt)


def mean_curve(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(gain, KL) by intensity above 0, means over runs; empty without any."""
    if not rows:
        return []
    by_intensity: dict[float, list[tuple[float, float]]] = {}
    for row in rows:
        for intensity, gain, kl in gains(row):
            if intensity > 0:
                by_intensity.setdefault(intensity, []).append((gain, kl))
    found = (np.mean(by_intensity[intensity], axis=0) for intensity in sorted(by_intensity))
    return [(float(gain), float(kl)) for gain, kl in found]


def _style(name: str, names: Sequence[str], groups: Sequence[str]) -> Mapping[str, Any]:
    group = METHODS[name].group
    place = [other for other in names if METHODS[other].group == group].index(name)
    return {
        "color": system_colour(groups.index(group)), "marker": MARKERS[place % len(MARKERS)], "markersize": 4,
        "linewidth": 2.0 if group in ("all", "plain") else 1.1, "label": METHODS[name].title,
        "linestyle": ("-", "--", ":", "-.")[place // len(MARKERS) % 4],
    }  # fmt: skip
