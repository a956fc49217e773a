"""The run page's section on metrics by intensity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from affetto.evaluate.results import AT_STRENGTHS
from affetto.report.measures import MEASURES
from affetto.report.strength_picture import StrengthLine, strength_curve
from affetto.report.tables import show_metric


def strengths_section(result: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Metrics by intensity: a plot of the shares, and a table that includes base and recordings."""
    strengths, acted = result.get("strengths") or [], result.get("real_strengths") or []
    systems = {system["role"]: system for system in result.get("systems") or []}
    if not strengths or "adapter" not in systems:
        return None
    lines = []
    for metric in ("recall", "wer"):
        found = _at(strengths, metric)
        points = tuple((x, m["value"], m.get("low"), m.get("high")) for x, m in found if m.get("value") is not None)
        if points:
            real = ((systems.get("real") or {}).get("metrics") or {}).get(metric) or {}
            recorded = tuple((x, m["value"]) for x, m in _at(acted, metric) if m.get("value") is not None)
            lines.append(StrengthLine(MEASURES[metric].label, points, real.get("value"), recorded))
    rows = [(f"{item['intensity']:g}", item["metrics"]) for item in strengths]
    rows = [("the base", systems["base"]["metrics"])] * ("base" in systems) + rows
    rows += [("real recordings", systems["real"]["metrics"])] * ("real" in systems)
    rows += [(f"recordings acted at {item['intensity']:g}", item["metrics"]) for item in acted]
    return {
        "picture": strength_curve(lines, systems["adapter"]["intensity"], name=name) if lines else None,
        "columns": ["Intensity", *(MEASURES[metric].label for metric in AT_STRENGTHS)],
        "rows": [
            (title, [show_metric(metrics.get(metric), MEASURES[metric]) for metric in AT_STRENGTHS],
             title == f"{systems['adapter']['intensity']:g}")
            for title, metrics in rows
        ],
    }  # fmt: skip


def _at(strengths: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, Mapping[str, Any]]]:
    return [(item["intensity"], item["metrics"].get(metric) or {}) for item in strengths]
