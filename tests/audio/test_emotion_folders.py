"""Plain folders named for emotions: which names count, and what is told of those that don't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from affetto.audio.corpora import load_clips
from affetto.audio.overview import examine
from affetto.types import EMOTIONS, Problem

Tone = Callable[..., Path]


def told(folder: Path, *emotions: str) -> list[Problem]:
    return load_clips([folder], emotions=emotions)[1]


def test_a_folder_that_names_no_known_emotion_is_told_beside_folders_that_do(tone: Tone, tmp_path: Path) -> None:
    for name in ("happy/a", "hapyy/a", "hapyy/deeper/b", "general/a", "amused/a"):
        tone(f"cf/{name}.wav", duration_s=0.1)
    amused, hapyy = told(tmp_path / "cf")
    assert (hapyy.where, hapyy.kind) == ("cf/hapyy", "mislabelled")
    assert "(did you mean 'happy'" in hapyy.message
    assert "2 clips without an emotion count as general speech" in hapyy.message
    assert "rename the folder general" in hapyy.message
    assert "add 'hapyy' to `emotions`" in hapyy.message
    assert (amused.where, "1 clip without" in amused.message) == ("cf/amused", True)
    assert told(tmp_path / "cf", "amused", "hapyy") == []


def test_a_folder_beside_general_speech_is_told_too_and_its_clips_are_kept(tone: Tone, tmp_path: Path) -> None:
    for name in ("General/a", "amused/a"):
        tone(f"cf/anna/{name}.wav", duration_s=0.1)
    clips, (problem,) = load_clips([tmp_path / "cf"])
    assert problem.where == "cf/anna/amused"
    assert [clip.emotion for clip in clips] == [None, None]


def test_folders_that_say_nothing_of_emotions_are_let_alone(tone: Tone, tmp_path: Path) -> None:
    for name in ("anna/a", "wavs/b", "c"):
        tone(f"readings/{name}.wav", duration_s=0.1)
        tone(f"happy/{name}.wav", duration_s=0.1)
    assert told(tmp_path / "readings") == []
    assert told(tmp_path / "happy") == [], "an emotion's speakers"


def test_clips_whose_emotion_a_table_says_are_not_doubted(tone: Tone, tmp_path: Path) -> None:
    for name in ("happy/a", "other/b"):
        tone(f"cf/{name}.wav", duration_s=0.1)
    assert len(told(tmp_path / "cf")) == 1
    (tmp_path / "cf" / "metadata.csv").write_text("file,emotion\nother/b.wav,proud\n", "utf-8")
    assert told(tmp_path / "cf") == []


def test_it_is_a_doubt_that_costs_no_clip(tone: Tone, tmp_path: Path) -> None:
    for name in ("happy/a", "amused/a"):
        tone(f"cf/{name}.wav", duration_s=0.8).with_suffix(".txt").write_text("some words", "utf-8")
    found = examine([tmp_path / "cf"], EMOTIONS)
    assert found.problems == ()
    assert len(found.clips) == 2
    assert "cf/amused" in {doubt.where for doubt in found.doubts}
