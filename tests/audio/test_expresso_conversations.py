"""Expresso's conversations in miniature: two speakers on two channels, cut by the published voice activity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_signals import sine

from affetto.audio.checks import check_clips
from affetto.audio.corpora import load_clips
from affetto.audio.manifest import read_manifest, write_manifest
from affetto.audio.sound import SoundError, read_clip, read_sound
from affetto.audio.splits import assign_splits

Tone = Callable[..., Path]
RATE = 48_000
VOICE_ACTIVITY = """#VAD segments of Expresso long files. Format: "{filename/channel}\\t{vad segments}"
ex04-ex01_child-childdir_005/channel1\t(0.0, 0.8) (1.5, 2.0)
ex04-ex01_child-childdir_005/channel2\t(0.75, 1.5)
ex01-ex02_default_001/channel1\t(0.2, 1.9)
ex01-ex02_default_001/channel2\t(0.0, 0.4)
ex01_default_longform_00001\t(0.0, 12.5) (13.0, 15.5)
"""


def _conversation(folder: Path, name: str, hertz: tuple[float, float] = (200.0, 600.0)) -> Path:
    speakers, styles, _ = name.split("_")
    path = folder / "audio_48khz" / "conversational" / speakers / styles / f"{name}.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, np.stack([sine(2.0, RATE, hertz=one) for one in hertz], axis=1), RATE)
    return path


@pytest.fixture
def corpus(tmp_path: Path, tone: Tone) -> Path:
    folder = tmp_path / "expresso"
    tone("expresso/audio_48khz/read/ex04/happy/base/ex04_happy_00085.wav")
    (folder / "read_transcriptions.txt").write_text("ex04_happy_00085\tSo fun!\n")
    (folder / "VAD_segments.txt").write_text(VOICE_ACTIVITY)
    _conversation(folder, "ex04-ex01_child-childdir_005")
    _conversation(folder, "ex01-ex02_default_001")
    return folder


def test_each_stretch_is_a_clip_of_its_speaker_and_style(corpus: Path) -> None:
    clips, problems = load_clips([corpus])
    assert problems == []
    turns = [clip for clip in clips if clip.channel is not None]
    assert [(clip.id, clip.speaker, clip.emotion, clip.start_s, clip.end_s) for clip in turns] == [
        ("expresso-ex01-ex02_default_001-000", "expresso-ex02", "neutral", 0.0, 0.4),
        ("expresso-ex01-ex02_default_001-001", "expresso-ex01", "neutral", 0.2, 1.9),
        ("expresso-ex04-ex01_child-childdir_005-000", "expresso-ex04", "child", 0.0, 0.8),
        ("expresso-ex04-ex01_child-childdir_005-001", "expresso-ex01", "child_directed", 0.75, 1.5),
        ("expresso-ex04-ex01_child-childdir_005-002", "expresso-ex04", "child", 1.5, 2.0),
    ]
    assert [clip.text for clip in clips] == ["So fun!", *[None] * 5]


def test_a_clip_is_its_own_channel(corpus: Path, tmp_path: Path) -> None:
    clips, _ = load_clips([corpus])
    write_manifest(tmp_path / "manifest.jsonl", clips)
    again, problems = read_manifest(tmp_path / "manifest.jsonl")
    assert (again, problems) == (clips, [])
    for clip in (clip for clip in again if clip.channel is not None):
        samples = read_clip(clip, RATE)
        assert len(samples) == round((clip.end_s - clip.start_s) * RATE)  # type: ignore[operator]
        loudest = np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples)
        assert loudest == pytest.approx(200 if clip.channel == 1 else 600, abs=3)
    assert {problem.kind for problem in check_clips(again, emotions=None)} == {"missing-text"}


def test_a_conversation_is_never_torn_between_splits(corpus: Path) -> None:
    for number in range(2, 8):
        _conversation(corpus / "more", f"ex03-ex01_sad_{number:03d}").rename(
            corpus / "audio_48khz" / "conversational" / f"ex03-ex01_sad_{number:03d}.wav"
        )
        with (corpus / "VAD_segments.txt").open("a") as file:
            for channel in (1, 2):
                file.write(f"ex03-ex01_sad_{number:03d}/channel{channel}\t(0.0, 0.5) (0.6, 1.1) (1.2, 1.9)\n")
        (corpus / "more" / "audio_48khz" / "conversational" / "ex03-ex01" / "sad").rmdir()
    placed, _ = assign_splits(load_clips([corpus])[0], by_speaker=False)
    splits = Counter((clip.audio, clip.split) for clip in placed if clip.emotion == "sad")
    assert len(splits) == 6, "each of six conversations lies in one split"
    assert len({split for _, split in splits}) > 1


@pytest.mark.parametrize(
    ("spoil", "where", "kind", "told"),
    [
        ("no voice activity", "conversational", "missing-file", "2 conversations are left out"),
        ("not listed", "ex01-ex02_default_001.wav", "bad-segment", "it isn't known who speaks when"),
        ("bad line", "VAD_segments.txt:3", "bad-row", "(start, end)"),
        ("name", "ex1_default.wav", "bad-row", "isn't that of a conversation"),
        ("style", "ex01-ex02_gloomy_001.wav", "unknown-emotion", "no style 'gloomy'"),
    ],
)
def test_what_is_wrong_is_told_and_the_rest_is_read(corpus: Path, spoil: str, where: str, kind: str, told: str) -> None:
    segments = corpus / "VAD_segments.txt"
    default = corpus / "audio_48khz" / "conversational" / "ex01-ex02" / "default" / "ex01-ex02_default_001.wav"
    if spoil == "no voice activity":
        segments.unlink()
    elif spoil == "not listed":
        segments.write_text("".join(line for line in VOICE_ACTIVITY.splitlines(True) if "default_001" not in line))
    elif spoil == "bad line":
        segments.write_text(VOICE_ACTIVITY.replace("(0.75, 1.5)", "(0.75; 1.5)"))
    else:
        default.rename(default.with_name(where))
    clips, problems = load_clips([corpus])
    assert "expresso-ex04_happy_00085" in {clip.id for clip in clips}
    [problem] = problems
    assert (problem.kind, problem.where.endswith(where)) == (kind, True)
    assert told in problem.message


def test_a_channel_that_a_file_lacks_is_an_error(tone: Tone, make_clip: Callable[..., object]) -> None:
    path = tone("mono.wav")
    with pytest.raises(SoundError, match="has 1 channel and no channel 2"):
        read_sound(path, 16_000, channel=2)
    [problem] = check_clips([make_clip("x", audio=path, channel=2, text="A few words here.")], emotions=None)  # type: ignore[list-item]
    assert problem.kind == "bad-segment"


@pytest.mark.parametrize("channel", ["0", "-1", "1.0", "true", '"1"'])
def test_channels_are_counted_from_one(tmp_path: Path, channel: str) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(f'{{"id": "a", "audio": "a.wav", "channel": {channel}}}\n')
    clips, [problem] = read_manifest(path)
    assert clips == []
    assert "whole number from 1" in problem.message
