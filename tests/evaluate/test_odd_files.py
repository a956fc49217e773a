"""Files of every kind that people have: each is scored as the same voice would be, or fails alone and says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from affetto.evaluate.folder import evaluate_folder
from affetto.evaluate.results import FileRow, System
from evaluate_fakes import RATE, fake_judges, silence, voice


def plain(path: Path) -> None:
    soundfile.write(path, voice(150, 1.0), RATE)


def stereo(path: Path) -> None:
    soundfile.write(path, np.stack([voice(150, 1.0), voice(150, 1.0)], axis=1), RATE)


def at_8khz(path: Path) -> None:
    soundfile.write(path, voice(150, 1.0, rate=8_000), 8_000)


def at_96khz(path: Path) -> None:
    soundfile.write(path, voice(150, 1.0, rate=96_000), 96_000, subtype="PCM_24")


def clipped(path: Path) -> None:
    soundfile.write(path, np.clip(voice(150, 1.0, level=2.0), -1, 1), RATE)


def very_long(path: Path) -> None:
    soundfile.write(path, voice(150, 60.0), RATE)


def very_short(path: Path) -> None:
    soundfile.write(path, voice(150, 0.05), RATE)


def silent(path: Path) -> None:
    soundfile.write(path, silence(1.0), RATE)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without_samples(path: Path) -> None:
    soundfile.write(path, silence(0.0), RATE)


def corrupt(path: Path) -> None:
    path.write_bytes(b"RIFF\x24\x00\x00\x00WAVEjunk" + bytes(range(200)))


def cut_off(path: Path) -> None:
    plain(path)
    path.write_bytes(path.read_bytes()[:9_000])


def not_finite(path: Path) -> None:
    samples = voice(150, 1.0)
    samples[500] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


GOOD: tuple[Callable[[Path], None], ...] = (plain, stereo, at_8khz, at_96khz, clipped, very_long)
BAD: dict[Callable[[Path], None], str] = {
    very_short: "too-short", silent: "silent", empty: "empty", without_samples: "empty", corrupt: "unreadable",
    cut_off: "unreadable", not_finite: "not-finite",
}  # fmt: skip


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> System:
    """All of them evaluated together."""
    folder = tmp_path_factory.mktemp("odd")
    for make in (*GOOD, *BAD):
        make(folder / f"{make.__name__}.wav")
        (folder / f"{make.__name__}.txt").write_text("fifteen")
    return evaluate_folder(folder, "happy", folder / "r.json", judges=fake_judges())["systems"][0]


def row_of(system: System, make: Callable[[Path], None]) -> FileRow:
    return next(row for row in system["files"] if row["file"] == f"{make.__name__}.wav")


@pytest.mark.parametrize("make", GOOD, ids=lambda make: make.__name__)
def test_a_voice_is_the_same_voice_in_any_file(system: System, make: Callable[[Path], None]) -> None:
    row, values = row_of(system, make), row_of(system, make)["values"]
    assert row["error"] is None
    assert row["duration_s"] == pytest.approx(60.0 if make is very_long else 1.0, abs=1e-3)
    assert values["f0_median_st"] == pytest.approx(12 * np.log2(1.5), abs=0.1)
    assert (values["heard"], values["wer"]) == ("fifteen", 0.0)
    assert values["posterior"] == pytest.approx(float(row_of(system, plain)["values"]["posterior"] or 0), abs=0.01)
    if make is not clipped:
        assert values["level_db"] == pytest.approx(-20, abs=0.3)
    else:
        assert -3 < float(values["level_db"] or -99) < 0


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_a_file_that_holds_no_speech_fails_alone_and_says_why(system: System, make: Callable[[Path], None]) -> None:
    row = row_of(system, make)
    assert str(row["error"]).startswith(BAD[make])
    assert set(row["values"].values()) == {None}


def test_what_failed_is_counted_and_enters_no_mean(system: System) -> None:
    assert (system["num_files"], system["num_failed"]) == (len(GOOD) + len(BAD), len(BAD))
    assert system["metrics"]["recall"]["n"] == system["metrics"]["wer"]["n"] == len(GOOD)
    assert [row["file"] for row in system["files"]] == sorted(row["file"] for row in system["files"])
