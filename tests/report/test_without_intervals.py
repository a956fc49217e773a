"""A number without an interval is shown with the reason, and never as `None`."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_report import Page

from affetto.evaluate.results import validate_results, write_results
from affetto.report.comparison_page import write_comparison
from affetto.report.headline import verdicts
from affetto.report.measures import MEASURES
from affetto.report.pictures import Dot, without_interval
from affetto.report.run_page import write_report
from affetto.report.strengths_section import strengths_section
from affetto.report.systems import judge_marks, read_entries
from affetto.report.tables import latex_table, main_table, markdown_table, show_comparison, terminal_table
from result_samples import compared, metric, result

FEW = "3 prompts are too few for an interval (at least 6)"
BARE = {"low": None, "high": None, "reason": FEW}


def document() -> dict[str, Any]:
    """Results in which nothing has an interval, a p-value or a verdict."""
    found = result()
    for system in found["systems"]:
        for metrics in (system["metrics"], system["plain_metrics"] or {}):
            metrics |= {name: one | BARE for name, one in metrics.items() if one["value"] is not None}
    for comparison in found["comparisons"]:
        comparison["metrics"] |= {
            name: one | BARE | {"verdict": None, "p_holm": None}
            for name, one in comparison["metrics"].items()
            if one["difference"] is not None
        }
    pitch = compared(2.0, None, None, reason=FEW, p_holm=None, expected="higher", holds=None)
    found["comparisons"][0]["metrics"]["f0_median_st"] = pitch
    for name in ("delta_nll", "kl"):
        found["retention"][name] |= BARE
    strengths = {name: metric(0.5, **BARE) for name in ("recall", "posterior", "wer")}
    strengths["f0_median_st"] = metric(None, n=0, reason="no file has enough voiced sound")
    found["strengths"] = [{"intensity": strength, "metrics": strengths} for strength in (0.5, 1.0)]
    return dict(validate_results(found))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder, found = tmp_path_factory.mktemp("bare"), document()
    write_results(folder / "happy_results.json", found)
    report = write_report(folder / "report.html", [found], title="x", audio=[], training_log=None, facts={})
    page = write_comparison(folder / "page.html", read_entries([str(folder / "happy_results.json")]))
    return report.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


def test_both_pages_show_values_with_their_reasons_and_no_whiskers(pages: tuple[str, str]) -> None:
    for text in pages:
        page = Page(text)
        words = " ".join(" ".join("".join(own).split()) for own in page.texts)
        assert not re.search(r"\bNone\b", words)
        assert "[]" not in words
        assert "78.3" in words
        labels = [found["aria-label"] for found, _ in page.find("svg", aria_label="with 95 % intervals")]
        assert labels
        assert all("(no interval)" in label and "None" not in label for label in labels)
        said = {own for _, own in page.find("p", class_="note") if own.startswith("No interval of")}
        assert any(own.startswith("No interval of base; happy") and own.endswith(f"{FEW}.") for own in said)
        assert {own["title"] for own, _ in page.find("a", href="-note-")} >= {FEW}
        # A whisker is the only line in such a picture that is half transparent.
        dots = [svg for svg in re.findall(r"<svg .*?</svg>", text, re.DOTALL) if "with 95 % intervals" in svg]
        assert not any("stroke-opacity: 0.5" in svg for svg in dots)


def test_a_whisker_is_half_transparent(tmp_path: Path) -> None:
    """What the test above looks for in vain is there where there are intervals."""
    text = write_report(tmp_path / "r.html", [result()], title="x", audio=[], training_log=None, facts={}).read_text()
    dots = [svg for svg in re.findall(r"<svg .*?</svg>", text, re.DOTALL) if "with 95 % intervals" in svg]
    assert any("stroke-opacity: 0.5" in svg for svg in dots)
    assert "No interval of" not in text


def test_the_main_table_says_why_there_is_no_interval() -> None:
    found = document()
    lines = {line.name: line for line in main_table(found).lines if line.aspect != "When nobody asked"}
    for name in ("recall", "wer", "f0_median_st"):
        for value in (lines[name].values[1], lines[name].differences[0]):
            assert (value.interval, value.verdict, value.p) == ("", None, "")
            assert value.text != "—"
            assert value.reason == FEW
    assert lines["delta_nll"].differences[0].reason == FEW
    for text in (markdown_table([found]), latex_table([found])):
        assert FEW in text
        assert "None" not in text


def test_expressivity_has_no_verdict_for_the_interval_it_lacks_and_not_for_its_pairs() -> None:
    """40 pairs aren't too few."""
    shown = show_comparison(document(), ("happy", "base"), "emotional", "recall", MEASURES["recall"])
    assert (shown.text, shown.verdict, shown.reason) == ("+69.1 pt", None, FEW)
    told = {verdict.question: verdict for verdict in verdicts(document())}
    assert told["Does it sound happy when asked?"].reason == FEW
    assert all(verdict.verdict == "no verdict" for verdict in told.values())


def test_the_terminal_has_the_values_and_the_reason_below() -> None:
    shown = io.StringIO()
    Console(file=shown, width=120).print(terminal_table([document()]))
    text = shown.getvalue()
    assert "None" not in text
    assert "+69.1 pt" in text
    assert f"Without an interval: {FEW}" in " ".join(text.split())
    whole = io.StringIO()
    Console(file=whole, width=120).print(terminal_table([result()]))
    assert "Without an interval" not in whole.getvalue()


def test_what_is_heard_at_each_strength_needs_no_interval() -> None:
    section = strengths_section(document(), "strengths")
    assert section is not None
    assert section["picture"] is not None
    cells = {title: cells for title, cells, _ in section["rows"]}["0.5"]
    assert [(cell.text, cell.reason) for cell in cells] == [
        ("50.0 %", FEW), ("50.0 %", FEW), ("50.0 %", FEW), ("—", "no file has enough voiced sound")
    ]  # fmt: skip


def test_reasons_below_a_picture_are_said_once() -> None:
    dots = [
        Dot("base", 0, 0.5, None, None, reason=FEW), Dot("happy", 1, 0.5, None, None, True, FEW),
        Dot("real", 2, 0.5, 0.4, 0.6), Dot("other", 3, 0.5, None, None),
    ]  # fmt: skip
    assert without_interval(dots) == [
        f"No interval of base; happy, plain: {FEW}.", "No interval of other: no reason was given."
    ]  # fmt: skip


def test_differences_without_intervals_are_shown_between_files_too(tmp_path: Path) -> None:
    write_results(tmp_path / "happy_results.json", document())
    entries = read_entries([str(tmp_path / "happy_results.json")])
    assert judge_marks(entries)
    page = Page(write_comparison(tmp_path / "page.html", entries).read_text(encoding="utf-8"))
    (row,) = [text for found, text in page.find("tr", data_against="base") if text.startswith("happyminus base")]
    assert "+69.1 pt" in row
    assert {found.get("title") for found, text in page.find("span", class_="value") if text == "+69.1 pt"} == {FEW}
