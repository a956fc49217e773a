"""The comparison page is read back as a browser would, and shown in one; its parts are held against their results."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_report import EVIL, LOADED, Page

from affetto.audio.sound import write_sound
from affetto.errors import DataError
from affetto.evaluate.folder import evaluate_folder
from affetto.evaluate.results import read_results
from affetto.files import write_json
from affetto.judges.choice import Judges
from affetto.report import players as report_audio
from affetto.report.comparison_page import audio_rows, compare_run, write_comparison
from affetto.report.differences import make_differences
from affetto.report.grid import make_grids
from affetto.report.matrices import matrices
from affetto.report.systems import find_entry, judge_marks, read_entries
from browser import chromium, complaints
from evaluate_fakes import PitchJudge, fake_judges, voice
from result_samples import reseeded_result, result, run_of

NUM_TEXTS = 24


class OtherJudge(PitchJudge):
    id = "fake/other@1"


def sounds(folder: Path, f0_hz: float, *, texts: bool = True, count: int = NUM_TEXTS) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        write_sound(folder / f"{index:02d}.wav", voice(f0_hz + 2 * index, 0.3, rate=16_000), 16_000)
        if texts:
            (folder / f"{index:02d}.txt").write_text(f"Sentence number {index}, please.")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three systems' results: `mine` and `theirs` by one judge, `odd` by another; one sound of `mine` is gone."""
    root = tmp_path_factory.mktemp("place")
    for name, f0_hz, judges in (
        ("mine", 240.0, fake_judges()),
        ("theirs", 110.0, fake_judges()),
        ("odd", 240.0, Judges(OtherJudge(), fake_judges().words)),
    ):
        folder = sounds(root / "wavs" / name, f0_hz)
        if name == "theirs":
            (folder / "01.wav").write_bytes(b"broken")
        evaluate_folder(folder, "happy", root / "out" / f"{name}_results.json", judges=judges, command=f"score {name}")
    (root / "wavs" / "mine" / "00.wav").unlink()
    return root


def arguments(place: Path) -> list[str]:
    return [str(place / "out" / f"{name}_results.json") for name in ("mine", "theirs", "odd")]


@pytest.fixture(scope="module")
def text(place: Path) -> str:
    page = write_comparison(place / "page.html", read_entries(arguments(place)), against="theirs", sentences=3)
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_systems_are_named_by_file_or_by_hand(place: Path, tmp_path: Path) -> None:
    mine, theirs, _ = arguments(place)
    assert [entry.name for entry in read_entries([mine, f"A toolkit={theirs}"])] == ["mine", "A toolkit"]
    run = tmp_path / "happy_results.json"
    write_json(run, result())
    assert [entry.name for entry in read_entries([str(run)])] == ["base", "happy", "real"]
    sad = tmp_path / "sad_results.json"
    write_json(sad, run_of("sad"))
    assert [entry.name for entry in read_entries([str(run), str(sad)])] == [
        "happy: base", "happy", "happy: real", "sad: base", "sad", "sad: real"
    ]  # fmt: skip
    assert [entry.name for entry in read_entries([f"X={run}"])] == ["X: base", "X: happy", "X: real"]
    with pytest.raises(DataError, match="two systems are called 'mine': name their files, NAME="):
        read_entries([mine, mine])
    with pytest.raises(DataError, match="can't read the results"):
        read_entries([str(tmp_path / "none.json")])
    with pytest.raises(DataError, match="there is no system 'x'; there are mine"):
        find_entry(read_entries([mine]), "x")
    with pytest.raises(DataError, match="no folder"):
        read_entries([mine], {"mine": tmp_path / "nowhere"})


def test_a_runs_base_with_other_seeds_is_no_system_to_compare(tmp_path: Path) -> None:
    (tmp_path / "happy_results.json").write_text(json.dumps(reseeded_result()), encoding="utf-8")
    entries = read_entries([str(tmp_path / "happy_results.json")])
    assert [entry.name for entry in entries] == ["base", "happy", "real"]
    assert "other seeds" not in write_comparison(tmp_path / "page.html", entries).read_text(encoding="utf-8")


def test_numbers_of_different_judges_never_share_a_column(place: Path) -> None:
    entries = read_entries(arguments(place))
    marks = judge_marks(entries)
    assert {kind: sorted(own.values()) for kind, own in marks.items() if own} == {"emotion": ["A", "B"]}
    grids = {grid.title: grid for grid in make_grids(entries, marks)}
    recall = [column for column in grids["Expressivity"].columns if column.metric == "recall"]
    assert [column.mark for column in recall] == ["A", "B"]
    by_emotion = [(index, column) for index, column in enumerate(grids["Expressivity"].columns) if column.mark]
    assert len(by_emotion) == 4, "dimensions were judged by one judge"
    for index, column in by_emotion:
        shown = [row[index].text != "—" for row in grids["Expressivity"].rows]
        assert shown == ([True, True, False] if column.mark == "A" else [False, False, True])
        assert "another measure" in str(
            next(row[index].reason for row in grids["Expressivity"].rows if row[index].reason)
        )
    assert all(column.mark == "" for column in grids["Words"].columns)
    assert all(cell.text != "—" for row in grids["Words"].rows for cell in row)
    assert sorted(matrix.title for matrix in matrices(entries, marks)) == ["Judge A", "Judge B"]


def test_the_numbers_are_the_results(place: Path) -> None:
    entries = read_entries(arguments(place))
    grids = make_grids(entries, judge_marks(entries))
    assert any(cell.text != "—" for grid in grids for row in grid.rows for cell in row)
    for grid in grids:
        for entry, row in zip(entries, grid.rows, strict=True):
            for column, cell in zip(grid.columns, row, strict=True):
                metric = read_results(entry.source)["systems"][0]["metrics"][column.metric]
                if cell.text != "—":
                    factor = 100 if column.title.endswith("(%)") else 1
                    shown = float(cell.text.replace("−", "-"))
                    assert shown == pytest.approx(factor * metric["value"], abs=0.051)
                    assert cell.n == metric["n"]
                else:
                    assert cell.reason


def test_pairs_differ_by_their_texts_and_by_one_judge_alone(place: Path) -> None:
    entries = read_entries(arguments(place))
    mine, odd = make_differences(entries, entries[1], judge_marks(entries))
    assert (mine.system, mine.against, mine.paired_by, mine.num_pairs) == (
        "mine", "theirs", "by text, speaker and seed", NUM_TEXTS
    )  # fmt: skip
    recall = mine.values[0]
    rows = [{row["text"]: row["values"]["recall"] for row in entry.system["files"]} for entry in entries[:2]]
    pairs = [(rows[0][text], rows[1][text]) for text in rows[0] if rows[1][text] is not None]
    assert len(pairs) == NUM_TEXTS - 1
    assert recall.n == len(pairs)
    expected = 100 * np.mean([one - other for one, other in pairs])
    assert recall.text == f"+{expected:.1f} pt"
    assert recall.verdict == "raised"
    assert odd.values[0].text == "—"
    assert odd.values[0].reason == "different emotion judges: not comparable"
    assert odd.values[2].text != "—", "words were judged by one judge"


def test_each_run_is_held_against_its_own_base(tmp_path: Path) -> None:
    for emotion in ("happy", "sad"):
        write_json(tmp_path / f"{emotion}_results.json", run_of(emotion))
    entries = read_entries([str(tmp_path / f"{emotion}_results.json") for emotion in ("happy", "sad")])
    found = {one.system: one.against for one in make_differences(entries, None, judge_marks(entries))}
    assert found == {"happy": "happy: base", "happy: real": "happy: base", "sad": "sad: base", "sad: real": "sad: base"}
    sad = next(one for one in make_differences(entries, entries[1], judge_marks(entries)) if one.system == "sad")
    assert sad.values[0].reason == "one should sound sad and the other happy"
    assert {matrix.title for matrix in matrices(entries, judge_marks(entries))} == {
        "Adapters", "Base models", "Recordings"
    }  # fmt: skip


def test_systems_without_texts_are_paired_by_file_name_and_never_else(tmp_path: Path) -> None:
    for name, texts in (("a", True), ("b", False), ("c", True)):
        folder = sounds(tmp_path / name, 150, texts=texts, count=3)
        if name == "c":
            for path in folder.glob("*.txt"):
                path.write_text(f"Another text {path.stem}")
        evaluate_folder(folder, "happy", tmp_path / f"{name}.json", judges=fake_judges())
    entries = read_entries([str(tmp_path / f"{name}.json") for name in "abc"])
    b, c = make_differences(entries, entries[0], judge_marks(entries))
    assert (b.paired_by, b.num_pairs) == ("by file name", 3)
    assert (c.paired_by, c.num_pairs) == ("no text and no file name is in both", 0)


def test_texts_that_differ_in_case_and_punctuation_are_one_row(place: Path, tmp_path: Path) -> None:
    folder = sounds(tmp_path / "loud", 150, count=2)
    (folder / "01.txt").write_text("SENTENCE NUMBER 1 PLEASE")
    evaluate_folder(folder, "happy", tmp_path / "loud.json", judges=fake_judges())
    rows, told = audio_rows(read_entries([arguments(place)[0], str(tmp_path / "loud.json")]), 99)
    assert [len(row.cells) for row in rows] == [2, 2, *(1,) * (NUM_TEXTS - 2)], "those of most systems come first"
    assert {row.text for row in rows[:2]} == {"Sentence number 0, please.", "Sentence number 1, please."}
    assert told == {"mine": f"{NUM_TEXTS - 1} of {NUM_TEXTS} here", "loud": "all here"}


def test_the_dashed_line_is_named_in_each_rows_first_picture(text: str) -> None:
    assert text.count(">median</text>") == 2, "of three rows one has lost its first sound"


def test_sounds_that_are_gone_are_shown_with_the_reason(page: Page) -> None:
    problems = [text for _, text in page.find("p", class_="problem")]
    assert len(problems) == 2
    assert "00.wav: no such file" in problems[0]
    assert "01.wav: can't be decoded" in problems[1]
    assert len(page.find("audio")) == 3 * 3 - 2


def test_sounds_that_moved_are_found_where_told(place: Path, tmp_path: Path) -> None:
    (place / "wavs" / "odd").rename(tmp_path / "elsewhere")
    try:
        path = arguments(place)[2]
        assert "say where with --audio" in audio_rows(read_entries([path]), 2)[1]["odd"]
        moved = read_entries([path], {"odd": tmp_path / "elsewhere"})
        rows, told = audio_rows(moved, 2)
        assert told["odd"] == "all here"
        assert [len(row.cells) for row in rows] == [1, 1]
    finally:
        (tmp_path / "elsewhere").rename(place / "wavs" / "odd")


def test_a_page_without_any_sound_is_a_page(tmp_path: Path) -> None:
    write_json(tmp_path / "happy_results.json", result())
    entries = read_entries([str(tmp_path / "happy_results.json")])
    page = Page(write_comparison(tmp_path / "page.html", entries).read_text(encoding="utf-8"))
    assert not page.find("audio")
    table = next(text for _, text in page.find("table", class_="systems"))
    assert "not kept as files" in table
    assert "say where with --audio" in table
    forgetting = [text for found, text in page.find("table") if found.get("data-grid") == "Forgetting"]
    assert "0.0041" in forgetting[0]
    assert "base" not in forgetting[0], "systems that have no such number aren't listed"


def test_different_judges_are_flagged_on_the_page(page: Page, place: Path, tmp_path: Path) -> None:
    (warning,) = [text for _, text in page.find("aside", class_="warnings")]
    assert (
        "The emotion judges differ: A is fake/pitch and judged mine, theirs; B is fake/other@1 and judged odd"
        in warning
    )
    assert "quality judges" not in warning, "one without a judge isn't judged by another"
    same = write_comparison(tmp_path / "same.html", read_entries(arguments(place)[:2]), sentences=0)
    assert not Page(same.read_text(encoding="utf-8")).find("aside", class_="warnings")


def test_tables_are_copied_as_markdown_and_latex(place: Path, page: Page) -> None:
    entries = read_entries(arguments(place))
    grids = make_grids(entries, judge_marks(entries))
    copied = {
        found["id"]: "".join(page.texts[index])
        for index, (name, found) in enumerate(page.elements)
        if name == "textarea"
    }
    assert copied["glance-markdown"] == grids[0].markdown()
    others = {f"{table}-{kind}" for table in ("differences", "heard1", "heard2") for kind in ("markdown", "latex")}
    assert others <= set(copied)
    assert len(copied) == 2 * len(grids) + len(others)
    for grid in grids:
        lines = grid.markdown().split("\n\n")[0].splitlines()
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(grid.columns) + 2}
        body = [line for line in grid.latex().splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(grid.columns)}
        assert len(body) == len(grid.names) + 1
    assert f"| mine (n={NUM_TEXTS}) | 100.0 [86.2, 100.0] |" in grids[0].markdown()
    assert r"Word error rate (\%)" in grids[0].latex()


def test_text_is_never_markup(tmp_path: Path, place: Path) -> None:
    odd = tmp_path / "evil_results.json"
    document = copy.deepcopy(json.loads(Path(arguments(place)[0]).read_text()))
    document["systems"][0]["files"][1]["text"] = EVIL
    document["command"] = document["emotion"] = EVIL
    write_json(odd, document)
    entries = read_entries([f"<b>=={odd}".replace("==", "=")])
    page = write_comparison(tmp_path / "p.html", entries, title=EVIL, command=EVIL).read_text(encoding="utf-8")
    assert len(Page(page).find("script")) == 1
    assert "<script>alert" not in page
    assert Page(page).find("h1") == [({}, EVIL)]


def test_the_same_input_gives_the_same_bytes(text: str, place: Path, tmp_path: Path) -> None:
    again = write_comparison(tmp_path / "page.html", read_entries(arguments(place)), against="theirs", sentences=3)
    assert again.read_text(encoding="utf-8") == text


def test_the_page_asks_for_nothing_and_stays_small(
    text: str, page: Page, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not re.search(r"https?:|@import", text)
    for _, attributes in page.elements:
        for key in ("src", "href", "action", "poster", "srcset"):
            assert attributes.get(key, "#").startswith(("#", "data:"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {found["href"][1:] for _, found in page.elements if found.get("href", "").startswith("#")}
    assert targets <= set(ids)
    monkeypatch.setattr(report_audio, "MAX_BYTES", 60_000)
    shrunk = write_comparison(tmp_path / "p.html", read_entries(arguments(place)), sentences=5)
    assert len(shrunk.read_bytes()) < len(text.encode())


@pytest.mark.parametrize("width", [1280, 420])
def test_a_browser_shows_it_without_complaint(text: str, tmp_path: Path, width: int) -> None:
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    with chromium(tmp_path / "profile") as browser:
        for domain in ("Runtime", "Log", "Page", "Network"):
            browser.call(f"{domain}.enable")
        browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        browser.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
            browser.events.append(browser.receive())
        assert browser.evaluate(LOADED) == pytest.approx([0.3] * 7, abs=0.05)
        assert browser.evaluate("document.querySelectorAll('svg.picture').length") == text.count("<svg ")
        caught = "addEventListener('copy', (event) => { window.copied = event.target.value; })"
        browser.evaluate(f"document.{caught}; document.querySelector('button[data-copy=glance-latex]').click()")
        assert browser.evaluate("window.copied").startswith(r"\begin{tabular}")
        wide = "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1"
        wide += " && !e.closest('.scroll, .bare-scroll, .clips, nav')).map((e) => e.outerHTML.slice(0, 80))"
        assert browser.evaluate(wide) == []
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints(browser) == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert all(url.startswith("data:") for url in asked[1:])


def test_one_base_under_two_emotions_is_heard_once(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation_results"
    for number, emotion in enumerate(("happy", "sad")):
        document = run_of(emotion)
        for system, pitch in zip(document["systems"], (120, 150 + number, 170 + number), strict=True):
            path = tmp_path / "samples" / f"{emotion}_{system['role']}.wav"
            write_sound(path, voice(pitch, 0.4, rate=16_000), 16_000)
            row = {
                "file": path.relative_to(tmp_path).as_posix(), "prompt": "emotional", "text": "hello", "speaker": "0",
                "seed": 1, "duration_s": 0.4, "error": None, "values": {"posterior": 0.1, "first_choice": "neutral"},
            }  # fmt: skip
            system |= {"files": [row], "num_failed": 0}
        write_json(folder / f"{emotion}_results.json", document)
    assert compare_run(folder, ["happy", "sad"], "affetto run") == folder / "comparison.html"
    [row], _ = audio_rows(read_entries([str(folder / f"{emotion}_results.json") for emotion in ("happy", "sad")]), 3)
    assert [cell.system for cell in row.cells] == ["base", "happy", "happy: real", "sad", "sad: real"]
    assert "posterior" not in row.cells[0].values
    assert "posterior" in row.cells[1].values
