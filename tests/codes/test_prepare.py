"""`prepare`: what is coded, what is left out and why, and what a second run does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from code_signals import RATE, hiss, make_clips, manifest, vowel

from affetto import file_hashes
from affetto.audio.sound import read_sound, write_sound
from affetto.codes import prepare as stage
from affetto.codes.cache import CodeCache
from affetto.codes.prepare import Prepared, prepare
from affetto.codes.vocoder import VocoderCodec
from affetto.errors import DataError
from affetto.types import EMOTIONS, Clip, Problem


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the sounds that were coded since the list was cleared."""
    lengths: list[int] = []
    encode = VocoderCodec.encode

    def counting(self: VocoderCodec, samples: np.ndarray) -> np.ndarray:
        lengths.append(len(samples))
        return encode(self, samples)

    monkeypatch.setattr(VocoderCodec, "encode", counting)
    return lengths


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Path]:
    """Write clips to a manifest: data(clips, name="a")."""

    def write(clips: list[Clip], name: str = "manifest") -> Path:
        return manifest(tmp_path / "data" / f"{name}.jsonl", clips)

    return write


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sounds"


def ids(prepared: Prepared) -> set[str]:
    return {clip.id for clip in prepared.clips}


def kinds(problems: tuple[Problem, ...]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for problem in problems:
        found.setdefault(problem.where.rpartition("/")[2], set()).add(problem.kind)
    return found


def test_codes_are_those_of_the_codec(data: Callable[..., Path], sounds: Path, codec_folder: Path) -> None:
    clips = make_clips(sounds, 3, emotion="happy") + make_clips(sounds, 3)
    cut = replace(clips[0], id="cut", text="take", start_s=0.1, end_s=0.45)
    prepared = prepare([data([*clips, cut])], codec_folder, emotions=EMOTIONS)
    codec = VocoderCodec.load(codec_folder)
    assert ids(prepared) == {clip.id for clip in (*clips, cut)}
    assert not prepared.problems or prepared.num_bad == 0
    for clip in prepared.clips:
        wanted = codec.encode(read_sound(clip.audio, RATE, start_s=clip.start_s, end_s=clip.end_s))
        np.testing.assert_array_equal(prepared.codes(clip), wanted)
        assert prepared.num_frames()[clip.id] == len(wanted)
        assert clip.split is not None
    assert len(prepared.codes(cut)) < len(prepared.codes(clips[0]))


def test_the_codec_does_not_stay_for_the_training(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`affetto train` prepares in its own process. See `test_workers` for codecs that are networks."""
    held: list[weakref.ref[Any]] = []
    real = stage._work
    monkeypatch.setattr(stage, "_work", lambda codec, clips: held.append(weakref.ref(codec)) or real(codec, clips))
    prepare([data(make_clips(sounds, 2))], codec_folder, emotions=EMOTIONS)
    gc.collect()
    assert [reference() for reference in held] == [None]


def test_second_run_does_no_coding(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, coded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = data(make_clips(sounds, 4))
    first = prepare([source], codec_folder, emotions=EMOTIONS)
    assert len(coded) == 4
    coded.clear()
    checked: list[int] = []
    monkeypatch.setattr(stage, "check_clips", lambda clips, **_: checked.append(len(clips)) or [])
    monkeypatch.setattr(file_hashes, "hash_file", lambda _path: pytest.fail("hashes are remembered"))
    second = prepare([source], codec_folder, emotions=EMOTIONS)
    assert coded == []
    assert checked == [0]
    assert second.clips == first.clips
    assert second.keys == first.keys


def test_changed_sound_is_coded_again(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, coded: list[int]
) -> None:
    clips = make_clips(sounds, 3)
    source = data(clips)
    prepare([source], codec_folder, emotions=EMOTIONS)
    coded.clear()
    write_sound(clips[1].audio, vowel(333.0, 0.7), RATE)
    prepared = prepare([source], codec_folder, emotions=EMOTIONS)
    assert coded == [round(0.7 * RATE)]
    wanted = VocoderCodec.load(codec_folder).encode(read_sound(clips[1].audio, RATE))
    np.testing.assert_array_equal(prepared.codes(clips[1]), wanted)


def test_bad_clips_are_listed_at_once_and_good_ones_are_coded(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, coded: list[int]
) -> None:
    good = make_clips(sounds, 3, emotion="happy") + make_clips(sounds, 3)
    names = ("silent", "wordless", "absent", "torn", "misspelt", "wrong-words")
    bad = dict(zip(names, make_clips(sounds, len(names), emotion="sad"), strict=True))
    write_sound(bad["silent"].audio, hiss(0.5, level=1e-5), RATE)
    bad["wordless"] = replace(bad["wordless"], text=None)
    bad["absent"].audio.unlink()
    bad["torn"].audio.write_bytes(b"RIFF")
    bad["misspelt"] = replace(bad["misspelt"], emotion="hapy")
    bad["wrong-words"] = replace(bad["wrong-words"], text="many more words than fit into half a second " * 3)
    bad = {name: replace(clip, id=name) for name, clip in bad.items()}
    prepared = prepare([data([*good, *bad.values()])], codec_folder, emotions=EMOTIONS)
    assert {name: kinds(prepared.problems)[name] for name in bad} == {
        "silent": {"silent"},
        "wordless": {"missing-text"},
        "absent": {"missing-file"},
        "torn": {"unreadable"},
        "misspelt": {"unknown-emotion"},
        "wrong-words": {"wrong-text"},
    }
    assert prepared.num_bad == len(bad)
    assert ids(prepared) == {clip.id for clip in good}
    assert len(coded) == len(good)
    assert all(len(prepared.codes(clip)) for clip in prepared.clips)


def test_warnings_are_not_bad_clips(data: Callable[..., Path], sounds: Path, codec_folder: Path) -> None:
    clips = [replace(clip, text="one text") for clip in make_clips(sounds, 3, emotion="happy")]
    prepared = prepare([data(clips)], codec_folder, emotions=EMOTIONS)
    assert {problem.kind for problem in prepared.warnings} == {"missing-split"}
    assert set(prepared.warnings) <= set(prepared.problems)
    assert prepared.num_bad == 0
    assert len(prepared.clips) == 3


def test_nothing_usable_shows_every_problem_in_one_table(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [replace(clip, text=None) for clip in make_clips(sounds, 20)]
    with pytest.raises(DataError, match=r"no usable clip in .*manifest\.jsonl: 20 problems \(table above\)"):
        prepare([data(clips)], codec_folder, emotions=EMOTIONS)
    shown = capsys.readouterr().err
    assert shown.count("missing-text") == 21, "a row each, and the count below"
    assert all(f"general-{index} " in shown for index in range(20))


def test_no_clip_of_what_is_wanted_is_no_empty_table(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = data(make_clips(sounds, 2, emotion="sad"))
    with pytest.raises(DataError, match="has one of the wanted emotions or is general speech"):
        prepare([source], codec_folder, emotions=EMOTIONS, only=["happy"])
    assert capsys.readouterr().err == ""


def test_mended_text_is_checked_again(data: Callable[..., Path], sounds: Path, codec_folder: Path) -> None:
    clips = make_clips(sounds, 3)
    prepare([data(clips)], codec_folder, emotions=EMOTIONS)
    worse = [replace(clips[0], text="far too long " * 20), replace(clips[1], text=None), clips[2]]
    prepared = prepare([data(worse)], codec_folder, emotions=EMOTIONS)
    found = kinds(prepared.problems)
    assert found["general-0"] == {"wrong-text"}
    assert found["general-1"] == {"missing-text"}
    assert ids(prepared) == {"general-2"}


def test_killed_between_shards_resumes(
    data: Callable[..., Path],
    sounds: Path,
    codec_folder: Path,
    coded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    cache_folder: Path,
) -> None:
    source = data(make_clips(sounds, 8))
    monkeypatch.setattr(stage, "_SHARD_CLIPS", 3)
    add, shards = CodeCache.add, []

    def killed(self: CodeCache, clips: dict[str, np.ndarray]) -> None:
        if len(shards) == 2:
            raise KeyboardInterrupt
        shards.append(len(clips))
        add(self, clips)

    monkeypatch.setattr(CodeCache, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], codec_folder, emotions=EMOTIONS)
    assert shards == [3, 3]
    monkeypatch.setattr(CodeCache, "add", add)
    coded.clear()
    resumed = prepare([source], codec_folder, emotions=EMOTIONS)
    assert len(coded) == 2
    monkeypatch.setenv("AFFETTO_CACHE", str(cache_folder / "straight"))
    straight = prepare([source], codec_folder, emotions=EMOTIONS)
    assert resumed.clips == straight.clips
    for clip in straight.clips:
        np.testing.assert_array_equal(resumed.codes(clip), straight.codes(clip))


def test_worker_processes_code_the_same(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    source = data(make_clips(sounds, 5))
    here = prepare([source], codec_folder, emotions=EMOTIONS)
    monkeypatch.setattr("affetto.codes.workers._IN_PROCESS", 1)
    monkeypatch.setenv("AFFETTO_CACHE", str(cache_folder / "workers"))
    elsewhere = prepare([source], codec_folder, emotions=EMOTIONS, workers=1)
    assert here.clips == elsewhere.clips
    for clip in here.clips:
        np.testing.assert_array_equal(here.codes(clip), elsewhere.codes(clip))


def test_sound_that_vanishes_after_the_check_is_an_error_of_ours(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = make_clips(sounds, 3)

    def check(*_: object, **__: object) -> list[Problem]:
        clips[1].audio.unlink()
        return []

    monkeypatch.setattr(stage, "check_clips", check)
    with pytest.raises(DataError, match=r"general-1\.wav") as caught:
        prepare([data(clips)], codec_folder, emotions=EMOTIONS)
    # It has to come back from a worker process: an exception with other arguments breaks the pool.
    assert caught.value.args == (str(caught.value),)
    assert type(caught.value) is DataError


def test_only_restricts_to_some_emotions_and_general_speech(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, coded: list[int]
) -> None:
    names = ("happy", "sad", "proud", "calm")
    clips = [clip for name in names for clip in make_clips(sounds, 3, emotion=name)] + make_clips(sounds, 2)
    prepared = prepare([data(clips)], codec_folder, emotions=(*EMOTIONS, "proud"), only=["happy"])
    assert prepared.labels == tuple(sorted({clip.emotion for clip in clips if clip.emotion})), "what else there is"
    assert {clip.emotion for clip in prepared.clips} == {"happy", None}
    assert len(coded) == 5
    assert not any("sad" in warning.message for warning in prepared.warnings)
    both = prepare([data(clips)], codec_folder, emotions=(*EMOTIONS, "proud"), only=["happy", "proud"])
    assert {clip.emotion for clip in both.clips} == {"happy", "proud", None}
    assert len(coded) == 8


def test_unknown_emotion_is_reported_whatever_is_trained(
    data: Callable[..., Path], sounds: Path, codec_folder: Path
) -> None:
    clips = make_clips(sounds, 2, emotion="hapy") + make_clips(sounds, 2)
    for _ in range(2):
        prepared = prepare([data(clips)], codec_folder, emotions=EMOTIONS, only=["happy"])
        assert kinds(prepared.problems)["hapy-0"] == {"unknown-emotion"}
        assert ids(prepared) == {"general-0", "general-1"}


@pytest.mark.parametrize("label", ["amused", "frustrated", "calm", "other"])
def test_what_a_published_corpus_calls_its_clips_is_known_and_not_used(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, label: str
) -> None:
    clips = make_clips(sounds, 2, emotion=label) + make_clips(sounds, 2)
    prepared = prepare([data(clips)], codec_folder, emotions=EMOTIONS, only=["happy"])
    assert "unknown-emotion" not in {problem.kind for problem in prepared.problems}
    assert ids(prepared) == {"general-0", "general-1"}


def test_speakers_keep_their_numbers_whatever_is_trained(
    data: Callable[..., Path], sounds: Path, codec_folder: Path
) -> None:
    """Else two adapters of one base would mean different voices by the same number."""
    clips = [replace(clip, speaker="zoe") for clip in make_clips(sounds, 2, emotion="happy")]
    clips += [replace(clip, speaker="ann") for clip in make_clips(sounds, 2, emotion="sad")]
    clips += [replace(clip, speaker="mia") for clip in make_clips(sounds, 2)]
    source = data(clips)
    for only in (["happy"], ["sad"], None):
        prepared = prepare([source], codec_folder, emotions=EMOTIONS, only=only)
        assert prepared.speakers == {"ann": 0, "mia": 1, "zoe": 2}


def test_speakers_can_be_kept_apart(data: Callable[..., Path], sounds: Path, codec_folder: Path) -> None:
    clips = [replace(clip, speaker=f"s{index % 6}") for index, clip in enumerate(make_clips(sounds, 30))]
    clips = [replace(clip, text=f"words number {index}") for index, clip in enumerate(clips)]
    prepared = prepare([data(clips)], codec_folder, emotions=EMOTIONS, by_speaker=True)
    heard = [{clip.speaker for clip in prepared.clips if clip.split == split} for split in ("train", "test")]
    assert all(heard)
    assert heard[0].isdisjoint(heard[1])


def test_splits_are_the_same_whatever_is_trained(data: Callable[..., Path], sounds: Path, codec_folder: Path) -> None:
    clips = [clip for name in ("happy", "sad") for clip in make_clips(sounds, 12, emotion=name)]
    texts = {clip.id: f"sentence number {index % 12}" for index, clip in enumerate(clips)}
    source = data([replace(clip, text=texts[clip.id]) for clip in clips] + make_clips(sounds, 6))
    splits = {}
    for only in (["happy"], ["sad"], ["happy", "sad"]):
        prepared = prepare([source], codec_folder, emotions=EMOTIONS, only=only)
        for clip in prepared.clips:
            assert splits.setdefault(clip.id, clip.split) == clip.split
    assert set(splits.values()) == {"train", "validation", "test"}
    held = [
        {texts[name] for name, split in splits.items() if name in texts and split == part} for part in ("train", "test")
    ]
    assert held[0].isdisjoint(held[1])


def test_context_of_new_clips_may_be_coded_already(data: Callable[..., Path], sounds: Path, codec_folder: Path) -> None:
    clips = make_clips(sounds, 3)
    prepare([data(clips[:2])], codec_folder, emotions=EMOTIONS)
    hearing = [*clips[:2], replace(clips[2], context=("general-0", "general-1"))]
    prepared = prepare([data(hearing)], codec_folder, emotions=EMOTIONS)
    assert not prepared.num_bad, prepared.problems
    assert ids(prepared) == {"general-0", "general-1", "general-2"}


def test_clip_whose_context_became_bad_is_left_out(data: Callable[..., Path], sounds: Path, codec_folder: Path) -> None:
    clips = make_clips(sounds, 4)
    clips[1] = replace(clips[1], context=("general-0",))
    clips[2] = replace(clips[2], context=("general-1",))
    source = data(clips)
    assert len(prepare([source], codec_folder, emotions=EMOTIONS).clips) == 4
    clips[0].audio.unlink()
    prepared = prepare([source], codec_folder, emotions=EMOTIONS)
    found = kinds(prepared.problems)
    assert {name: found[name] for name in ("general-0", "general-1", "general-2")} == {
        "general-0": {"missing-file"}, "general-1": {"bad-context"}, "general-2": {"bad-context"}
    }  # fmt: skip
    assert prepared.num_bad == 3
    assert ids(prepared) == {"general-3"}


def test_context_comes_along_with_the_clips_that_hear_it(
    data: Callable[..., Path], sounds: Path, codec_folder: Path
) -> None:
    asked = make_clips(sounds, 2, emotion="sad")
    answer = replace(make_clips(sounds, 1, emotion="happy")[0], context=("sad-0",))
    prepared = prepare([data([*asked, answer])], codec_folder, emotions=EMOTIONS, only=["happy"])
    assert ids(prepared) == {"happy-0", "sad-0"}
    assert not prepared.num_bad
    assert len(prepared.codes(asked[0])) > 0


def test_folders_named_like_configured_emotions_count(tmp_path: Path, codec_folder: Path) -> None:
    folder = tmp_path / "mine"
    for name in ("proud", "Happy"):
        for clip in make_clips(folder / name, 2, emotion=name):
            clip.audio.with_suffix(".txt").write_text(f"words of {clip.id}")
    prepared = prepare([folder], codec_folder, emotions=(*EMOTIONS, "proud"), only=["proud", "happy"])
    assert sorted(clip.emotion or "" for clip in prepared.clips) == ["happy", "happy", "proud", "proud"]


def test_unplaced_clips_are_not_used(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, monkeypatch: pytest.MonkeyPatch, coded: list[int]
) -> None:
    warning = Problem("splits", "unplaced", "1 of 3 clips are not used")

    def assign(clips: list[Clip], **_: object) -> tuple[list[Clip], list[Problem]]:
        return [replace(clip, split=None if index == 0 else "train") for index, clip in enumerate(clips)], [warning]

    monkeypatch.setattr(stage, "assign_splits", assign)
    prepared = prepare([data(make_clips(sounds, 3))], codec_folder, emotions=EMOTIONS)
    assert ids(prepared) == {"general-1", "general-2"}
    assert prepared.warnings == (warning,)
    assert len(coded) == 2


def test_cached_only_neither_checks_nor_codes(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, coded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = data(make_clips(sounds, 3))
    with pytest.raises(DataError, match="run once without --skip-datasets"):
        prepare([source], codec_folder, emotions=EMOTIONS, use_cached_only=True)
    first = prepare([source], codec_folder, emotions=EMOTIONS)
    more = data([*make_clips(sounds, 3), *make_clips(sounds, 2, emotion="sad")])
    coded.clear()
    monkeypatch.setattr(stage, "check_clips", lambda *_, **__: pytest.fail("nothing is checked"))
    prepared = prepare([more], codec_folder, emotions=EMOTIONS, use_cached_only=True)
    assert ids(prepared) == ids(first)
    assert prepared.num_bad == 0
    assert coded == []


def test_another_codec_codes_anew(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, codec: VocoderCodec, tmp_path: Path, coded: list[int]
) -> None:
    source = data(make_clips(sounds, 2))
    first = prepare([source], codec_folder, emotions=EMOTIONS)
    coded.clear()
    VocoderCodec(codec.mean_D, codec.scale_D, codec.basis_DP, codec.codebooks_KVP[:2]).save(tmp_path / "other")
    second = prepare([source], tmp_path / "other", emotions=EMOTIONS)
    assert len(coded) == 2
    assert first.codes(first.clips[0]).shape[1] == 4
    assert second.codes(second.clips[0]).shape[1] == 2


def test_select_gives_one_emotion_and_split(data: Callable[..., Path], sounds: Path, codec_folder: Path) -> None:
    clips = make_clips(sounds, 3, emotion="happy", split="train") + make_clips(sounds, 2, split="test")
    prepared = prepare([data(clips)], codec_folder, emotions=EMOTIONS)
    assert [clip.id for clip in prepared.select("happy", "train")] == ["happy-0", "happy-1", "happy-2"]
    assert [clip.id for clip in prepared.select(None, "test")] == ["general-0", "general-1"]
    assert prepared.select("happy", "test") == []


def test_general_clips_can_be_left_out_but_for_context(
    data: Callable[..., Path], sounds: Path, codec_folder: Path, coded: list[int]
) -> None:
    """Neither checked nor coded nor warned of; splits and speaker numbers are as with them."""
    general, happy = make_clips(sounds, 2), make_clips(sounds, 12, emotion="happy")
    happy[0] = replace(happy[0], context=("general-1",))
    general[0] = replace(general[0], speaker="reader")
    source = data([*general, *happy])
    (sounds / "general-0.wav").unlink()
    prepared = prepare([source], codec_folder, emotions=EMOTIONS, only=["happy"], use_general=False)
    assert ids(prepared) == {*(clip.id for clip in happy), "general-1"}
    assert len(coded) == 13
    assert not [problem for problem in prepared.problems if "general" in problem.where + problem.message]
    full = prepare([source], codec_folder, emotions=EMOTIONS, only=["happy"])
    assert any("general speech has no" in problem.message for problem in full.problems)
    assert prepared.speakers == full.speakers
    splits = {clip.id: clip.split for clip in full.clips}
    assert all(splits[clip.id] == clip.split for clip in prepared.clips)
