"""The page about clips: what is measured, what the pictures say, and that a browser shows it without a complaint."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from affetto.report.data_page import measure_voices, write_data_page
from affetto.report.data_pictures import durations_picture, in_order, speakers_picture, strips_picture
from affetto.types import Clip
from browser import chromium
from evaluate_fakes import RATE, silence, voice


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Two speakers an octave apart; both are happy four semitones above their neutral."""
    found = []
    for speaker, base in (("low", 110.0), ("high", 220.0)):
        for emotion, steps, level in (("neutral", 0, 0.05), ("happy", 4, 0.1)):
            for number in range(3):
                name = f"{speaker}-{emotion}-{number}"
                soundfile.write(tmp_path / f"{name}.wav", voice(base * 2 ** (steps / 12), 0.5, level), RATE)
                found.append(Clip(name, tmp_path / f"{name}.wav", name, emotion, speaker, "test", "train"))
    return found


def test_pitch_is_against_the_speakers_own_neutral(clips: list[Clip], tmp_path: Path) -> None:
    found = measure_voices(clips, 60)
    for clip in clips:
        assert found.pitch_st[clip.id] == pytest.approx(4.0 if clip.emotion == "happy" else 0.0, abs=0.1)
        expected = 20 * np.log10(0.1 if clip.emotion == "happy" else 0.05)
        assert found.level_db[clip.id] == pytest.approx(expected, abs=0.2)
    soundfile.write(tmp_path / "still.wav", silence(0.5), RATE)
    still = Clip("still", tmp_path / "still.wav", None, None, "low", "test")
    with_silence = measure_voices([*clips, still, Clip("gone", tmp_path / "gone.wav", None, None, "x", "test")], 60)
    assert (with_silence.num_clips, with_silence.num_unpitched) == (14, 2)
    assert with_silence.pitch_st == found.pitch_st


def test_so_many_of_each_emotion_are_measured_always_the_same(clips: list[Clip]) -> None:
    some = measure_voices(clips, 2)
    assert some.num_clips == 4
    assert measure_voices(clips[::-1], 2).level_db == some.level_db


def test_pictures_say_their_numbers(clips: list[Clip]) -> None:
    seconds = {clip.id: 2.0 if clip.emotion == "happy" else 3.0 for clip in clips}
    assert "medians: happy 2.0 s, neutral 3.0 s" in durations_picture(clips, seconds).alt
    drawn = speakers_picture([*clips, Clip("g", Path("/g.wav"), None, None, "third", "test")])
    assert "(3 rows) and emotion (happy, neutral, general); 4 cells are empty" in drawn.alt
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", drawn.svg)
    assert shown.count("3") == 4
    assert shown.count("·") == 4
    values = {clip.id: -0.04 for clip in clips}
    svg = strips_picture(clips, values, name="x", unit="semitones", at=0.0).svg
    assert ">+0.0</text>" in svg, "no minus before a rounded zero"
    assert in_order(["zeal", "general", "sad", "happy", "sad"]) == ["happy", "sad", "zeal", "general"]


def test_many_speakers_become_a_row_of_others(clips: list[Clip]) -> None:
    many = [
        Clip(f"{n}-{k}", Path("/x.wav"), None, "sad", f"s{n:02}", "t") for n in range(30) for k in range(1 + (n < 24))
    ]
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", speakers_picture(many).svg)
    assert "6 others" in shown
    assert shown.count("6") == 1
    assert "s29" not in shown
    assert len(clips) == 12


def test_the_page_is_whole_in_a_browser(clips: list[Clip], tmp_path: Path) -> None:
    spoilt = [*clips, Clip("gone", tmp_path / "gone.wav", None, "sad", "low", "test")]
    page = write_data_page(spoilt, tmp_path / "page.html", title="<Mine>")
    content = page.read_text()
    assert "1 clip can’t be opened and has" in content
    assert "1 clip has no text" in content
    assert content == write_data_page(spoilt, tmp_path / "again.html", title="<Mine>").read_text()
    with chromium(tmp_path / "profile") as browser:
        browser.call("Page.enable")
        browser.call("Runtime.enable")
        browser.call("Log.enable")
        browser.call("Page.navigate", url=page.as_uri())
        while browser.evaluate("document.readyState") != "complete":
            pass
        assert browser.evaluate("document.title") == "<Mine>"
        assert browser.evaluate("document.querySelectorAll('svg.picture').length") == 4
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth") is True
        complaints = [
            event for event in browser.events if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
        ]
        assert complaints == []
