"""A folder of broken files: each is found, by its kind, and the good ones are kept."""

from __future__ import annotations

import os
import wave
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_signals import sine
from numpy.typing import NDArray
from rich.console import Console

from affetto.audio.checks import check_clips, good_clips, problem_table
from affetto.types import EMOTIONS, Clip, Problem

RATE = 24_000
MakeClip = Callable[..., Clip]


@dataclass(frozen=True)
class Case:
    """How a file gets written, what is wrong with it, and what is wrong with what the clip says about it."""

    write: Callable[[Path], object]
    kinds: tuple[str, ...] = ()
    suffix: str = ".wav"
    text: str | None = "Some words that fit."
    emotion: str | None = None
    start_s: float | None = None
    end_s: float | None = None


def _sound(samples: NDArray[np.floating], rate: int = RATE, **how: str) -> Callable[[Path], object]:
    return lambda path: soundfile.write(path, samples, rate, **how)


def _cut(samples: NDArray[np.floating], share: float) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        soundfile.write(path, samples, RATE, subtype="PCM_16")
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return write


def _header_only(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", "none"))


def _with(samples: NDArray[np.float64], value: float) -> NDArray[np.float64]:
    changed = samples.copy()
    changed[100] = value
    return changed


_GOOD = sine(1.5, RATE)
_NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, int(1.5 * RATE))

CASES = {
    "fine": Case(_sound(_GOOD)),
    "stereo": Case(_sound(np.stack([_GOOD, 0.5 * _GOOD], axis=1))),
    "8 kHz": Case(_sound(sine(1.5, 8_000), 8_000)),
    "96 kHz": Case(_sound(sine(1.5, 96_000), 96_000)),
    "24 bit": Case(_sound(_GOOD, subtype="PCM_24")),
    "float": Case(_sound(_GOOD, subtype="FLOAT")),
    "mp3": Case(_sound(_GOOD, format="MP3"), suffix=".mp3"),
    "ogg": Case(_sound(_GOOD), suffix=".ogg"),
    "flac": Case(_sound(_GOOD), suffix=".flac"),
    "flac under the name of a wav": Case(_sound(_GOOD, format="FLAC")),
    "quiet": Case(_sound(0.01 * _GOOD)),
    "emotion": Case(_sound(_GOOD), emotion="happy"),
    "segment": Case(_sound(sine(40.0, 8_000), 8_000), start_s=10.0, end_s=12.0),
    "missing": Case(lambda _: None, ("missing-file",)),
    "no bytes": Case(Path.touch, ("empty",)),
    "header only": Case(_header_only, ("empty",)),
    "half a header": Case(_cut(_GOOD, 20 / 72_044), ("unreadable",)),
    "truncated wav": Case(_cut(_GOOD, 0.6), ("unreadable",)),
    "truncated flac": Case(_cut(_NOISE, 0.6), ("unreadable",), suffix=".flac"),
    "text file": Case(lambda path: path.write_text("these are no samples\n" * 50), ("unreadable",)),
    "folder": Case(Path.mkdir, ("unreadable",)),
    "no permission": Case(lambda path: (_sound(_GOOD)(path), path.chmod(0)), ("unreadable",)),
    "raw": Case(lambda path: path.write_bytes(bytes(1_000)), ("unreadable",), suffix=".raw"),
    "zeros": Case(_sound(np.zeros(36_000)), ("silent",)),
    "far too quiet": Case(_sound(0.001 * _GOOD), ("silent",)),
    "channels cancel": Case(_sound(np.stack([_GOOD, -_GOOD], axis=1)), ("silent",)),
    "clipped": Case(_sound(np.clip(8 * _GOOD, -1, 1)), ("clipped",)),
    "one channel clipped": Case(_sound(np.stack([_GOOD, np.clip(8 * _GOOD, -1, 1)], axis=1)), ("clipped",)),
    "NaN": Case(_sound(_with(_GOOD, np.nan), subtype="FLOAT"), ("not-finite",)),
    "infinite": Case(_sound(_with(_GOOD, np.inf), subtype="FLOAT"), ("not-finite",)),
    "too short": Case(_sound(sine(0.2, RATE)), ("too-short",), text="Hey."),
    "too long": Case(_sound(sine(31.0, 8_000), 8_000), ("too-long",), text="Long words. " * 10),
    "segment behind the end": Case(_sound(_GOOD), ("bad-segment",), start_s=1.0, end_s=3.0),
    "no text": Case(_sound(_GOOD), ("missing-text",), text=None),
    "blank text": Case(_sound(_GOOD), ("missing-text",), text=" \n"),
    "no letters": Case(_sound(_GOOD), ("wrong-text",), text="12 — 34!"),
    "too much text": Case(_sound(_GOOD), ("wrong-text",), text="word " * 20),
    "too little text": Case(_sound(sine(6.0, RATE)), ("wrong-text",), text="Oh."),
    "unknown emotion": Case(_sound(_GOOD), ("unknown-emotion",), emotion="hapy"),
    "silent, too short, no text, unknown": Case(
        _sound(np.zeros(2_400)), ("silent", "too-short", "missing-text", "unknown-emotion"), text="", emotion="calm"
    ),
    "missing and no letters": Case(lambda _: None, ("missing-file", "wrong-text"), text="?"),
}


def _build(folder: Path, make_clip: MakeClip) -> dict[str, Clip]:
    clips = {}
    for name, case in CASES.items():
        path = folder / f"{name}{case.suffix}"
        case.write(path)
        clips[name] = make_clip(
            name, audio=path, text=case.text, emotion=case.emotion, start_s=case.start_s, end_s=case.end_s
        )
    return clips


@pytest.mark.parametrize("workers", [0, 3])
def test_pitfall_26_every_broken_file_is_named_by_kind(tmp_path: Path, make_clip: MakeClip, workers: int) -> None:
    clips = _build(tmp_path, make_clip)
    if os.access(clips["no permission"].audio, os.R_OK):  # root may read everything
        del clips["no permission"]
    problems = check_clips(list(clips.values()), emotions=EMOTIONS, workers=workers)
    found = {name: tuple(problem.kind for problem in problems if problem.where == name) for name in clips}
    assert found == {name: CASES[name].kinds for name in clips}
    assert sum(len(case.kinds) > 0 for case in CASES.values()) >= 20
    good = good_clips(clips.values(), problems)
    assert [clip.id for clip in good] == [name for name in clips if not CASES[name].kinds]
    for problem in problems:
        if problem.kind in ("missing-file", "unreadable", "empty"):
            assert str(clips[problem.where].audio) in problem.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_permission(tmp_path: Path, make_clip: MakeClip) -> None:
    CASES["no permission"].write(tmp_path / "a.wav")
    (problem,) = check_clips([make_clip("a", audio=tmp_path / "a.wav")], emotions=None)
    assert (problem.kind, "chmod" in problem.message) == ("unreadable", True)


def test_no_permission_is_told_where_the_system_says_so(
    tmp_path: Path, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sound(_GOOD)(tmp_path / "a.wav")
    monkeypatch.setattr(os, "access", lambda *_: False)
    (problem,) = check_clips([make_clip("a", audio=tmp_path / "a.wav")], emotions=None)
    assert (problem.kind, "chmod" in problem.message) == ("unreadable", True)


def test_levels_are_judged_at_their_thresholds(tmp_path: Path, make_clip: MakeClip) -> None:
    def kinds(samples: NDArray[np.floating]) -> list[str]:
        soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
        clip = make_clip("a", audio=tmp_path / "a.wav")
        return [problem.kind for problem in check_clips([clip], emotions=None)]

    assert kinds(sine(1.0, RATE, peak=10 ** (-59 / 20))) == []
    assert kinds(sine(1.0, RATE, peak=10 ** (-61 / 20))) == ["silent"]
    few, many = sine(1.0, RATE), sine(1.0, RATE)
    few[:23], many[:25] = 1.0, -1.0  # 0.1 % of 24000 is 24
    assert kinds(few) == []
    assert kinds(many) == ["clipped"]


def test_trouble_in_a_later_block_is_found(tmp_path: Path, make_clip: MakeClip) -> None:
    samples = sine(20.0, 48_000)
    samples[-5] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 48_000, subtype="FLOAT")
    clip = make_clip("a", audio=tmp_path / "a.wav", text="Words that last for twenty seconds.")
    assert [problem.kind for problem in check_clips([clip], emotions=None)] == ["not-finite"]
    assert check_clips([replace(clip, end_s=19.0)], emotions=None) == [], "the segment leaves it out"


def test_near_emotions_are_told(tmp_path: Path, make_clip: MakeClip) -> None:
    _sound(_GOOD)(tmp_path / "a.wav")
    clip = make_clip("a", audio=tmp_path / "a.wav", emotion="suprised")
    (problem,) = check_clips([clip], emotions=EMOTIONS)
    assert "isn't known (did you mean 'surprised'" in problem.message
    assert "add it to `emotions`" in problem.message
    assert check_clips([clip], emotions=None) == []
    assert check_clips([clip], emotions=["suprised"]) == []


def test_a_clip_is_only_as_good_as_its_context(tmp_path: Path, make_clip: MakeClip) -> None:
    _sound(_GOOD)(tmp_path / "a.wav")
    clips = [
        make_clip("first", audio=tmp_path / "gone.wav"),
        make_clip("second", audio=tmp_path / "a.wav", context=("first",)),
        make_clip("third", audio=tmp_path / "a.wav", context=("second",)),
        make_clip("alone", audio=tmp_path / "a.wav"),
    ]
    problems = check_clips(clips, emotions=None)
    assert [(problem.where, problem.kind) for problem in problems] == [
        ("first", "missing-file"), ("second", "bad-context"), ("third", "bad-context"),
    ]  # fmt: skip
    assert [clip.id for clip in good_clips(clips, problems)] == ["alone"]


def test_ids_that_occur_twice(tmp_path: Path, make_clip: MakeClip) -> None:
    _sound(_GOOD)(tmp_path / "a.wav")
    clip = make_clip("a", audio=tmp_path / "a.wav")
    assert [problem.kind for problem in check_clips([clip, clip], emotions=None)] == ["duplicate-id"]


def test_table_hides_nothing_and_shows_markup_as_it_is() -> None:
    problems = [Problem(f"clip-{number}", "silent", "[bold]peak[/bold] is zero") for number in range(150)]
    problems.append(Problem("last", "clipped", "too loud"))
    console = Console(width=120, record=True, quiet=False, file=Path(os.devnull).open("w"))  # noqa: SIM115
    console.print(problem_table(problems))
    shown = console.export_text()
    console.file.close()
    assert "151 problems" in shown
    assert "150 silent, 1 clipped" in shown
    assert "[bold]peak[/bold] is zero" in shown
    assert all(f"clip-{number} " in shown for number in range(150))
    assert "last" in shown
