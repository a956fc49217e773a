"""The calibration's picture: predicted against measured forgetting, one panel per curvature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from affetto.report.canvas import FAINT, INK, Picture, marker, picture, plain_ticks, plot_area, system_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS, _PANEL, _GAP = 4, 226, 42


def calibration_picture(document: Mapping[str, Any]) -> Picture:
    """Predicted against measured KL on logarithmic axes, from `calibration.json`; a marker per family of adapters."""
    shown = [point for point in document["points"] if point["measured_kl"] > 0]
    families = list(dict.fromkeys(point["family"] for point in document["points"]))
    kinds = list(dict.fromkeys(line["curvature"] for line in document["fits"]))
    slopes = {
        line["curvature"]: line["slope"]
        for line in document["fits"]
        if line["slope"] is not None and line["family"] in ("all", *(families if len(families) == 1 else ()))
    }
    values = [
        value for point in shown for value in (point["measured_kl"], *point["predicted_kl"].values()) if value > 0
    ]
    low, high = min(values, default=1e-4) / 1.5, max(values, default=1.0) * 1.5

    def draw(figure: Figure) -> None:
        for number, kind in enumerate(kinds):
            column, row = number % _COLUMNS, number // _COLUMNS
            axes = plot_area(
                figure, 48 + column * _PANEL, 12 + _GAP + (_COLUMNS - 1 - column) * _PANEL,
                26 + row * _PANEL, 40 + _GAP + (_rows(kinds) - 1 - row) * _PANEL,
            )  # fmt: skip
            axes.plot([low, high], [low, high], color=FAINT, linewidth=1)
            for place, family in enumerate(families):
                mine = [point for point in shown if point["family"] == family and point["predicted_kl"][kind] > 0]
                axes.plot(
                    [point["measured_kl"] for point in mine], [point["predicted_kl"][kind] for point in mine],
                    marker(place + 1), color=system_colour(place + 1), markersize=4.5, label=family, linestyle="none",
                )  # fmt: skip
            axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
            for axis in (axes.xaxis, axes.yaxis):
                plain_ticks(axis)
            slope = f"  slope {slopes[kind]:.2f}" if kind in slopes else ""
            axes.set_title(kind + slope, color=INK, fontsize=10.5, loc="left")
            if not number:
                axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left", handletextpad=0.2)
            if row == _rows(kinds) - 1:
                axes.set_xlabel("measured KL, nats/code", color=FAINT, fontsize=9.5)
            if not column:
                axes.set_ylabel("predicted", color=FAINT, fontsize=9.5)

    alt = "; ".join(f"{kind}: slope {slope:.2f}" for kind, slope in slopes.items())
    return picture(
        60 + _COLUMNS * _PANEL, 66 + _rows(kinds) * _PANEL, draw, name="calibration",
        alt=f"Predicted against measured KL by curvature. {alt}.",
    )  # fmt: skip


def _rows(kinds: Sequence[str]) -> int:
    return -(-len(kinds) // _COLUMNS)
