"""The page's differences are those that the results hold; others are paired by texts as they stand before all else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from test_report import Page

from affetto.audio.sound import write_sound
from affetto.evaluate.folder import Beside, evaluate_folder
from affetto.evaluate.results import read_results, validate_results
from affetto.files import write_json
from affetto.report.comparison_page import write_comparison
from affetto.report.differences import DIFFERED, Difference, DifferenceTable, make_differences
from affetto.report.measures import MEASURES, scale_of, write_interval, write_number
from affetto.report.systems import judge_marks, read_entries
from affetto.report.tables import Value
from evaluate_fakes import fake_judges, voice
from result_samples import compared, metric, result

TEXTS = ("Really?", "Really!", "an apple", "Zebras", *(f"{'aB'[i % 2]} sentence {i}" for i in range(20)))


def spoken(folder: Path, f0_hz: float, texts: tuple[str, ...] = TEXTS) -> Path:
    """Sounds whose pitch, and with it every other number, depends on the text in no simple way."""
    folder.mkdir(parents=True)
    for index, text in enumerate(texts):
        write_sound(folder / f"{index:02d}.wav", voice(f0_hz + 7 * (index * index % 11), 0.3, rate=16_000), 16_000)
        (folder / f"{index:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`both.json` holds a folder and the base that it was held against; each has results of its own as well."""
    root = tmp_path_factory.mktemp("place")
    mine, base = spoken(root / "mine", 200.0), spoken(root / "base", 160.0)
    evaluate_folder(mine, "happy", root / "both.json", judges=fake_judges(), beside=Beside(base=base))
    for folder in (mine, base):
        evaluate_folder(folder, "happy", root / f"{folder.name}.json", judges=fake_judges())
    return root


def differences(*paths: Path, against: int | None = None) -> list[Difference]:
    entries = read_entries(list(map(str, paths)))
    return make_differences(entries, None if against is None else entries[against], judge_marks(entries))


def value_of(row: Difference, name: str) -> Value:
    return dict(zip(DIFFERED, row.values, strict=True))[name]


def told(name: str, found: Any) -> tuple[str, str, int]:
    """A comparison's difference, interval and n, as a page writes them."""
    scale = scale_of(MEASURES[name].unit)
    return (
        write_number(found["difference"], scale, is_difference=True),
        write_interval(found["low"], found["high"], scale, is_difference=True), found["n"],
    )  # fmt: skip


def test_what_the_results_compared_is_shown_as_it_stands(place: Path, tmp_path: Path) -> None:
    document = read_results(place / "both.json")
    document["comparisons"][0]["metrics"]["wer"] |= {"difference": 0.0123, "p_holm": 0.321}
    write_json(tmp_path / "both.json", document)
    (row,) = differences(tmp_path / "both.json")
    assert row.pairs == f"{len(TEXTS)} pairs as in the results"
    wer = value_of(row, "wer")
    assert (wer.text, wer.p) == ("+1.2 pt", "p=0.321"), "not made again"
    for name in DIFFERED:
        shown = value_of(row, name)
        if shown.text not in ("", "—"):
            assert (shown.text, shown.interval, shown.n) == told(name, document["comparisons"][0]["metrics"][name])
    assert value_of(row, "wer").margin == "1 pt"


def test_the_same_pairs_give_the_same_numbers_from_two_files(place: Path) -> None:
    """`Really?` and `Really!` are two texts, and the order in which prompts are drawn is that of the results."""
    (row,) = differences(place / "mine.json", place / "base.json", against=1)
    assert row.pairs == f"{len(TEXTS)} pairs by text, speaker and seed"
    held = read_results(place / "both.json")["comparisons"][0]["metrics"]
    for name in ("recall", "posterior", "wer", "mos_overall", "f0_median_st"):
        shown = value_of(row, name)
        assert (shown.text, shown.interval, shown.n) == told(name, held[name]), name


def test_case_and_punctuation_are_overlooked_only_where_no_text_is_the_same(tmp_path: Path) -> None:
    loud = spoken(tmp_path / "loud", 160.0, tuple(text.upper() for text in TEXTS[2:]))
    evaluate_folder(loud, "happy", tmp_path / "loud.json", judges=fake_judges())
    clear = spoken(tmp_path / "clear", 160.0, tuple(f"{text}..." for text in TEXTS[2:]))
    evaluate_folder(clear, "happy", tmp_path / "clear.json", judges=fake_judges())
    (row,) = differences(tmp_path / "loud.json", tmp_path / "clear.json", against=1)
    assert row.pairs == f"{len(TEXTS) - 2} pairs by letters and digits of the text, speaker and seed"


def document_with_voices() -> dict[str, Any]:
    found = copy.deepcopy(result())
    found["judges"]["voice"] = {**found["judges"]["words"], "id": "some/voice"}
    asked, plain = found["comparisons"]
    own = {"margin": 0.02, "reason": None}
    asked["metrics"]["speaker_similarity"] = compared(-0.08, -0.09, -0.07, verdict="worse", **own)
    plain["metrics"] |= {
        "speaker_similarity": compared(-0.007, -0.011, -0.003, verdict="preserved", **own),
        "posterior": compared(0.01, 0.0, 0.02, margin=0.05, verdict="preserved", reason=None),
    }
    for system in found["systems"]:
        system["metrics"]["speaker_similarity"] = metric(0.8, 0.7, 0.9, unit="cosine")
    return dict(validate_results(found))


def test_plain_prompts_and_the_voice_are_compared_where_the_results_have_them(tmp_path: Path) -> None:
    write_json(tmp_path / "happy_results.json", document_with_voices())
    asked, plain, real = differences(tmp_path / "happy_results.json")
    assert (asked.system, asked.is_plain, plain.system, plain.is_plain) == ("happy", False, "happy", True)
    assert (real.system, real.is_plain) == ("real", False)
    assert value_of(asked, "speaker_similarity").verdict == "worse"
    assert value_of(plain, "speaker_similarity").verdict == "preserved"
    assert value_of(plain, "posterior").margin == "5 pt"
    assert value_of(plain, "wer").text == "", "the results don't have it"
    text = write_comparison(
        tmp_path / "page.html", read_entries([str(tmp_path / "happy_results.json")])
    ).read_text(encoding="utf-8")  # fmt: skip
    (shown,) = [shown for attributes, shown in Page(text).find("tr", data_against="base") if "plain prompts" in shown]
    assert "preserved −0.007" in shown
    assert "margin 0.02" in shown


def test_a_voice_has_a_column_only_where_it_was_judged_and_is_likened_to_one_base(place: Path, tmp_path: Path) -> None:
    plain = result()
    write_json(tmp_path / "plain_results.json", plain)
    without = DifferenceTable(tuple(differences(tmp_path / "plain_results.json")))
    assert "Speaker similarity" not in [label for label, _ in without.columns]
    assert [len(without.values(row)) for row in without.rows] == [len(without.columns)] * len(without.rows)
    write_json(tmp_path / "happy_results.json", document_with_voices())
    rows = differences(tmp_path / "happy_results.json")
    assert "Speaker similarity" in [label for label, _ in DifferenceTable(tuple(rows)).columns]
    (row,) = differences(place / "mine.json", place / "base.json", against=1)
    assert value_of(row, "speaker_similarity").text == "—"
    assert "the base of its own results" in str(value_of(row, "speaker_similarity").reason)


def test_the_differences_are_copied_as_text(tmp_path: Path) -> None:
    write_json(tmp_path / "happy_results.json", document_with_voices())
    table = DifferenceTable(tuple(differences(tmp_path / "happy_results.json")))
    lines = table.markdown().split("\n\n")[0].splitlines()
    assert {line.count("|") for line in lines} == {len(table.columns) + 3}
    assert "| happy, plain prompts − base | 40 pairs as in the results |" in lines[3]
    assert "+0.7 pt [−0.4, +1.8] undecided margin 1 pt p&lt;0.001" in lines[2]
    body = [line for line in table.latex().splitlines() if line.endswith(r"\\")]
    assert len(body) == len(table.rows) + 1
    page = Page(
        write_comparison(
            tmp_path / "page.html", read_entries([str(tmp_path / "happy_results.json")])
        ).read_text(encoding="utf-8")
    )  # fmt: skip
    copied = {
        found["id"]: "".join(page.texts[index])
        for index, (name, found) in enumerate(page.elements)
        if name == "textarea"
    }
    assert copied["differences-markdown"] == table.markdown()
    assert copied["differences-latex"] == table.latex()
    buttons = [found["data-copy"] for found, _ in page.find("button") if "data-copy" in found]
    assert sorted(buttons) == sorted(copied)
    assert copied["heard1-markdown"].splitlines()[0] == "| Heard as (%) | neutral | happy | sad | n |"
    assert "| base | 75 | 20 | 5 | 40 |" in copied["heard1-markdown"]
    assert r"base & 75 & 20 & 5 & 40 \\" in copied["heard1-latex"]
