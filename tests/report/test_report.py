"""The report is read back as a browser would: its tables, its sounds, its words; and once in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import soundfile
from rich.console import Console

from affetto.audio.sound import write_sound
from affetto.evaluate.matching import Match
from affetto.evaluate.results import validate_results
from affetto.report import players as report_audio
from affetto.report.headline import headline, verdicts
from affetto.report.players import AudioCell, AudioRow, compare_words
from affetto.report.run_page import write_report
from affetto.report.tables import latex_table, main_table, markdown_table, terminal_table
from browser import chromium, complaints
from evaluate_fakes import voice
from result_samples import compared, metric, reseeded_result, result, system

EVIL = "<script>alert('x')</script> & $co|_%"
VOID = {"meta", "link", "br", "input", "img"}


LOG = [
    {"step": step, "epoch": step / 10, "split": split, "lr": 1e-3, "terms": {"total": 4.0 / step, "ewc": 0.01 * step}}
    for step in (1, 5, 10)
    for split in ("train", "validation")
]
FACTS = {
    "command": "affetto run --emotion happy", "versions": {"python": "3.11.9"}, "warnings": ["mind the gap"],
    "configuration": {"adapter_r": 16, "judges": {"words": EVIL}}, "timings_s": {"training": 200.0, "total": 437.4},
    "peak_memory_mib": 1432.6, "base": {"id": "miniature"}, "data": {"emotional_clips": 96, "rehearsed_clips": 240},
    "recommended_intensity": 1.0,
}  # fmt: skip
FRONTIER = [
    {"intensity": i, "kl": 0.01 * i, "posterior": 0.5 * i, "recall": 0.6 * i, "wer": 0.05} for i in (0.5, 1.0, 1.5)
]


class Page(HTMLParser):
    """Elements of a page with their attributes and their text, and whether every tag closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[list[str]] = []
        self.open: list[int] = []
        self.feed(text)
        assert not self.open, [self.elements[i] for i in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        self.texts.append([])
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        self.texts.append([])

    def handle_endtag(self, tag: str) -> None:
        index = self.open.pop()
        assert self.elements[index][0] == tag, (tag, self.elements[index])

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.texts[index].append(data)

    def find(self, tag: str, **attributes: str) -> list[tuple[dict[str, str], str]]:
        """(attributes, text) of every `tag` whose attributes contain the given words."""
        return [
            (found, " ".join("".join(self.texts[i]).split()))
            for i, (name, found) in enumerate(self.elements)
            if name == tag and all(v in found.get(k.replace("_", "-").strip("-"), "") for k, v in attributes.items())
        ]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for name, hz, duration_s in (("base", 120.0, 0.8), ("happy", 180.0, 0.6)):
        write_sound(folder / f"{name}.wav", voice(hz, duration_s, rate=16_000), 16_000)
    return folder


def rows(sounds: Path) -> list[AudioRow]:
    said = {"heard": "the lovely cap", "first_choice": "happy", "posterior": 0.81, "word_edits": 1, "wer": 1 / 3}
    cells = (AudioCell("base", sounds / "base.wav"), AudioCell("happy", sounds / "happy.wav", said))
    missing = (AudioCell("base", sounds / "base.wav"), AudioCell("happy", sounds / "gone.wav", {"mood": "odd"}))
    return [
        AudioRow("The shiny cap", "emotional", "0", 7, cells),
        AudioRow(EVIL, "plain", "1", None, missing),
    ]


def written(folder: Path, audio: list[AudioRow], **more: Any) -> str:
    given: dict[str, Any] = {"title": "A happy voice", "training_log": LOG, "facts": FACTS, "frontier": FRONTIER} | more
    path = write_report(folder / "report.html", given.pop("results", [result()]), audio=audio, **given)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("report"), rows(sounds))


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def row_of(page: Page, name: str) -> list[str]:
    return [text for _, text in page.find("tr", data_metric=name)]


def test_the_fixture_is_what_an_evaluation_writes():
    assert validate_results(result()) == result()


def test_sounds_play_back_with_their_length(page: Page):
    players = page.find("audio")
    assert len(players) == 3
    for attributes, _ in players:
        kind, encoded = attributes["src"].split(",", 1)
        assert kind == "data:audio/mpeg;base64"
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
        assert rate == 24_000
        assert samples.ndim == 1
        assert len(samples) / rate == pytest.approx(float(attributes["data-duration"]), abs=0.002)
        assert 0.05 < samples.std() < 0.2
    assert [float(attributes["data-duration"]) for attributes, _ in players] == pytest.approx([0.8, 0.6, 0.8], abs=1e-3)


def test_without_lame_sounds_are_lossless(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"FLAC": "", "WAV": ""})
    sound = voice(200.0, rate=24_000)
    kind, encoded = report_audio.sound_uri(sound).split(",", 1)
    assert kind == "data:audio/flac;base64"
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(encoded)), dtype="float32")
    assert abs(samples - sound).max() < 1e-4


def test_each_clip_has_a_picture_and_what_was_heard(page: Page):
    assert page.find("section", data_system="happy")[0][1].endswith(
        "Judge hears happy; target 81.0 % Recogniser hears “the shiny lovely cap” Word error rate 33.3 %"
    )
    pictures = [attributes["aria-label"] for attributes, _ in page.find("svg", role="img")]
    assert "Spectrogram and pitch of happy, 0.6 s; median pitch 180 Hz, 7.0 semitones above the first" in pictures[1]
    assert len(page.find("del")) == len(page.find("mark")) == 1


def test_a_missing_sound_says_so(page: Page):
    (problem,) = [text for _, text in page.find("p", class_="problem")]
    assert "gone.wav: no such file" in problem
    assert "mood odd" in page.find("section", data_system="happy")[1][1]


def test_a_page_that_would_grow_too_big_leaves_sounds_out(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(report_audio, "MAX_BYTES", 60_000)
    shrunk = Page(written(tmp_path, [rows(sounds)[0]] * 3))
    assert 1 <= len(shrunk.find("audio")) < 6
    assert any("left out to keep this page small" in text for _, text in shrunk.find("p", class_="problem"))


def test_numbers_are_in_the_table(page: Page):
    asked, plain = row_of(page, "recall")
    assert "9.2 % [1.2, 16.2] n=40 78.3 % [70.3, 85.3] n=40 91.4 %" in asked
    assert asked.endswith("raised +69.1 pt [+60.0, +77.0] n=40 p<0.001")
    assert "5.0 % [1.0, 12.0] n=40" in plain
    assert row_of(page, "wer")[0].endswith("undecided +0.7 pt [−0.4, +1.8] margin 1 pt n=40 p<0.001")
    assert row_of(page, "delta_nll")[0].endswith("preserved +0.0041 nats [+0.0022, +0.0061] margin 0.01 nats n=40")
    columns = 5
    for header, _ in page.find("th", scope="rowgroup"):
        assert header["colspan"] == str(columns)


def test_every_null_has_its_reason(page: Page):
    notes = {attributes["id"]: text for attributes, text in page.find("li", id="e1-note")}
    links = page.find("a", href="#e1-note")
    dashes = page.find("span", class_="absent")
    assert len(dashes) == len(links) > 5
    for attributes, _ in links:
        assert notes[attributes["href"].removeprefix("#")] == attributes["title"]
    assert "—1" in row_of(page, "mos_overall")[0].replace(" ", "")
    assert notes["e1-note-1"] == "no quality judge was given"
    assert set(notes.values()) == {
        "no quality judge was given", "no pair has this value", "measured between the adapter and its base",
        "not measured for this system",
    }  # fmt: skip


def test_the_headline_says_what_happened(page: Page):
    assert " ".join(headline(result(), FACTS)) == (
        "An adapter was trained on 96 happy clips beside 240 rehearsed general ones on the base miniature, "
        "in 7 min 17 s. Asked to sound happy, it is heard as happy in 78.3 % of 40 clips; the base in 9.2 % and real "
        "happy recordings in 91.4 %. Word error rate is 6.1 % (base 5.4 %). "
        "General speech became 0.0041 nats per code less likely."
    )
    facts = FACTS | {"data": {"general": "self", "emotional_clips": 96, "rehearsed_clips": 240}}
    assert "96 happy clips beside 240 general ones that the base spoke itself on" in headline(result(), facts)[0]
    assert [aspect.verdict for aspect in verdicts(result())] == [
        "raised", "undecided", "no verdict", "no verdict", "preserved"
    ]  # fmt: skip
    shown = [text for _, text in page.find("ul", class_="verdicts")]
    assert "Is the sound as good? no verdict DNSMOS overall — no pair has this value" in shown[0]


@pytest.mark.parametrize(
    ("low", "high", "n", "verdict"),
    [(0.1, 0.2, 40, "raised"), (-0.2, -0.1, 40, "lowered"), (-0.1, 0.1, 40, "undecided"), (0.1, 0.2, 19, "no verdict")],
)
def test_expressivity_is_judged_by_direction(low: float, high: float, n: int, verdict: str):
    changed = result()
    changed["comparisons"][0]["metrics"]["recall"] = compared((low + high) / 2, low, high, n=n)
    first = verdicts(changed)[0]
    assert first.verdict == verdict
    assert (first.reason is not None) == (verdict == "no verdict")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.001, 0.009, "preserved"), (0.011, 0.02, "worse"), (0.005, 0.02, "undecided"), (-0.02, -0.01, "preserved")],
)
def test_forgetting_is_held_against_its_margin(low: float, high: float, verdict: str):
    changed = result()
    changed["retention"]["delta_nll"] = metric((low + high) / 2, low, high, unit="nats/code")
    assert verdicts(changed)[-1].verdict == verdict


def test_the_voice_has_a_verdict_where_a_judge_heard_it_on_plain_prompts():
    question = "Is it the same voice then?"
    assert question not in [aspect.question for aspect in verdicts(result())]
    changed = result()
    changed["judges"]["voice"] = {"id": "ge2e", "tier": "bundled"}
    for comparison, difference, told in zip(
        changed["comparisons"], (-0.08, -0.007), ("worse", "preserved"), strict=True
    ):
        low, high = difference - 0.004, difference + 0.004
        comparison["metrics"]["speaker_similarity"] = compared(difference, low, high, margin=0.02, verdict=told)
    voice = next(aspect for aspect in verdicts(changed) if aspect.question == question)
    assert voice.verdict == "preserved", "acting changes a voice; reading plainly must not"
    assert "0.007" in " ".join(voice.detail)


def test_differences_on_plain_prompts_stand_beside_those_of_other_seeds(tmp_path: Path):
    document = reseeded_result()
    validate_results(document)
    table = main_table(document)
    assert table.systems == ("base", "happy", "real"), "no column of its own"
    assert table.comparisons == ("happy − base", "base, other seeds − base")
    lost = next(line for line in table.lines if line.name == "flips_lost")
    assert [value.text for value in (*lost.values, *lost.differences)] == ["", "", "", "+5.0 pt", "+2.5 pt"]
    asked = next(line for line in table.lines if line.name == "recall" and line.aspect == "Expressivity")
    assert [value.text for value in asked.differences] == ["+69.1 pt", ""], "other seeds were asked plainly"
    details = {verdict.question: " ".join(verdict.detail) for verdict in verdicts(document)}
    assert details["Is it the same voice then?"].endswith("n=40 by other seeds alone −0.003 [−0.012, +0.006]")
    assert "other seeds" not in details["Does it sound happy when asked?"]
    text = written(tmp_path, [], results=[document])
    assert "a.wav of base, other seeds is broken" in text
    assert "<dt>base, other seeds</dt>" in text


def test_pictures_facts_and_failures_are_on_the_page(text: str, page: Page):
    captions = [text for _, text in page.find("figcaption")]
    assert {"Recall", "Word error rate", "Median pitch", "total total", "EWC ewc", "base", "happy", "real"} <= set(
        captions
    )
    assert {"ΔNLL per codebook nats per code", "KL per codebook nats per code"} <= set(captions)
    for words in (
        "affetto run --emotion happy", "affetto evaluate happy", "miniature/emotion", "Apache-2.0", "mind the gap",
        "7 min 17 s", "1433 MiB", "adapter_r", "a.wav of happy is broken", "ships with affetto", "1 recommended",
    ):  # fmt: skip
        assert words in text, words


def test_text_is_never_markup(sounds: Path, tmp_path: Path):
    named = json.loads(json.dumps(result()).replace('"happy"', json.dumps(EVIL)))
    text = written(tmp_path, rows(sounds), results=[named], title=EVIL, facts={"warnings": [EVIL], "command": EVIL})
    page = Page(text)
    assert len(page.find("script")) == 1
    assert "<script>alert" not in text
    assert page.find("h1") == [({}, EVIL)]
    assert page.find("title")[0][1] == EVIL
    assert any(EVIL in found["aria-label"] for found, _ in page.find("svg"))


def test_the_same_input_gives_the_same_bytes(text: str, sounds: Path, tmp_path: Path):
    assert written(tmp_path, rows(sounds)) == text


def test_the_page_asks_for_nothing(text: str, page: Page):
    assert not re.search(r"https?:|//\w+\.\w+/|@import", text)
    for _, attributes in page.elements:
        for key in ("src", "href", "action", "poster", "srcset"):
            assert attributes.get(key, "#").startswith(("#", "data:"))
    (policy,) = [found["content"] for found, _ in page.find("meta", http_equiv="Content-Security-Policy")]
    assert policy.startswith("default-src 'none'; ")
    assert len(text) < 1_000_000


def test_it_is_sound_html(page: Page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"][1:] for _, attributes in page.elements if attributes.get("href", "").startswith("#")]
    assert set(targets) <= set(ids)
    assert len(page.find("h1")) == len(page.find("main")) == 1
    assert all(attributes.get("aria-label") for attributes, _ in page.find("svg"))
    assert all(attributes.get("aria-label") for attributes, _ in page.find("audio"))


@pytest.mark.parametrize("given", [{"results": []}, {"facts": {}}, {"training_log": None}, {"frontier": None}])
def test_what_is_missing_is_left_out(given: dict[str, Any], tmp_path: Path):
    page = Page(written(tmp_path, [], **given))
    assert bool(page.find("table", class_="main")) == (given != {"results": []})


def test_a_bare_evaluation_of_files_has_a_page(tmp_path: Path):
    bare = {"emotion": "sad", "systems": [system("mine", "files", 0.5, 0.1)], "comparisons": [], "retention": None}
    page = Page(written(tmp_path, [], results=[bare], facts={}, training_log=None, frontier=None))
    (shown,) = [text for _, text in page.find("ul", class_="verdicts")]
    assert "retention was not measured" in shown
    assert row_of(page, "recall")[0].endswith("50.0 % [42.0, 57.0] n=40")


def test_two_emotions_share_a_page(tmp_path: Path):
    sad = result() | {"emotion": "sad"}
    page = Page(written(tmp_path, [], results=[result(), sad]))
    assert [found["data-emotion"] for found, _ in page.find("table", class_="main")] == ["happy", "sad"]


def test_the_terminal_table_has_the_numbers():
    shown = io.StringIO()
    Console(file=shown, width=120).print(terminal_table([result()]))
    lines = {line.split("│")[0].strip(): line for line in shown.getvalue().splitlines()}
    assert re.findall(r"[\d.]+ %", lines["Recall"]) == ["9.2 %", "78.3 %", "91.4 %"]
    assert "+69.1 pt [+60.0, +77.0]" in lines["Recall"]
    assert "undecided" in lines["WER"]
    assert "0.0041 nats" in lines["ΔNLL"]
    assert lines["DNSMOS overall"].count("—") == 4


def test_tables_as_text_are_rectangular(page: Page):
    named = result()
    named["systems"][1]["name"] = EVIL
    for document in (result(), named):
        table, *notes = markdown_table([document]).split("\n\n")
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert widths == {6}
        assert "[1] no quality judge was given" in notes[0]
        body = [line for line in latex_table([document]).splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {4}
    assert "| Recall | 9.2 % [1.2, 16.2] n=40 | 78.3 % [70.3, 85.3] n=40 |" in markdown_table([result()])
    assert r"9.2 \% [1.2, 16.2] n=40 & 78.3 \%" in latex_table([result()])
    copied = {
        found["id"]: "".join(page.texts[i]) for i, (name, found) in enumerate(page.elements) if name == "textarea"
    }
    assert copied == {"e1-markdown": markdown_table([result()]), "e1-latex": latex_table([result()])}


def test_words_are_compared_for_the_eye():
    assert compare_words("The shiny cap, now", "the tiny cap") == (
        ("the", "same"), ("shiny", "missing"), ("tiny", "extra"), ("cap", "same"), ("now", "missing")
    )  # fmt: skip
    assert compare_words("a", "") == (("a", "missing"),)


LOADED = """Promise.all([...document.querySelectorAll("audio")].map((audio) => new Promise((tell) => {
  if (audio.readyState) tell(audio.duration);
  audio.onloadedmetadata = () => tell(audio.duration);
  audio.onerror = () => tell(null);
})))"""
WIDE = "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && "
WIDE += "!e.closest('.scroll, nav')).map((e) => e.outerHTML.slice(0, 80))"


def test_a_browser_shows_it_without_complaint(text: str, tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    with chromium(tmp_path / "profile") as browser:
        for domain in ("Runtime", "Log", "Page", "Network"):
            browser.call(f"{domain}.enable")
        browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
        browser.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
            browser.events.append(browser.receive())

        assert browser.evaluate(LOADED) == pytest.approx([0.8, 0.6, 0.8], abs=0.05)
        assert browser.evaluate("document.querySelectorAll('svg.picture').length") == text.count("<svg ")

        caught = "addEventListener('copy', (event) => { window.copied = event.target.value; })"
        browser.evaluate(f"document.{caught}; document.querySelector('button[data-copy=e1-latex]').click()")
        assert browser.evaluate("window.copied") == latex_table([result()])
        assert browser.evaluate("document.getElementById('said').textContent") == "Copied"

        click = "document.querySelector('.view').dispatchEvent(new MouseEvent('click', {clientX: 300, bubbles: true}))"
        browser.evaluate(click)
        assert browser.evaluate("document.querySelector('audio').currentTime") > 0.1
        browser.evaluate("document.querySelector('audio').pause()")
        assert 10 < browser.evaluate("parseFloat(document.querySelector('.playhead').style.left)") <= 100

        browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
        assert browser.evaluate(WIDE) == []
    assert complaints(browser) == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked[0] == path.as_uri()
    assert all(url.startswith("data:") for url in asked[1:])


@pytest.mark.parametrize("met", [True, False])
def test_a_forgetting_budget_is_a_line_of_the_frontier_and_a_sentence(sounds: Path, tmp_path: Path, met: bool) -> None:
    told = {"budget": 0.012, "kl": 0.01 if met else 0.02, "met": met, "multiplier": 17.5}
    facts = FACTS | {"configuration": {"forgetting_budget": 0.012}, "forgetting_budget": told}
    terms = {"total": 3.0, "multiplier": 17.5, "rehearsal_kl": 0.01, "rehearsal_kl_target": 0.009}
    log = [{"step": step, "epoch": 1.0, "split": "train", "lr": 1e-3, "terms": terms} for step in (1, 5)]
    text = written(tmp_path, rows(sounds), facts=facts, training_log=log)
    said = " ".join(map("".join, Page(text).texts))
    assert "budget 0.012" in said, "the line in the picture"
    assert ("It is the largest inside the forgetting budget of 0.012 nats per code" in said) == met
    assert ("is outside the forgetting budget of 0.012 nats per code, which was not met" in said) != met
    for words in ("multiplier of the preservation terms", "rehearsal, KL, target"):
        assert words in said
    plain = written(tmp_path, rows(sounds))
    assert "budget" not in " ".join(map("".join, Page(plain).texts))


def test_the_page_says_how_the_recommended_intensity_was_found(tmp_path: Path) -> None:
    looks = {1.0: 0.8, 1.25: 1.1}
    frontier = [*FRONTIER, {"intensity": 1.17, "kl": 0.011, "posterior": 0.6, "recall": 0.7, "wer": 0.05}]
    for match, words in (
        (
            Match(1.17, looks, 9.0),
            "as strongly as the clips that it learned from, by pitch, pitch range, rate and level",
        ),
        (Match(None, {}, None, "3 texts are too few"), "couldn't be matched to its clips: 3 texts are too few."),
    ):
        facts = FACTS | {"recommended_intensity": match.intensity or 1.0, "matching": match.document()}
        said = " ".join(map("".join, Page(written(tmp_path, [], facts=facts, frontier=frontier)).texts))
        assert words in said
        assert ("80% at 1 and 110% at 1.25" in said) == (match.intensity is not None)
        assert f"Intensity {match.intensity or 1.0:g} is recommended." in said
