"""What runs beside Moshi's codes: words timed in every way, the user of a dialogue, and what is told of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from affetto.audio.sound import read_sound
from affetto.codes.cache import CodeCache
from affetto.codes.codec import load_codec
from affetto.codes.prepare import Prepared
from affetto.codes.timing import Word, spread_words
from affetto.errors import DataError
from affetto.model.beside import with_streams
from affetto.types import Clip

RATE, DURATION_S, FRAMES = 24_000, 1.6, 20


class Listener:
    """A recogniser of 20 frames a second that hears each letter of the alphabet for a frame, whatever is said."""

    id, sample_rate, blank, between = "listener", 16_000, 0, None

    def __init__(self, heard: str = "thekey") -> None:
        self.heard = heard
        self.sounds: list[NDArray[np.float32]] = []

    def log_probs(self, sound: NDArray[np.float32]) -> NDArray[np.float64]:
        self.sounds.append(sound)
        log_probs_TV = np.full((round(len(sound) / 800), 27), np.log(1e-4))
        log_probs_TV[:, 0] = np.log(1 - 26e-4)
        for place, letter in enumerate(self.heard):
            log_probs_TV[4 + 2 * place] = np.log(1e-4)
            log_probs_TV[4 + 2 * place, self.spell(letter)] = np.log(1 - 26e-4)
        return log_probs_TV

    def spell(self, word: str) -> list[int]:
        return [ord(letter) - ord("a") + 1 for letter in word.lower() if "a" <= letter <= "z"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    # Another process takes seconds to begin; `codes/test_workers.py` has a dialogue that is coded by one.
    monkeypatch.setattr("affetto.codes.workers._stays_here", lambda *_: True)


def sound(seed: int, level: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return level * np.repeat(rng.random(20), 1920) * rng.standard_normal(round(DURATION_S * RATE))


@pytest.fixture
def prepared_of(tmp_path: Path, moshi_folder: Path) -> Callable[..., Prepared]:
    """Clips as `prepare` leaves them: prepared_of({"id": (text, channels, context)})."""
    codec = load_codec(moshi_folder)

    def make(texts: dict[str, tuple[str, list[np.ndarray], tuple[str, ...]]]) -> Prepared:
        clips, codes = [], {}
        for name, (text, channels, context) in texts.items():
            path = tmp_path / f"{name}.wav"
            soundfile.write(path, np.stack(channels, axis=1), RATE, subtype="FLOAT")
            clips.append(Clip(name, path, text, None, "x", "made-up", "train", context=context))
            codes[f"key-{name}"] = codec.encode(read_sound(path, RATE))
        cache = CodeCache(tmp_path / "codes")
        cache.add(codes)
        return Prepared(tuple(clips), (), (), {"x": 0}, {clip.id: f"key-{clip.id}" for clip in clips}, cache)

    return make


def one(text: str = "the key", seed: int = 0, context: tuple[str, ...] = ()) -> tuple:
    return text, [sound(seed)], context


def annotate(path: Path, *alignments: object) -> None:
    path.with_suffix(".json").write_text(json.dumps({"alignments": list(alignments)}))


def test_words_are_annotated_aligned_or_spread(
    prepared_of: Callable[..., Prepared], moshi_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepared_of({"a": one(), "b": one(), "c": one("silver hello")})
    annotate(prepared.clips[0].audio, ["hello", [0.5, 0.9], "SPEAKER_MAIN"])
    found = with_streams(prepared, moshi_folder, Listener)
    assert found.words["a"] == (Word("hello", 0.5),)
    assert [(word.text, word.start_s) for word in found.words["b"]] == [("the", 0.2), ("key", pytest.approx(0.5))]
    assert found.words["c"] == tuple(spread_words("silver hello", DURATION_S))
    assert (found.problems, found.user_keys, found.clips) == ((), {}, prepared.clips)
    said = " ".join(capsys.readouterr().err.split())
    assert "of 3 clips: 1 annotated, 1 by listener, 1 spread" in said
    assert "in 1 of them the recogniser hears other words" in said
    beside = found.beside(found.clips[0])
    assert beside is not None
    assert beside.user_TK is None


def test_impossible_clips_are_told_and_left_out(prepared_of: Callable[..., Prepared], moshi_folder: Path) -> None:
    long = "abcdefgh " * 5
    prepared = prepared_of({
        "good": one(), "long": one(long), "digits": one("12 34"), "tokens": one("qzqzqzqz qzqzqzqz qzqzqzqz"),
        "bad": one(), "empty": one(), "hearing": one(context=("long",)),
    })  # fmt: skip
    prepared.clips[4].audio.with_suffix(".json").write_text("{")
    annotate(prepared.clips[5].audio, ["you", [0.5, 0.9], "SPEAKER_OTHER"])
    found = with_streams(prepared, moshi_folder, lambda: Listener("qzqzqzqzqzq"))
    assert [clip.id for clip in found.clips] == ["good"]
    told = {problem.where: (problem.kind, problem.message) for problem in found.problems}
    assert {name: kind for name, (kind, _) in told.items()} == {
        "long": "unaligned", "digits": "unaligned", "tokens": "unaligned", "bad": "bad-annotation",
        "empty": "bad-annotation", "hearing": "bad-context",
    }  # fmt: skip
    assert "takes 40 tokens of listener, which hears 32 frames" in told["long"][1]
    assert "knows no letter of its text" in told["digits"][1]
    assert "text has 27 tokens and its sound 20 frames" in told["tokens"][1]
    assert found.num_bad == 6


def test_a_second_time_nothing_is_heard(prepared_of: Callable[..., Prepared], moshi_folder: Path) -> None:
    prepared = prepared_of({"a": one(), "b": one("12")})
    listener = Listener()
    first = with_streams(prepared, moshi_folder, lambda: listener)
    assert len(listener.sounds) == 1
    assert len(listener.sounds[0]) == pytest.approx(16_000 * DURATION_S)
    again = with_streams(prepared, moshi_folder, lambda: listener)
    assert len(listener.sounds) == 1
    assert (again.words, again.problems) == (first.words, first.problems)
    assert with_streams(first, moshi_folder, lambda: listener) is first, "nothing is left to be timed"
    other = Listener()
    other.id = "another"  # type: ignore[misc]
    with_streams(prepared, moshi_folder, lambda: other)
    assert len(other.sounds) == 1, "what one recogniser heard is not another's"


def test_what_is_cached_alone(prepared_of: Callable[..., Prepared], moshi_folder: Path) -> None:
    prepared = prepared_of({"a": one(), "b": one(), "c": ("the key", [sound(1), sound(2)], ())})
    listener = Listener()
    with_streams(replace(prepared, clips=prepared.clips[:1]), moshi_folder, lambda: listener)
    found = with_streams(prepared, moshi_folder, lambda: listener, use_cached_only=True)
    assert [clip.id for clip in found.clips] == ["a"]
    assert found.problems == ()
    assert len(listener.sounds) == 1
    with pytest.raises(DataError, match=r"no clip is left.*\n.*without --skip-datasets"):
        with_streams(replace(prepared, clips=prepared.clips[1:]), moshi_folder, lambda: listener, use_cached_only=True)


def test_the_second_channel_is_the_users(
    prepared_of: Callable[..., Prepared], moshi_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, user = sound(1), sound(2)
    prepared = prepared_of({
        "two": ("the key", [own, user], ()), "same": ("the key", [own, 0.5 * own], ()), "mono": one(seed=1)
    })  # fmt: skip
    listener = Listener()
    found = with_streams(prepared, moshi_folder, lambda: listener)
    clips, codec = {clip.id: clip for clip in found.clips}, load_codec(moshi_folder)
    beside = found.beside(clips["two"])
    assert beside is not None
    np.testing.assert_array_equal(found.codes(clips["two"]), codec.encode(own.astype(np.float32)))
    np.testing.assert_array_equal(beside.user_TK, codec.encode(user.astype(np.float32)))
    assert len(beside.user_TK) == FRAMES  # type: ignore[arg-type]
    assert set(found.user_keys) == {"two"}
    np.testing.assert_array_equal(found.codes(clips["same"]), prepared.codes(clips["same"]))
    np.testing.assert_allclose(listener.sounds[0], listener.sounds[2], atol=1e-6)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 dialogue: the first channel is the model's voice" in said
    assert "1 file has the same sound in both channels" in said


def test_a_dialogue_in_which_the_model_is_silent(prepared_of: Callable[..., Prepared], moshi_folder: Path) -> None:
    prepared = prepared_of({"a": one(), "b": ("the key", [np.zeros(len(sound(0))), sound(2)], ())})
    found = with_streams(prepared, moshi_folder, Listener)
    assert [(problem.where, problem.kind) for problem in found.problems] == [("b", "silent")]
    assert "swap the channels" in found.problems[0].message
    assert [clip.id for clip in found.clips] == ["a"]


def test_the_bases_own_speech_has_no_file(prepared_of: Callable[..., Prepared], moshi_folder: Path) -> None:
    """Its sound is that of its codes, and no text is refused."""
    prepared = prepared_of({"a": one(), "b": one("12")})
    for clip in prepared.clips:
        clip.audio.unlink()
    listener = Listener()
    found = with_streams(prepared, moshi_folder, lambda: listener)
    assert [word.text for word in found.words["a"]] == ["the", "key"]
    assert found.words["b"] == tuple(spread_words("12", DURATION_S))
    assert len(listener.sounds) == 1
    assert len(listener.sounds[0]) == pytest.approx(16_000 * DURATION_S, abs=2)


def test_a_base_whose_text_stands_before_its_frames(
    prepared_of: Callable[..., Prepared], tiny_base_folder: Path
) -> None:
    prepared = prepared_of({"a": one()})
    assert with_streams(prepared, tiny_base_folder, Listener) is prepared
