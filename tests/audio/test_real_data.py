"""RAVDESS and LJSpeech recordings themselves, with the quirks that their authors published."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from affetto.audio.checks import check_clips
from affetto.audio.corpora import load_clips
from affetto.audio.manifest import read_manifest, write_manifest
from affetto.audio.sound import read_sound, sound_info
from affetto.audio.splits import assert_disjoint, assign_splits
from affetto.types import SPLITS, Clip, Problem


@pytest.fixture(scope="module")
def loaded(shared_data: Path) -> tuple[list[Clip], list[Problem]]:
    return load_clips([shared_data])


def test_nothing_is_lost(loaded: tuple[list[Clip], list[Problem]], shared_data: Path) -> None:
    clips, problems = loaded
    assert {clip.audio for clip in clips} == set(shared_data.rglob("*.flac"))
    counts = Counter(clip.corpus for clip in clips)
    assert counts == {"ravdess": 361, "ljspeech": 110}
    emotions = Counter(clip.emotion for clip in clips if clip.corpus == "ravdess")
    assert emotions == {
        "neutral": 24, "calm": 48, "happy": 48, "sad": 48, "angry": 49, "fearful": 48, "disgusted": 48, "surprised": 48,
    }  # fmt: skip
    assert len({clip.speaker for clip in clips}) == 7
    assert [problem.where for problem in problems] == ["RAVDESS/Actor_05/03-01-05-01-01-01-02.flac"]


def test_the_file_too_many_says_what_is_heard_on_it(loaded: tuple[list[Clip], list[Problem]]) -> None:
    (extra,) = (clip for clip in loaded[0] if clip.speaker == "ravdess-05" and clip.audio.stem.endswith("-02"))
    twins = [
        clip
        for clip in loaded[0]
        if clip.corpus == "ravdess"
        and sound_info(clip.audio) == sound_info(extra.audio)
        and np.array_equal(soundfile.read(clip.audio)[0], soundfile.read(extra.audio)[0])
    ]
    assert len(twins) == 2
    assert {(clip.text, clip.emotion, clip.speaker) for clip in twins} == {
        ("Dogs are sitting by the door.", "angry", "ravdess-05")
    }


def test_all_recordings_pass_the_checks(loaded: tuple[list[Clip], list[Problem]]) -> None:
    known = ["happy", "sad", "angry", "fearful", "surprised", "neutral", "calm", "disgusted"]
    chosen = loaded[0][::4] + [clip for clip in loaded[0] if sound_info(clip.audio).channels > 1]
    assert check_clips(list({clip.id: clip for clip in chosen}.values()), emotions=known) == []


def test_stereo_and_other_rates_are_read(loaded: tuple[list[Clip], list[Problem]]) -> None:
    odd = [
        (clip, info)
        for clip in loaded[0]
        if clip.corpus == "ravdess" and ((info := sound_info(clip.audio)).channels != 1 or info.sample_rate != 48_000)
    ]
    assert Counter((info.channels, info.sample_rate) for _, info in odd) == {(2, 48_000): 3, (1, 22_050): 7}
    for clip, info in odd:
        samples = read_sound(clip.audio, 24_000)
        assert samples.ndim == 1
        assert abs(len(samples) - info.duration_s * 24_000) <= 1
        raw, _ = soundfile.read(clip.audio, always_2d=True)
        level, expected = np.sqrt(np.mean(samples**2)), np.sqrt(np.mean(raw.mean(axis=1) ** 2))
        assert level == pytest.approx(expected, rel=0.02), "resampling keeps the loudness"


def test_wav_layout_as_published_reads_like_flac(shared_data: Path, tmp_path: Path) -> None:
    chosen = sorted((shared_data / "RAVDESS" / "Actor_01").glob("*.flac"))[:3]
    chosen += sorted((shared_data / "LJSpeech-1.1" / "wavs").glob("*.flac"))[:2]
    for flac in chosen:
        wav = (tmp_path / flac.relative_to(shared_data)).with_suffix(".wav")
        wav.parent.mkdir(parents=True, exist_ok=True)
        samples, rate = soundfile.read(flac, dtype="int16")
        soundfile.write(wav, samples, rate, subtype="PCM_16")
    rows = (shared_data / "LJSpeech-1.1" / "metadata.csv").read_text("utf-8").splitlines()
    stems = {flac.stem for flac in chosen}
    kept = [row for row in rows if row.split("|")[0] in stems]
    (tmp_path / "LJSpeech-1.1" / "metadata.csv").write_text("\n".join(kept), "utf-8")
    wavs, problems = load_clips([tmp_path])
    flacs = {clip.id: clip for clip in load_clips([shared_data])[0]}
    assert problems == []
    assert len(wavs) == len(kept) + 3 == 5
    for clip in wavs:
        twin = flacs[clip.id]
        assert (clip.text, clip.emotion, clip.speaker) == (twin.text, twin.emotion, twin.speaker)
        np.testing.assert_array_equal(read_sound(clip.audio, 24_000), read_sound(twin.audio, 24_000))


def test_manifest_of_everything_round_trips(loaded: tuple[list[Clip], list[Problem]], tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.jsonl", loaded[0])
    assert read_manifest(tmp_path / "manifest.jsonl") == (loaded[0], [])


@pytest.mark.parametrize("by_speaker", [False, True])
def test_pitfall_23_real_corpora_split_without_leaks(
    loaded: tuple[list[Clip], list[Problem]], by_speaker: bool
) -> None:
    placed, problems = assign_splits(loaded[0], by_speaker=by_speaker)
    sets = {split: [clip for clip in placed if clip.split == split] for split in SPLITS}
    assert_disjoint({"train": sets["train"], "held out": sets["validation"] + sets["test"]}, "text")
    acted = {split: [clip for clip in inside if clip.corpus == "ravdess"] for split, inside in sets.items()}
    if by_speaker:
        assert_disjoint(acted, "speaker")
    assert_disjoint({"validation": acted["validation"], "test": acted["test"]}, "speaker")
    for split, inside in sets.items():
        assert len({clip.emotion for clip in inside}) == 9, f"{split} has every emotion and general speech"
    assert Counter(clip.split for clip in placed if clip.corpus == "ljspeech") == {
        "train": 88, "validation": 11, "test": 11,
    }  # fmt: skip
    told = [problem.message for problem in problems if problem.kind == "split-overlap"]
    assert any("validation and test share 1 text" in message for message in told)
