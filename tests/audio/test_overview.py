"""`affetto data`: import, check and count, on folders whose contents are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from affetto.audio.doubts import odd_tempos
from affetto.audio.manifest import read_manifest
from affetto.audio.overview import examine, statistics
from affetto.cli import app
from affetto.types import EMOTIONS, Clip

Tone = Callable[..., Path]


@pytest.fixture
def crema_d(tone: Tone, tmp_path: Path) -> Path:
    for actor in ("1001", "1002"):
        for sentence in ("IEO", "DFA", "WSI", "TIE"):
            for emotion in ("HAP", "NEU"):
                tone(f"CREMA-D/AudioWAV/{actor}_{sentence}_{emotion}_XX.wav", duration_s=1.5, hertz=200)
    return tmp_path / "CREMA-D"


def called(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_a_layout_becomes_a_manifest_and_its_sounds_stay(crema_d: Path, tmp_path: Path) -> None:
    status, said = called("import", crema_d, "--out", tmp_path / "out" / "manifest.jsonl")
    assert status == 0
    assert "16 clips, 0 left out" in said
    clips, problems = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert problems == []
    assert {clip.emotion for clip in clips} == {"happy", "neutral"}
    assert all(clip.audio.is_file() and clip.audio.is_relative_to(crema_d) for clip in clips)


def test_what_is_left_out_is_told_and_decides_the_status(crema_d: Path, tone: Tone, tmp_path: Path) -> None:
    tone("CREMA-D/AudioWAV/1001_IEO_SUR_XX.wav", duration_s=0.5)
    out = tmp_path / "manifest.jsonl"
    assert called("import", crema_d, "--out", out)[0] == 1
    assert called("import", crema_d, "--out", out, "--skip-bad-clips")[0] == 0
    assert len(read_manifest(out)[0]) == 16


def test_checking_tells_everything_at_once(crema_d: Path, tone: Tone) -> None:
    status, said = called("check", crema_d)
    assert status == 0
    assert "16 clips are good, 0 are not" in said
    tone("CREMA-D/AudioWAV/1001_TAI_HAP_XX.wav", duration_s=0.01)
    (crema_d / "AudioWAV" / "1002_TAI_HAP_XX.wav").write_bytes(b"torn")
    status, said = called("check", crema_d)
    assert status == 1
    assert "too-short" in said
    assert "unreadable" in said
    assert "16 clips are good, 2 are not" in said


def test_counts_are_by_emotion_and_split(crema_d: Path) -> None:
    status, said = called("stats", crema_d, "--json")
    assert status == 0
    rows = {row["emotion"]: row for row in json.loads(said)}
    assert rows["happy"]["clips"] == 8
    assert rows["happy"]["speakers"] == 2
    assert rows["happy"]["texts"] == 4
    assert rows["happy"]["minutes"] == pytest.approx(8 * 1.5 / 60)
    assert rows["happy"]["train"] + rows["happy"]["validation"] + rows["happy"]["test"] == 8
    assert rows["happy"]["intensities"] == {"1": 8}
    assert (rows["happy"]["shortest_s"], rows["happy"]["longest_s"]) == (1.5, 1.5)


def test_how_strongly_clips_are_acted_is_counted_where_it_differs(crema_d: Path, tone: Tone) -> None:
    assert "acted at" not in called("stats", crema_d)[1]
    tone("CREMA-D/AudioWAV/1001_IEO_HAP_LO.wav", duration_s=1.5, hertz=200)
    assert "1×0.4 8×1" in called("stats", crema_d)[1]


def test_a_tempo_out_of_the_ordinary_is_a_doubt_and_no_problem() -> None:
    clips = [Clip(str(n), Path(f"/{n}.wav"), "ten letters", None, "a", "c") for n in range(10)]
    seconds = {str(n): 1.0 + 0.01 * n for n in range(10)}
    assert odd_tempos(clips, seconds) == []
    (found,) = odd_tempos(clips, seconds | {"3": 4.0})
    assert (found.where, found.kind) == ("3", "odd-tempo")
    assert "3.8 times slower than a usually reads" in found.message
    assert odd_tempos(clips[:5], seconds | {"3": 4.0}) == [], "too few to know the usual tempo"


def test_doubtful_clips_are_kept(tone: Tone, tmp_path: Path) -> None:
    for number in range(9):
        tone(f"mine/happy/{number}.wav", duration_s=2.0 if number else 12.0, hertz=200 + number)
        (tmp_path / f"mine/happy/{number}.txt").write_text(f"some words {number}")
    found = examine([tmp_path / "mine"], EMOTIONS)
    assert found.problems == ()
    assert len(found.clips) == 9
    assert [doubt.where for doubt in found.doubts if doubt.kind == "odd-tempo"] == ["mine-happy-0"]
    assert statistics(found.clips)[0]["clips"] == 9
