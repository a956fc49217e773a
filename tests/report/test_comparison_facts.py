"""What the comparison page says of its systems and judges: what was asked for, on which scale, under what terms."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_report import Page

from affetto.audio.sound import write_sound
from affetto.evaluate.folder import Beside, evaluate_folder
from affetto.evaluate.results import validate_results, write_results
from affetto.report.comparison_page import write_comparison
from affetto.report.run_page import write_report
from affetto.report.systems import read_entries
from evaluate_fakes import fake_judges, voice
from result_samples import result


def folder(path: Path, f0_hz: float) -> Path:
    path.mkdir(parents=True)
    for index in range(3):
        write_sound(path / f"{index}.wav", voice(f0_hz + 5 * index, 0.3, rate=16_000), 16_000)
        (path / f"{index}.txt").write_text(f"Sentence {index}")
    return path


def systems_of(page: Path) -> dict[str, list[str]]:
    """Cells of the table of systems, by name."""
    found = Page(page.read_text(encoding="utf-8"))
    rows = [index for index, (tag, _) in enumerate(found.elements) if tag == "tr"]
    shown: dict[str, list[str]] = {}
    for start, end in zip(rows, [*rows[1:], len(found.elements)], strict=True):
        cells = [i for i in range(start, end) if found.elements[i][0] in ("th", "td")]
        texts = [" ".join("".join(found.texts[i]).split()) for i in cells]
        if any(found.elements[i][1].get("class") == "sounds" for i in cells):
            shown[texts[0]] = texts[1:]
    return shown


def test_base_and_neutral_speech_were_asked_for_no_emotion(tmp_path: Path) -> None:
    beside = Beside(*(folder(tmp_path / name, f0) for name, f0 in (("b", 150.0), ("r", 240.0), ("n", 140.0))))
    mine = folder(tmp_path / "mine", 230.0)
    evaluate_folder(mine, "happy", tmp_path / "mine.json", judges=fake_judges(), beside=beside)
    page = write_comparison(tmp_path / "page.html", read_entries([str(tmp_path / "mine.json")]))
    shown = systems_of(page)
    assert {name: cells[:2] for name, cells in shown.items()} == {
        "mine": ["sound files", "happy"],
        "base": ["sound files of the base", "no emotion"],
        "real": ["recordings", "happy"],
        "neutral": ["neutral speech of the same speakers", "no emotion"],
    }
    assert "asked to sound" not in page.read_text(encoding="utf-8")


def test_a_run_has_a_base_model_and_recordings_through_its_codec(tmp_path: Path) -> None:
    write_results(tmp_path / "happy_results.json", result())
    shown = systems_of(write_comparison(tmp_path / "p.html", read_entries([str(tmp_path / "happy_results.json")])))
    assert {name: cells[:2] for name, cells in shown.items()} == {
        "base": ["the base model", "no emotion"],
        "happy": ["adapter at intensity 1", "happy"],
        "real": ["recordings, through the codec", "happy"],
    }


def test_a_folder_that_is_called_neutral_was_asked_for_what_it_was_scored_for(tmp_path: Path) -> None:
    evaluate_folder(folder(tmp_path / "neutral", 150.0), "happy", tmp_path / "n.json", judges=fake_judges())
    page = write_comparison(tmp_path / "page.html", read_entries([str(tmp_path / "n.json")]))
    assert systems_of(page)["n"][:2] == ["sound files", "happy"]


@pytest.mark.parametrize("is_run", [True, False], ids=["run", "comparison"])
def test_judges_are_shown_with_scale_and_note_where_they_have_them(tmp_path: Path, is_run: bool) -> None:
    document = result()
    words = document["judges"]["words"]
    note = "non-commercial licence: for research only"
    document["judges"]["dimensions"] = {**words, "id": "hub/wheel", "scale": "about 0 to 1 each", "note": note}
    members = [{**words, "id": "a/mos", "scale": "1 to 5"}, {**words, "id": "b/mos", "note": "needs a GPU <b>"}]
    document["judges"]["quality"] = {**words, "id": "a/mos + b/mos", "tier": "mixed", "members": members}
    document = dict(validate_results(document))
    write_results(tmp_path / "happy_results.json", document)
    if is_run:
        path = write_report(tmp_path / "r.html", [document], title="x", audio=[], training_log=None, facts={})
    else:
        path = write_comparison(tmp_path / "p.html", read_entries([str(tmp_path / "happy_results.json")]))
    (table,) = [text for _, text in Page(path.read_text(encoding="utf-8")).find("table", class_="judges")]
    for told in ("scale: about 0 to 1 each", note, "a/mos: 1 to 5", "b/mos: needs a GPU <b>"):
        assert table.count(told) == 1, told
