"""One HTML page about a run: what was learned, what was kept, how it sounds, and how to make it again.

The page is self-contained: sounds and pictures are inside, and its content security policy forbids requests. The same
input gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affetto.files import write_text
from affetto.report import pictures
from affetto.report.calibration_picture import calibration_picture
from affetto.report.canvas import Picture, system_numbers
from affetto.report.headline import headline, verdicts
from affetto.report.measures import ABSENT, MEASURES, glossary, scale_of, shown_judges, write_duration
from affetto.report.neutral_table import neutral_table
from affetto.report.page_templates import page_templates
from affetto.report.players import AudioRow, player_rows
from affetto.report.speech_picture import LEFT, RIGHT, WIDTH
from affetto.report.strengths_section import strengths_section
from affetto.report.tables import (
    DELTA_NLL_MARGIN,
    latex_table,
    main_table,
    markdown_table,
    show_metric,
    shown_systems,
)

_EXPRESSED = ("recall", "posterior", "emotion_nll")
"""Metrics for the frontier's vertical axis, by preference."""
_TEMPLATES = ("report.html.j2", "macros.html.j2", "report.css", "report.js")
_TIERS = {
    "miniature": "ships with affetto and understands only the miniature's voices",
    "bundled": "comes with a package that affetto needs",
    "package": "a Python package installed beside affetto",
    "mixed": "several judges of different kinds, named in the results",
    "hub": "from the Hugging Face hub, pinned to a commit",
    "local": "a folder on the machine that evaluated",
}
_PLACED = (
    "command", "versions", "configuration", "timings_s", "peak_memory_mib", "base", "data", "warnings", "frontier"
)  # fmt: skip
"""Facts with a place of their own on the page."""
_TERM_WORDS = {
    "emotion": "emotion", "rehearsal": "rehearsal", "general": "general", "distillation": "distillation",
    "ce": "cross-entropy", "kl": "KL", "nll": "NLL", "c0": "codebook 0", "depth": "other codebooks", "ewc": "EWC",
    "value": "value (emotion NLL + general KL)", "target": "target",
    "multiplier": "multiplier of the preservation terms",
}  # fmt: skip


def write_report(
    output: Path,
    results: Sequence[Mapping[str, Any]],
    *,
    title: str,
    audio: Sequence[AudioRow],
    training_log: Sequence[Mapping[str, Any]] | None,
    facts: Mapping[str, Any],
    frontier: Sequence[Mapping[str, Any]] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page to `output` and return it.

    `results` are evaluations (docs/results.md), `training_log` the rows of `training_log.jsonl`, `frontier` rows of
    `intensity`, `kl` and what was expressed (`recall`, `posterior` or `emotion_nll`, perhaps `wer`). `facts` may hold
    command, versions, configuration, timings_s, peak_memory_mib, base, data, warnings and recommended_intensity;
    missing ones are left out. `calibration` is the content of `calibration.json`. A sound that can't be read is shown
    with the reason.
    """
    environment, texts = page_templates(_TEMPLATES)
    numbers = _system_numbers(results, audio)
    script_hash = base64.b64encode(hashlib.sha256(texts["report.js"].encode()).digest()).decode()
    page = environment.get_template("report.html.j2").render(
        title=title,
        script=texts["report.js"],
        script_hash=script_hash,
        evaluations=[_evaluation(result, facts, numbers, index) for index, result in enumerate(results)],
        emotions=" and ".join(dict.fromkeys(str(result.get("emotion", "the emotion")) for result in results)),
        rows=player_rows(audio, numbers),
        curves=_training_curves(training_log or ()),
        frontier=_frontier(frontier or (), facts),
        calibration=_calibration(calibration),
        facts=_facts(facts),
        numbers=numbers,
        tiers=_TIERS,
        glossary=glossary([system for result in results for system in result.get("systems") or []]),
        playhead={"left": LEFT / WIDTH, "width": (WIDTH - LEFT - RIGHT) / WIDTH},
    )
    write_text(output, page)
    return output


def _system_numbers(results: Sequence[Mapping[str, Any]], audio: Sequence[AudioRow]) -> dict[str, int]:
    """Number of every system by name, which decides its colour and marker on the whole page."""
    systems = [system for result in results for system in result.get("systems") or []]
    roles = {str(system["name"]): str(system.get("role")) for system in systems}
    roles |= {cell.system: "" for row in audio for cell in row.cells if cell.system not in roles}
    return system_numbers(roles)


def _evaluation(
    result: Mapping[str, Any], facts: Mapping[str, Any], numbers: Mapping[str, int], index: int
) -> dict[str, Any]:
    table, systems = main_table(result), shown_systems(result)
    judges, everything = shown_judges(result.get("judges") or {}), list(result.get("systems") or [])
    return {
        "emotion": str(result.get("emotion", "the emotion")),
        "command": result.get("command"),
        "versions": _flat(result.get("versions") or {}),
        "sentences": headline(result, facts),
        "verdicts": verdicts(result),
        "table": table,
        "notes": {reason: number for number, reason in enumerate(table.reasons, 1)},
        "markdown": markdown_table([result]),
        "latex": latex_table([result]),
        "neutral": neutral_table(result),
        "dots": _dot_plots(systems, numbers, f"dots-{index}"),
        "answers": _answers(result, systems, numbers, f"answers-{index}"),
        "retention": _retention(result.get("retention"), f"retention-{index}"),
        "strengths": strengths_section(result, f"strengths-{index}"),
        "judges": [(kind, judge, _ceiling(judge or {})) for kind, judge in judges.items()],
        "failures": [
            (system["name"], file) for system in everything for file in system.get("files") or [] if file.get("error")
        ],
        "num_failed": {str(system["name"]): system["num_failed"] for system in everything if system.get("num_failed")},
    }


def _dot_plots(
    systems: Sequence[Mapping[str, Any]], numbers: Mapping[str, int], name: str
) -> list[tuple[str, Picture, list[str]]]:
    """(label, picture, notes below it) of each plotted metric."""
    plots = []
    for metric, measure in MEASURES.items():
        dots = []
        for system in systems if measure.is_plotted else ():
            for key in ("metrics", "plain_metrics"):
                value = (system.get(key) or {}).get(metric) or {}
                if value.get("value") is not None:
                    own, is_plain = str(system["name"]), key == "plain_metrics"
                    ends, reason = (value.get("low"), value.get("high")), value.get("reason")
                    dots.append(pictures.Dot(own, numbers[own], value["value"], *ends, is_plain, reason))
        if dots:
            drawn = pictures.dot_plot(measure.label, dots, scale_of(measure.unit), name=f"{name}-{metric}")
            plots.append((measure.label, drawn, pictures.without_interval(dots)))
    return plots


def _answers(
    result: Mapping[str, Any], systems: Sequence[Mapping[str, Any]], numbers: Mapping[str, int], name: str
) -> list[tuple[str, Picture]]:
    target = str(result.get("emotion"))
    return [
        (own, pictures.answers(own, numbers[own], system["confusion"], target, name=f"{name}-{numbers[own]}"))
        for system in systems
        if system.get("confusion") and (own := str(system["name"]))
    ]


def _retention(retention: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    if not retention:
        return None
    drawn, measures = [], {metric: MEASURES[metric] for metric in ("delta_nll", "kl")}
    for metric, measure in measures.items():
        values = (retention.get("per_codebook") or {}).get(metric) or []
        if values and all(value is not None for value in values):
            margin = DELTA_NLL_MARGIN if metric == "delta_nll" else None
            bars = pictures.codebook_bars(measure.label, values, margin=margin, name=f"{name}-{metric}")
            drawn.append((measure.label, bars))
    shown = [(measure.label, show_metric(retention.get(metric), measure)) for metric, measure in measures.items()]
    text = retention.get("text") or {}
    shown += [(f"{measure.label} of the text", show_metric(text[name], measure)) for name, measure in measures.items()
              if name in text]  # fmt: skip
    return {"numbers": shown, "pictures": drawn} | {key: retention.get(key) for key in ("num_clips", "num_codes")}


def _training_curves(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Picture]]:
    """(words, key, picture) per term, the total first."""
    terms = dict.fromkeys(term for row in log for term in row.get("terms") or {})
    curves = []
    for term in sorted(terms, key=lambda term: term != "total"):
        points: dict[str, list[tuple[int, float]]] = {"train": [], "validation": []}
        for row in log:
            value = (row.get("terms") or {}).get(term)
            if value is not None and row.get("split") in points:
                points[row["split"]].append((int(row["step"]), float(value)))
        curve = pictures.Curve(tuple(points["train"]), tuple(points["validation"]))
        if curve.train or curve.validation:
            words = _term_words(term)
            curves.append((words, term, pictures.training_curve(words, curve, name=f"curve-{term}")))
    return curves


def _term_words(term: str) -> str:
    parts = term.split("_")
    if set(parts) <= set(_TERM_WORDS):
        return ", ".join(_TERM_WORDS[part] for part in parts)
    return term.replace("_", " ")


def _frontier(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> dict[str, Any] | None:
    rows = sorted((row for row in rows if row.get("kl") is not None), key=lambda row: float(row["intensity"]))
    key = next((key for key in _EXPRESSED if rows and all(row.get(key) is not None for row in rows)), None)
    if key is None:
        return None
    best = next((row["intensity"] for row in rows if row.get("recommended")), facts.get("recommended_intensity"))
    points = [pictures.FrontierPoint(row["intensity"], row["kl"], row[key], row["intensity"] == best) for row in rows]
    budget = (facts.get("configuration") or {}).get("forgetting_budget")
    expressed = MEASURES[key]
    columns = {name: MEASURES[name] for name in ("kl", *_EXPRESSED, "wer") if any(name in row for row in rows)}
    return {
        "picture": pictures.frontier_curve(
            expressed.label, points, scale_of(expressed.unit), budget, name="frontier"
        ),
        "columns": ["Intensity", *(measure.label for measure in columns.values())],
        "rows": [
            (f"{row['intensity']:g}", [show_metric({"value": row.get(name)}, columns[name]).text for name in columns],
             point.is_recommended)
            for row, point in zip(rows, points, strict=True)
        ],
        "best": None if best is None else f"{best:g}",
        "budget": _budget(facts.get("forgetting_budget")) or _matched(facts.get("matching")),
    }  # fmt: skip


def _calibration(document: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if document is None:
        return None
    lines = [
        (
            line["curvature"], line["family"],
            ABSENT if line["slope"] is None else f"{line['slope']:.2f} ± {line['slope_se']:.2f}",
            ABSENT if line["r2"] is None else f"{line['r2']:.2f}", line["n"],
        )
        for line in document["fits"]
    ]  # fmt: skip
    return {"picture": calibration_picture(document), "lines": lines, "most_kl": f"{document['most_kl']:g}"}


def _budget(facts: Mapping[str, Any] | None) -> str:
    """How the recommended intensity relates to the forgetting budget; empty without one."""
    if not facts:
        return ""
    budget = f"the forgetting budget of {facts['budget']:g} nats per code"
    if facts["met"]:
        return f"It is the largest inside {budget}, with a KL of {facts['kl']:.3g} on held-out clips."
    return f"Its KL of {facts['kl']:.3g} on held-out clips is outside {budget}, which was not met."


def _matched(match: Mapping[str, Any] | None) -> str:
    """How the recommended intensity was found by matching the adapter to its clips; empty if it wasn't."""
    if not match:
        return ""
    if match["intensity"] is None:
        return f"It was chosen by the loss, because the adapter couldn't be matched to its clips: {match['reason']}."
    looks = " and ".join(f"{look['strength']:.0%} at {look['intensity']:g}" for look in match["strengths"])
    return (
        "There the adapter speaks as strongly as the clips that it learned from, by pitch, pitch range, rate and level "
        f"on held-out texts ({looks} of their distance from plain speech). No judge was involved."
    )


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    timings = facts.get("timings_s") or {}
    tables = [("Base", facts.get("base")), ("Data", facts.get("data")), ("Versions", facts.get("versions"))]
    others = {key: value for key, value in facts.items() if key not in _PLACED and value is not None}
    return {
        "command": facts.get("command"),
        "warnings": [str(warning) for warning in facts.get("warnings") or []],
        "timings": [(str(key), write_duration(float(value))) for key, value in timings.items() if value is not None],
        "memory": facts.get("peak_memory_mib"),
        "tables": [(name, _flat(value)) for name, value in (*tables, ("Also noted", others)) if value],
        "configuration": _flat(facts.get("configuration") or {}),
    }


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as (dotted key, text) pairs."""
    if isinstance(value, Mapping):
        items = ((f"{prefix}.{key}" if prefix else str(key), inner) for key, inner in value.items())
        return [pair for key, inner in items for pair in _flat(inner, key)]
    return [(prefix, _text(value))]


def _text(value: Any) -> str:
    if value is None or value == "":
        return ABSENT
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _ceiling(judge: Mapping[str, Any]) -> str:
    metric = judge.get("ceiling")
    return show_metric(metric, MEASURES["recall"]).plain if metric else ""
