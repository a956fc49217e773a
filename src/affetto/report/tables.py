"""The main table of an evaluation: built once, shown as HTML (by the template), Markdown, LaTeX and in terminals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from affetto.errors import counted
from affetto.evaluate.summary import MARGINS
from affetto.metrics.statistics import MIN_PAIRS, Estimate, non_inferiority
from affetto.report.measures import (
    ABSENT,
    ASPECTS,
    MEASURES,
    PLAIN,
    Measure,
    measure_of,
    scale_of,
    write_interval,
    write_number,
)
from affetto.report.text import latex_row, markdown_cell

if TYPE_CHECKING:
    from rich.table import Table

DELTA_NLL_MARGIN = MARGINS["delta_nll"].size
"""Nats per code; the margin for the ΔNLL in `retention`."""
_MAIN_PLAIN = ("recall", "wer")
"""Metrics on plain prompts that the terminal shows."""
_NO_MARGIN = "no margin was stated for this metric"
NOT_MEASURED = "not measured for this system"


@dataclass(frozen=True)
class Value:
    """One formatted number; without one `text` is a dash, and `reason` says why."""

    text: str
    interval: str = ""
    n: int | None = None
    reason: str | None = None
    margin: str = ""
    verdict: str | None = None
    p: str = ""
    """`p=0.012`, for a difference."""

    @property
    def plain(self) -> str:
        """Everything but the reason in one line."""
        return " ".join(part for part in (self.text, self.interval, f"n={self.n}" if self.n else "") if part)


@dataclass(frozen=True)
class Line:
    """One metric of all systems, then of all comparisons."""

    name: str
    aspect: str
    measure: Measure
    values: tuple[Value, ...]
    differences: tuple[Value, ...]


@dataclass(frozen=True)
class MainTable:
    """The table of one evaluation."""

    emotion: str
    systems: tuple[str, ...]
    comparisons: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def aspects(self) -> list[tuple[str, list[Line]]]:
        """Lines by aspect, in the order of `ASPECTS`."""
        found = ((aspect, [line for line in self.lines if line.aspect == aspect]) for aspect in ASPECTS)
        return [(aspect, lines) for aspect, lines in found if lines]

    @property
    def reasons(self) -> list[str]:
        """Every reason once, in the table's order; footnote k is `reasons[k - 1]`."""
        lines = [line for _, lines in self.aspects for line in lines]
        return list(dict.fromkeys(value.reason for line in lines for value in all_values(line) if value.reason))


def all_values(line: Line) -> tuple[Value, ...]:
    """Values and differences of a line, in column order."""
    return (*line.values, *line.differences)


def shown_systems(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The systems that have columns and pictures: all except the re-seeded base, which only differences refer to."""
    return [system for system in result.get("systems") or [] if system.get("role") != "reseeded"]


def main_table(result: Mapping[str, Any]) -> MainTable:
    """The main table of one evaluation (docs/results.md)."""
    systems = shown_systems(result)
    pairs = list(dict.fromkeys((row["system"], row["against"]) for row in result.get("comparisons") or []))
    lines = [*_metric_lines(result, systems, pairs, "emotional"), *_metric_lines(result, systems, pairs, "plain")]
    lines += _retention_lines(result, systems, pairs)
    return MainTable(
        emotion=str(result.get("emotion", "")),
        systems=tuple(str(system["name"]) for system in systems),
        comparisons=tuple(f"{system} − {against}" for system, against in pairs),
        lines=tuple(lines),
    )


def _metric_lines(
    result: Mapping[str, Any], systems: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]], prompt: str
) -> Iterator[Line]:
    key = "metrics" if prompt == "emotional" else "plain_metrics"
    tables = [system.get(key) or {} for system in systems]
    compared = [
        row["metrics"] for row in result.get("comparisons") or [] if (row.get("prompt") or "emotional") == prompt
    ]
    present = list(dict.fromkeys(name for table in (*tables, *compared) for name in table))
    for name in [*(name for name in MEASURES if name in present), *(name for name in present if name not in MEASURES)]:
        unit_of = next((table[name] for table in tables if name in table), None)
        measure = measure_of(name, unit_of)
        if measure.is_on_request and not any((table.get(name) or {}).get("value") is not None for table in tables):
            continue
        yield Line(
            name,
            measure.aspect if prompt == "emotional" else PLAIN,
            measure,
            tuple(Value("") if measure.is_of_pairs else show_metric(table.get(name), measure) for table in tables),
            tuple(show_comparison(result, pair, prompt, name, measure) for pair in pairs),
        )


def _retention_lines(
    result: Mapping[str, Any], systems: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]
) -> Iterator[Line]:
    retention = result.get("retention")
    if not retention:
        return
    adapter = next((system["name"] for system in systems if system.get("role") == "adapter"), None)
    for name in ("delta_nll", "kl"):
        measure = MEASURES[name]
        values = tuple(
            show_metric(retention.get(name), measure)
            if system["name"] == adapter
            else Value(ABSENT, reason="measured between the adapter and its base")
            for system in systems
        )
        differences = tuple(
            delta_nll_verdict(retention) if name == "delta_nll" and pair[0] == adapter else Value("") for pair in pairs
        )
        yield Line(name, measure.aspect, measure, values, differences)


def show_metric(metric: Mapping[str, Any] | None, measure: Measure) -> Value:
    """One METRIC, formatted."""
    if metric is None:
        return Value(ABSENT, reason=NOT_MEASURED)
    if metric.get("value") is None:
        return Value(ABSENT, n=metric.get("n"), reason=metric.get("reason") or "no reason was given")
    scale = scale_of(measure.unit)
    interval = write_interval(metric.get("low"), metric.get("high"), scale)
    return Value(write_number(metric["value"], scale), interval, metric.get("n"), metric.get("reason"))


def show_difference(row: Mapping[str, Any] | None, measure: Measure) -> Value:
    """One metric of a COMPARISON, formatted; empty if it was not compared."""
    if row is None:
        return Value("")
    if row.get("difference") is None:
        return Value(ABSENT, n=row.get("n"), reason=row.get("reason") or "no reason was given")
    scale, margin = scale_of(measure.unit), row.get("margin")
    return Value(
        write_number(row["difference"], scale, is_difference=True),
        write_interval(row.get("low"), row.get("high"), scale, is_difference=True),
        row.get("n"),
        None if row.get("reason") == _NO_MARGIN else row.get("reason"),  # then no verdict is expected
        "" if margin is None else f"{margin * scale.factor:g} {scale.difference_unit or scale.unit}".rstrip(),
        row.get("verdict"),
        _p_value(row.get("p_holm")),
    )


def show_comparison(
    result: Mapping[str, Any], pair: tuple[str, str], prompt: str, name: str, measure: Measure
) -> Value:
    """One metric compared between `pair`. Expressivity is meant to change on emotional prompts: its verdict says on
    which side of 0 the whole interval lies (`raised`, `lowered`, `undecided`), without a margin."""
    row = find_difference(result, pair, prompt, name)
    if row is None or row.get("difference") is None or prompt != "emotional" or measure.aspect != "Expressivity":
        return show_difference(row, measure)
    low, high, n = row.get("low"), row.get("high"), row.get("n") or 0
    if n < MIN_PAIRS or low is None or high is None:
        has_interval = low is not None and high is not None
        few = f"{counted(n, 'pair is', 'pairs are')} too few for a verdict (at least {MIN_PAIRS})"
        reason = few if has_interval else row.get("reason") or "there is no interval"
        return replace(show_difference({**row, "margin": None, "verdict": None}, measure), reason=reason)
    verdict = "raised" if low > 0 else "lowered" if high < 0 else "undecided"
    return show_difference({**row, "margin": None, "verdict": verdict, "reason": None}, measure)


def find_difference(
    result: Mapping[str, Any], pair: tuple[str, str], prompt: str, name: str
) -> Mapping[str, Any] | None:
    """The comparison of metric `name` between `pair` (system, against) for `prompt` (a comparison of files without
    prompts counts as emotional); None if there is none."""
    for row in result.get("comparisons") or []:
        if (row["system"], row["against"]) == pair and (row.get("prompt") or "emotional") == prompt:
            found: Mapping[str, Any] | None = row["metrics"].get(name)
            return found
    return None


def delta_nll_verdict(retention: Mapping[str, Any]) -> Value:
    """ΔNLL, which is a difference already, compared with its margin."""
    metric = retention["delta_nll"]
    estimate = Estimate(metric.get("value"), metric.get("low"), metric.get("high"), metric.get("n") or 0)
    verdict, reason = non_inferiority(estimate, DELTA_NLL_MARGIN, "higher")
    difference = {**metric, "difference": metric.get("value"), "margin": DELTA_NLL_MARGIN, "verdict": verdict}
    return show_difference({**difference, "reason": metric.get("reason") or reason}, MEASURES["delta_nll"])


def markdown_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The main table of every evaluation as a Markdown table, with its reasons as numbered notes."""
    parts = []
    for table in map(main_table, results):
        reasons = table.reasons
        head = [table.emotion or "metric", *table.systems, *table.comparisons]
        rows = [head, ["---"] * len(head)]
        rows = [[markdown_cell(cell) for cell in row] for row in rows]
        for aspect, lines in table.aspects:
            for line in lines:
                cells = [markdown_cell(_one_line(value, reasons)) for value in all_values(line)]
                rows.append([markdown_cell(_line_name(aspect, line)), *cells])
        notes = [f"[{number}] {markdown_cell(reason)}  " for number, reason in enumerate(reasons, 1)]
        text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts.append("\n".join([text, "", *notes]).rstrip() + "\n")
    return "\n".join(parts)


def latex_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The main table of every evaluation as a LaTeX tabular (booktabs), with its reasons below."""
    parts = []
    for table in map(main_table, results):
        reasons, head = table.reasons, [table.emotion or "metric", *table.systems, *table.comparisons]
        rows = [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule", latex_row(head), r"\midrule"]
        for number, (aspect, lines) in enumerate(table.aspects):
            rows += [r"\addlinespace"] if number else []
            for line in lines:
                cells = [_one_line(value, reasons) for value in all_values(line)]
                rows.append(latex_row([_line_name(aspect, line), *cells]))
        notes = [rf"% [{number}] {' '.join(reason.split())}" for number, reason in enumerate(reasons, 1)]
        parts.append("\n".join([*rows, r"\bottomrule", r"\end{tabular}", *notes]) + "\n")
    return "\n".join(parts)


def terminal_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """The main metrics of every evaluation, for the end of a run, and below why any have no interval.

    Other reasons are on the page.
    """
    from rich.table import Table
    from rich.text import Text

    tables = [main_table(result) for result in results]
    systems = list(dict.fromkeys(name for table in tables for name in table.systems))
    shown = Table(show_edge=False, pad_edge=False, header_style="bold")
    shown.add_column("", no_wrap=True)
    for name in systems:
        shown.add_column(Text(name), justify="right", no_wrap=True)
    shown.add_column("difference", justify="right", min_width=12)
    shown.add_column("verdict", no_wrap=True, min_width=9)
    colours = {"preserved": "green", "raised": "green", "worse": "red", "lowered": "red", "undecided": "yellow"}
    missing: dict[str, None] = {}
    for table in tables:
        shown.add_section()
        if len(tables) > 1:
            shown.add_row(Text(table.emotion, "bold"))
        for line in table.lines:
            if not line.measure.is_main or (line.aspect == PLAIN and line.name not in _MAIN_PLAIN):
                continue
            by_name = dict(zip(table.systems, line.values, strict=True))
            cells = [Text(by_name[name].text if name in by_name else ABSENT) for name in systems]
            difference = next((value for value in line.differences if value.text), Value(""))
            missing |= {reason: None for value in (*line.values, difference) if (reason := _why_no_interval(value))}
            verdict = difference.verdict or ""
            change = Text(" ".join(part for part in (difference.text, difference.interval) if part))
            name = _line_name(line.aspect, line).replace("Word error rate", "WER")
            shown.add_row(Text(name), *cells, change, Text(verdict, colours.get(verdict, "")))
    if missing:
        shown.caption = Text(f"Without an interval: {'; '.join(missing)}")
    return shown


def _why_no_interval(value: Value) -> str | None:
    """Why a number has no interval; None if it has one, or if there is no number."""
    return None if value.text in ("", ABSENT) or value.interval else value.reason


def _p_value(p: float | None) -> str:
    return "" if p is None else "p<0.001" if p < 0.001 else f"p={p:.3f}"


def _line_name(aspect: str, line: Line) -> str:
    return f"{line.measure.label}, not asked" if aspect == PLAIN else line.measure.label


def _one_line(value: Value, reasons: Sequence[str]) -> str:
    note = f"[{reasons.index(value.reason) + 1}]" if value.reason else ""
    return " ".join(part for part in (value.plain, value.verdict, note) if part)
