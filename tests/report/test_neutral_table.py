"""Where an emotion should move the voice, and whether it did, stands on both pages as the results say."""

from __future__ import annotations

from typing import Any

import pytest
from test_report import Page

from affetto.evaluate.results import validate_results, write_results
from affetto.report.comparison_page import write_comparison
from affetto.report.neutral_table import NeutralTable, neutral_table
from affetto.report.run_page import write_report
from affetto.report.systems import read_entries
from result_samples import compared, reseeded_result, system

NEUTRAL = "neutral speech of the same speakers"
FEW = "this 1 speaker is too few for an interval (at least 6)"
CAVEAT = "about these 2 speakers only: generalising needs at least 6"


def document() -> dict[str, Any]:
    """A run whose adapter was held against its base, and a folder that was held against neutral speech."""
    found = reseeded_result()
    found["comparisons"][0]["metrics"] |= {
        "f0_median_st": compared(3.1, 2.0, 4.2, expected="higher", holds="yes"),
        "f0_range_st": compared(-1.0, -2.0, -0.5, expected="higher", holds="no"),
        "level_db": compared(0.1, -0.3, 0.5, expected="higher", holds="undecided"),
        "syllables_per_s": compared(0.4, 0.1, 0.7, n=12, expected="higher", holds=None, p_holm=None),
        "arousal": compared(None, None, None, n=0, reason="no judge", p_holm=None, expected="higher", holds=None),
    }
    found["systems"].append(system("mine (files)", "files", 0.5, 0.1, plain=False))
    found["comparisons"].append({"system": "mine (files)", "against": NEUTRAL, "prompt": None, "metrics": {
        "f0_median_st": compared(2.0, None, None, reason=FEW, p_holm=None, expected="higher", holds=None),
        "level_db": compared(1.5, 0.5, 2.5, reason=CAVEAT, p_holm=None, expected="higher", holds="yes"),
        "jitter": compared(0.002, -0.001, 0.005, p_holm=None),
    }})  # fmt: skip
    return dict(validate_results(found))


def rows_of(table: NeutralTable) -> dict[tuple[str, str], tuple[str, ...]]:
    return {
        (row.system, row.metric): (row.value.text, row.value.interval, row.expected, row.holds, row.reason)
        for row in table.rows
    }


def test_each_feature_has_its_direction_and_whether_it_holds() -> None:
    assert rows_of(neutral_table(document())) == {
        ("happy", "f0_median_st"): (
            "+3.1 st", "[+2.0, +4.2]", "higher", "yes", "the whole interval is on the expected side of 0"
        ),
        ("happy", "f0_range_st"): (
            "−1.0 st", "[−2.0, −0.5]", "higher", "no", "the whole interval is on the other side of 0"
        ),
        ("happy", "level_db"): ("+0.1 dB", "[−0.3, +0.5]", "higher", "undecided", "the interval contains 0"),
        ("happy", "syllables_per_s"): (
            "+0.40 /s", "[+0.10, +0.70]", "higher", "unknown", "12 pairs are too few to say (at least 20)"
        ),
        ("mine (files)", "f0_median_st"): ("+2.0 st", "", "higher", "unknown", FEW),
        ("mine (files)", "level_db"): (
            "+1.5 dB", "[+0.5, +2.5]", "higher", "yes", f"the whole interval is on the expected side of 0; {CAVEAT}"
        ),
        ("mine (files)", "jitter"): (
            "+0.2 pt", "[−0.1, +0.5]", "—", "—", "there is no agreed direction for this emotion"
        ),
    }  # fmt: skip


def test_without_such_a_comparison_there_is_no_table() -> None:
    assert neutral_table(reseeded_result()).rows == (), "a base's other seeds and plain prompts aren't asked for it"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    folder, found = tmp_path_factory.mktemp("pages"), document()
    write_results(folder / "happy_results.json", found)
    run = write_report(folder / "report.html", [found], title="x", audio=[], training_log=None, facts={})
    comparison = write_comparison(folder / "page.html", read_entries([f"A={folder / 'happy_results.json'}"]))
    return {"e1-neutral": Page(run.read_text("utf-8")), "neutral": Page(comparison.read_text("utf-8"))}


@pytest.mark.parametrize(("name", "adapter"), [("e1-neutral", "happy"), ("neutral", "A: happy")])
def test_both_pages_show_it_and_copy_it(pages: dict[str, Page], name: str, adapter: str) -> None:
    page = pages[name]
    shown = {(found["data-system"], found["data-moved"]): text for found, text in page.find("tr", data_moved="_")}
    assert shown[adapter, "f0_median_st"] == "Median pitch +3.1 st [+2.0, +4.2] 40 higher yes"
    assert shown[adapter, "syllables_per_s"].startswith(
        "Syllables per second +0.40 /s [+0.10, +0.70] 12 higher unknown"
    )
    titles = {found["title"] for found, text in page.find("span", class_="chip") if text == "unknown"}
    assert titles == {FEW, "12 pairs are too few to say (at least 20)"}
    notes = {found["id"]: text for found, text in page.find("li", id=f"{name}-note")}
    assert set(notes.values()) == {FEW, CAVEAT, "12 pairs are too few to say (at least 20)"}
    copied = {
        found["id"]: "".join(page.texts[index]) for index, (tag, found) in enumerate(page.elements) if tag == "textarea"
    }
    lines = copied[f"{name}-markdown"].splitlines()
    assert lines[0] == "| System | Feature | Difference | n | Expected | Holds |"
    against = "base" if adapter == "happy" else "A: base"
    assert f"| {adapter} − {against} | Median pitch | +3.1 st [+2.0, +4.2] | 40 | higher | yes |" in lines
    (bare,) = [line for line in lines if NEUTRAL in line and "Median pitch" in line]
    assert bare.endswith("| Median pitch | +2.0 st [2] | 40 | higher | unknown [2] |")
    assert f"[2] {FEW}" in copied[f"{name}-markdown"]
    assert copied[f"{name}-latex"].count(r"\\") == 1 + 7
    buttons = {found["data-copy"] for found, _ in page.find("button") if "data-copy" in found}
    assert {f"{name}-markdown", f"{name}-latex"} <= buttons


def test_the_run_pages_table_keeps_what_must_be_known_of_a_difference(pages: dict[str, Page]) -> None:
    notes = {text for _, text in pages["e1-neutral"].find("li", id="e1-note")}
    assert {FEW, CAVEAT} <= notes
    assert "no margin was stated for this metric" not in notes
