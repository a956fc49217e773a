"""What was measured only on request stands beside the rest, is called secondary, and never leads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from affetto.evaluate.results import validate_results, write_results
from affetto.judges.choice import choose_judges
from affetto.report.comparison_page import write_comparison
from affetto.report.differences import DIFFERED
from affetto.report.grid import AT_A_GLANCE, make_grids
from affetto.report.headline import headline, verdicts
from affetto.report.measures import MEASURES, SECONDARY, glossary, shown_judges
from affetto.report.run_page import write_report
from affetto.report.systems import judge_marks, read_entries
from affetto.report.tables import latex_table, main_table, markdown_table, terminal_table
from result_samples import compared, metric, result

NAME, LABEL = "emotion_similarity", "Emotion similarity (secondary)"
OFF = {"emotion": "none", "words": "none", "quality": "none"}


def document(*, is_asked: bool) -> dict[str, Any]:
    found = result()
    reason = choose_judges(OFF, "happy").reason("embedding")
    judge = {**found["judges"]["emotion"], "id": "local/embedder@0123", "tier": "local", "ceiling": None}
    found["judges"]["embedding"] = judge if is_asked else None
    for number, system in enumerate(found["systems"]):
        value = 0.4 + number / 10 if is_asked else None
        own = metric(value, value and value - 0.05, value and value + 0.05, unit="cosine")
        for key in ("metrics", "plain_metrics"):
            if system[key] is not None:
                system[key][NAME] = own if is_asked else {**own, "n": 0, "reason": reason}
    for comparison in found["comparisons"]:
        comparison["metrics"][NAME] = compared(0.1, 0.04, 0.16) if is_asked else compared(None, None, None, n=0)
    return dict(validate_results(found))


def pages(folder: Path, found: dict[str, Any]) -> tuple[str, str]:
    """A run's report, and the page that compares its systems."""
    write_results(folder / "happy_results.json", found)
    report = write_report(
        folder / "report.html", [found], title="x", audio=[], training_log=None, facts={}, frontier=None
    )
    comparison = write_comparison(folder / "page.html", read_entries([str(folder / "happy_results.json")]))
    return report.read_text(encoding="utf-8"), comparison.read_text(encoding="utf-8")


def test_by_default_no_page_and_no_table_names_it(tmp_path: Path) -> None:
    found = document(is_asked=False)
    for page in (*pages(tmp_path, found), markdown_table([found]), latex_table([found])):
        assert "similarity (secondary)" not in page
        assert "mimicry" not in page
        assert "embedding" not in page
    assert LABEL not in [measure.label for measure in glossary(found["systems"])]


def test_on_request_it_is_in_the_tables_alone_and_says_what_it_is(tmp_path: Path) -> None:
    found = document(is_asked=True)
    report, page = pages(tmp_path, found)
    for text in (report, page):
        assert LABEL in text
        assert "rewards mimicry, arXiv 2604.26347; never a headline" in text
        assert "local/embedder@0123" in text
        assert "dots-emotion_similarity" not in text.replace("dots-0-", "dots-")
    assert LABEL in markdown_table([found])
    assert "0.500 [0.450, 0.550] n=40" in markdown_table([found])
    assert "Emotion similarity (secondary)" in latex_table([found])
    entries = read_entries([str(tmp_path / "happy_results.json")])
    grids = {
        grid.title: [column.metric for column in grid.columns] for grid in make_grids(entries, judge_marks(entries))
    }
    assert [title for title, columns in grids.items() if NAME in columns] == [SECONDARY, "When nobody asked"]
    assert grids[SECONDARY] == [NAME]
    assert NAME not in grids[AT_A_GLANCE]


def test_neither_headline_nor_verdict_nor_picture_nor_the_terminal_has_it() -> None:
    found, without = document(is_asked=True), document(is_asked=False)
    assert headline(found, {}) == headline(without, {})
    assert verdicts(found) == verdicts(without)
    measure = MEASURES[NAME]
    assert (measure.is_main, measure.is_plotted, measure.is_on_request) == (False, False, True)
    assert measure.better is None, "nearer to the recordings isn't better"
    assert NAME not in DIFFERED
    rows = [str(cell) for column in terminal_table([found]).columns for cell in column.cells]
    assert not any("imilarity" in row for row in rows)
    (line,) = [line for line in main_table(found).lines if line.name == NAME and line.aspect == SECONDARY]
    assert [value.verdict for value in line.differences] == [None]
    assert line.differences[0].text == "+0.100"


def test_a_judge_that_nobody_named_is_listed_only_where_it_judges_by_default() -> None:
    judges = {"emotion": None, "voice": None, "dimensions": None, "embedding": None}
    assert list(shown_judges(judges)) == ["emotion"]
    assert list(shown_judges({**judges, "embedding": {"id": "x"}})) == ["emotion", "embedding"]


@pytest.mark.parametrize("name", ["speaker_similarity", NAME])
def test_the_glossary_has_what_somebody_asked_for(name: str) -> None:
    assert MEASURES[name] not in glossary([{"metrics": {name: {"value": None}}, "plain_metrics": None}])
    assert MEASURES[name] in glossary([{"metrics": {}}, {"plain_metrics": {name: {"value": 0.5}}}])
