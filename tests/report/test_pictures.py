"""Pictures put ink where the numbers are: positions are computed here by hand and read back from the SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from affetto.report import pictures, speech_picture
from affetto.report.canvas import Picture
from affetto.report.measures import SCALES, scale_of
from affetto.report.pictures import Curve, Dot, FrontierPoint
from affetto.report.speech_picture import BOTTOM, HEIGHT, HIGH_HZ, LEFT, LOW_HZ, RIGHT, TOP, WIDTH
from evaluate_fakes import silence, voice

RATE = 24_000
SHARE = scale_of("share")


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]


def paths(picture: Picture, variable: str) -> list[np.ndarray]:
    """Points (N, 2) of every path whose stroke or fill is the page's `variable`, in CSS pixels."""
    root = ElementTree.fromstring(picture.svg)
    found = [path for path in root.iter("path") if variable in path.get("style", "")]
    return [np.array(numbers(path.get("d", ""))).reshape(-1, 2) for path in found]


def markers(picture: Picture, variable: str) -> list[tuple[float, float]]:
    """Positions of markers in the page's `variable`."""
    root = ElementTree.fromstring(picture.svg)
    uses = [use for use in root.iter("use") if variable in use.get("style", "")]
    return [(float(use.get("x", "nan")), float(use.get("y", "nan"))) for use in uses]


def labels(picture: Picture) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(picture.svg).iter("text")]


def height_of(hz: float) -> float:
    """Where a frequency lies in a speech picture, in CSS pixels from the top."""
    share = np.log2(hz / LOW_HZ) / np.log2(HIGH_HZ / LOW_HZ)
    return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)


def speech(sound: np.ndarray, duration_s: float = 2.0, reference_hz: float | None = None, number: int = 1) -> Picture:
    heard = speech_picture.hear(sound, RATE)
    return speech_picture.speech_picture(
        heard, duration_s=duration_s, number=number, reference_hz=reference_hz, system="happy", name="speech"
    )


def every_picture() -> list[Picture]:
    dots = [Dot("base", 0, 0.1, 0.05, 0.2), Dot("base", 0, 0.05, None, None, True)]
    points = [FrontierPoint(0.5, 0.001, 0.4, False), FrontierPoint(1.0, 0.004, 0.8, True)]
    return [
        speech(voice(200.0, rate=RATE)),
        pictures.dot_plot("Recall", dots, SHARE, name="dots"),
        pictures.answers("base", 0, {"happy": 3, "sad": 1}, "happy", name="answers"),
        pictures.training_curve("total", Curve(((1, 2.0), (5, 1.0)), ((5, 1.2),)), name="curve"),
        pictures.codebook_bars("KL", [0.02, 0.01], margin=None, name="bars"),
        pictures.frontier_curve("Recall", points, SHARE, 0.01, name="frontier"),
    ]


def test_a_tone_is_inked_at_its_frequency():
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    levels = speech_picture.spectrogram(tone, RATE)
    rows = np.geomspace(LOW_HZ, HIGH_HZ, len(levels))
    loudest = rows[levels[:, 20:80].mean(axis=1).argmax()]
    assert abs(np.log2(loudest / 1000)) < 0.06
    assert levels.max() == 0
    assert (levels[np.abs(np.log2(rows / 1000)) > 0.5, 20:80] < -40).all()


def test_silence_has_no_ink():
    levels = speech_picture.spectrogram(silence(0.5, RATE), RATE)
    assert (levels == levels.min()).all()
    assert levels.min() < -50


@pytest.mark.parametrize("hz", [110.0, 200.0, 400.0])
def test_the_contour_lies_on_the_pitch(hz: float):
    drawn = speech(voice(hz, rate=RATE))
    contour = np.concatenate(paths(drawn, "--system-1"))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 4
    assert np.interp(middle, contour[:, 0], contour[:, 1]) == pytest.approx(height_of(hz), abs=0.5)
    assert f"median pitch {hz:.0f} Hz" in drawn.alt


def test_the_row_shares_its_time_axis():
    drawn = speech(voice(200.0, duration_s=1.0, rate=RATE), duration_s=2.0)
    contour = np.concatenate(paths(drawn, "--system-1"))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    assert contour[:, 0].min() < LEFT + 15
    assert middle - 15 < contour[:, 0].max() <= middle + 1


def test_the_reference_is_drawn_and_told():
    drawn = speech(voice(200.0, rate=RATE), reference_hz=100.0)
    dashed = [path for path in paths(drawn, "--faint") if np.ptp(path[:, 0]) == WIDTH - LEFT - RIGHT]
    assert [path[0, 1] for path in dashed] == [pytest.approx(height_of(100.0), abs=0.01)]
    assert "12.0 semitones above the first" in drawn.alt


@pytest.mark.parametrize("sound", [silence(1.0, RATE), silence(0.01, RATE), voice(200.0, 0.02, rate=RATE)])
def test_sounds_without_pitch_are_drawn_all_the_same(sound: np.ndarray):
    drawn = speech(sound)
    assert "too little is voiced" in drawn.alt
    assert not paths(drawn, "--system-1")


def test_dots_lie_where_the_numbers_say():
    dots = [Dot("base", 0, 0.25, 0.2, 0.3), Dot("happy", 1, 0.75, 0.7, 0.8), Dot("real", 2, 1.0, None, None)]
    drawn = pictures.dot_plot("Recall", dots, SHARE, name="dots")
    (first,), (second,), (third,) = (markers(drawn, f"--system-{number}") for number in range(3))
    assert second[0] - first[0] == pytest.approx(2 * (third[0] - second[0]), abs=0.05)
    line = next(path for path in paths(drawn, "--system-0") if len(path) == 2)
    assert np.ptp(line[:, 0]) == pytest.approx(0.1 / 0.5 * (second[0] - first[0]), abs=0.05)
    assert {"25.0 %", "75.0 %", "100.0 %", "base", "happy", "real"} <= set(labels(drawn))
    assert "base 25.0 % [20.0, 30.0]" in drawn.alt


def test_bars_are_as_long_as_the_shares():
    drawn = pictures.answers("base", 0, {"happy": 3, "sad": 1, "angry": 0}, "happy", name="answers")
    (target,) = paths(drawn, "--system-0")
    others = paths(drawn, "--fill")
    assert np.ptp(target[:, 0]) == pytest.approx(3 * max(np.ptp(bar[:, 0]) for bar in others), abs=0.05)
    assert {"75%", "25%", "0%"} <= set(labels(drawn))


def test_codebooks_hang_from_the_zero_line():
    drawn = pictures.codebook_bars("ΔNLL", [0.02, -0.01], margin=0.01, name="bars")
    (above,), (below,) = paths(drawn, "--system-1"), paths(drawn, "--system-0")
    assert np.ptp(above[:, 1]) == pytest.approx(2 * np.ptp(below[:, 1]), abs=0.05)
    assert above[:, 1].max() == pytest.approx(below[:, 1].min(), abs=0.01)
    assert "margin 0.01" in labels(drawn)
    assert "−0.01" in drawn.alt


def test_wide_terms_are_drawn_on_a_log_scale():
    drawn = pictures.training_curve("ewc", Curve(((1, 0.1), (2, 1.0), (3, 10.0)), ()), name="curve")
    (line,) = [path for path in paths(drawn, "--faint") if len(path) == 3]
    steps = np.diff(line[:, 1])
    assert steps[0] == pytest.approx(steps[1], abs=0.05)
    assert "log scale" in drawn.alt
    narrow = pictures.training_curve("total", Curve(((1, 1.0), (2, 2.0), (3, 4.0)), ()), name="curve")
    (line,) = [path for path in paths(narrow, "--faint") if len(path) == 3]
    assert np.diff(line[:, 1])[1] == pytest.approx(2 * np.diff(line[:, 1])[0], abs=0.05)
    assert "log scale" not in narrow.alt


def test_the_recommended_intensity_is_ringed():
    points = [FrontierPoint(i, 0.01 * i, i / 2, i == 1.0) for i in (0.5, 1.0, 1.5)]
    drawn = pictures.frontier_curve("Recall", points, SHARE, None, name="frontier")
    ((x, y),) = markers(drawn, "stroke: var(--ink)")
    assert (x, y) == markers(drawn, "--system-1")[1]
    assert "1 recommended" in labels(drawn)


def test_pictures_are_clean_and_the_same_every_time():
    first, second = every_picture(), every_picture()
    assert [drawn.svg for drawn in first] == [drawn.svg for drawn in second]
    ids: list[str] = []
    for drawn in first:
        root = ElementTree.fromstring(drawn.svg)
        assert root.get("aria-label") == drawn.alt
        assert not re.search(r"https?:|<metadata|<style|#01010|#01020", drawn.svg)
        own = re.findall(r' id="(\w+)"', drawn.svg)
        assert set(re.findall(r"(?:url\(#|href=\"#)(\w+)", drawn.svg)) == set(own)
        ids += own
    assert len(ids) == len(set(ids)) > 0


def test_the_users_matplotlib_settings_change_nothing():
    plain = every_picture()[1:]
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 40.0, "axes.facecolor": "red", "lines.linewidth": 9.0}):
        assert every_picture()[1:] == plain
    assert dict(matplotlib.rcParams) == before


def test_names_are_text_and_never_markup():
    evil = "<b>$x$&"
    drawn = pictures.dot_plot(evil, [Dot(evil, 0, 0.5, None, None)], SHARE, name="dots")
    assert evil in labels(drawn)
    assert ElementTree.fromstring(drawn.svg).get("aria-label", "").startswith(evil)


def test_letters_that_matplotlib_lacks_are_left_to_the_browser():
    assert "开心" in labels(pictures.answers("base", 0, {"开心": 1}, "happy", name="answers"))


def test_every_scale_draws():
    for unit in SCALES:
        drawn = pictures.dot_plot(unit, [Dot("base", 0, 1.0, 0.9, 1.1)], scale_of(unit), name="dots")
        assert len(markers(drawn, "--system-0")) == 1
