"""Write the ablation's tables into README.md and docs/preservation.md, from the runs that are kept with the repository.

    python scripts/ablation_tables.py

reads `benchmarks/results/ablation/ablation.json`. A test holds the pages to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affetto.files import write_text
from affetto.laboratory.comparison import (
    ActedLine,
    Interval,
    Line,
    acted_markdown,
    compare_as_acted,
    compare_methods,
    markdown,
    written,
)

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "results" / "ablation" / "ablation.json"
COLUMNS = {
    "plain": "plain LoRA", "replay_kl": "replay by KL alone", "all": "affetto's defaults",
    "all_tight_budget": "`forgetting_budget: 0.01`",
}  # fmt: skip
"""Of the README's table."""


def main() -> None:
    """Write both pages."""
    rows = json.loads(RUNS.read_text(encoding="utf-8"))["rows"]
    for path, tables in pages(rows).items():
        text = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = put(text, name, table)
        write_text(path, text)


def pages(rows: Sequence[Mapping[str, Any]]) -> dict[Path, dict[str, str]]:
    """By page, its tables by the name that its marks have."""
    return {
        ROOT / "README.md": {"ablation": readme_table(rows)},
        ROOT / "docs" / "preservation.md": {"ablation": markdown(rows), "as-acted": acted_markdown(rows)},
    }


def put(text: str, name: str, table: str) -> str:
    """`text` with `table` between the marks `<!-- NAME -->` and `<!-- /NAME -->`, of which there is one pair."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    assert found, f"there is no place marked {begin.strip()}"
    return before + begin + table + end + after


def readme_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the defaults, their alternatives and the base sound like, and what each forgets."""
    lines = {line.method: line for line in compare_methods(rows)}
    acted = {line.method: line for line in compare_as_acted(rows)}
    # The base says the same to every method of an emotion and seed.
    heard = {(row["emotion"], row["seed"]): row["heard"]["base"] for row in rows if row["method"] in COLUMNS}
    base = {name: float(np.mean([values[name] for values in heard.values()])) for name in ("recall", "wer")}
    strong = [acted[name] for name in COLUMNS]
    full = [lines[name] for name in COLUMNS]
    table = [
        ["", "base", *COLUMNS.values()],
        ["---"] * (2 + len(COLUMNS)),
        ["**as strong as the clips**: intensity", "", *(written(line.intensity, "{:.2f}") for line in strong)],
        *_heard_rows(base, strong),
        ["general speech: ΔNLL (nats per code)", "", *(written(line.delta_nll, "{:.3f}") for line in strong)],
        ["general speech: KL (nats per code)", "", *(written(line.kl, "{:.3f}") for line in strong)],
        ["**at intensity 1**: heard as the emotion", "", *(_percent(line.heard["recall"]) for line in full)],
        ["word error rate", "", *(_percent(line.heard["wer"]) for line in full)],
        ["general speech: ΔNLL (nats per code)", "", *(written(line.delta_nll, "{:.3f}") for line in full)],
        ["KL where 90 % of plain LoRA's gain is learned, of plain LoRA's", "", *(_share(line) for line in full)],
        ["runs", "", *(str(line.num_runs) for line in full)],
    ]  # fmt: skip
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _heard_rows(base: Mapping[str, float], lines: Sequence[ActedLine]) -> list[list[str]]:
    names = {
        "recall": ("heard as the emotion", "recall"), "wer": ("word error rate", "wer"),
        "plain_recall": ("heard as the emotion, plain prompts", "recall"),
        "plain_wer": ("word error rate, plain prompts", "wer"),
    }  # fmt: skip
    return [
        [words, f"{base[of_base]:.1%}".replace("%", " %"), *(_percent(line.heard[name]) for line in lines)]
        for name, (words, of_base) in names.items()
    ]


def _percent(value: Interval | None) -> str:
    """As shares are written in the README: the unit once."""
    if value is None:
        return ""
    low, high = value.low, value.high
    places = 1 if value.mean < 0.1 else 0
    known = low is not None and high is not None
    ends = f" [{100 * max(low or 0, 0):.{places}f}, {100 * min(high or 0, 1):.{places}f}]" if known else ""
    return f"{100 * value.mean:.1f} %{ends}"


def _share(line: Line) -> str:
    if line.share is None:
        return "not reached"
    ends = "" if line.share.low is None else f" [{100 * line.share.low:.1f}, {100 * (line.share.high or 0):.1f}]"
    return f"{100 * line.share.mean:.1f} %{ends}"


if __name__ == "__main__":
    main()
