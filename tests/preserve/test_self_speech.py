"""The base's own general speech: the same every time, spoken once, apart from every other text, failures left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from affetto.audio.splits import normalise_text
from affetto.codes.cache import CodeCache
from affetto.codes.prepare import Prepared
from affetto.errors import DataError
from affetto.files import cache_root
from affetto.model.base import load_base
from affetto.preserve import self_speech
from affetto.preserve.self_speech import SelfSpeech, failure, with_self_speech
from affetto.speak.generation import frame_cap
from affetto.speak.requests import Request, Spoken
from affetto.types import SPLITS, Clip

COUNTS = {"train": 9, "validation": 3, "test": 4}
SPEAKERS = {"anna": 4, "ben": 7, "reader": 0}


class Speaking:
    """Stands for `generate`: codes of a request's seed alone, and what was asked for."""

    def __init__(self, fails: Callable[[Request], bool] = lambda _: False) -> None:
        self.fails = fails
        self.calls: list[list[Request]] = []

    @property
    def requests(self) -> list[Request]:
        return [request for call in self.calls for request in call]

    def __call__(self, _: Any, requests: Sequence[Request], *, on_progress: Callable[[int], object]) -> list[Spoken]:
        self.calls.append(list(requests))
        on_progress(len(requests))
        return [Spoken(codes_of(request.seed), self.fails(request)) for request in requests]


def codes_of(seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (int(rng.integers(6, 12)), 8))


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> Speaking:
    fake = Speaking()
    monkeypatch.setattr(self_speech, "generate", fake)
    return fake


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prepared() -> Prepared:
    return prepare(["Hello there", "Good morning"])


def prepare(texts: Sequence[str]) -> Prepared:
    """Emotional clips of two actors, and a general clip of a reader."""
    clips = [
        Clip(f"happy-{number}", Path("x.wav"), text, "happy", ("anna", "ben")[number % 2], "made-up", "train")
        for number, text in enumerate(texts)
    ]
    general = Clip("read", Path("y.wav"), "Of general interest", None, "reader", "made-up", "train")
    cache = CodeCache(cache_root() / "codes")
    cache.add({"key": np.ones((4, 8), dtype=np.int64)})
    return Prepared((*clips, general), (), (), SPEAKERS, {clip.id: "key" for clip in (*clips, general)}, cache)


def own(prepared: Prepared) -> list[Clip]:
    return [clip for clip in prepared.clips if clip.corpus == "self"]


def texts(prepared: Prepared) -> list[str]:
    return [clip.text or "" for clip in own(prepared)]


def test_the_base_is_asked_as_it_is_at_temperature_1_without_a_cut(
    tiny_base_folder: Path, prepared: Prepared, speaking: Speaking
) -> None:
    made = with_self_speech(prepared, str(tiny_base_folder), COUNTS)
    base = load_base(str(tiny_base_folder))
    asked = {request.text_ids: request for request in speaking.requests}
    assert len(asked) == len(own(made)) == sum(COUNTS.values())
    for clip in own(made):
        assert clip.text is not None
        request = asked[base.prompt_ids(clip.text, SPEAKERS[clip.speaker])]
        assert (request.temperature, request.top_k, request.gate, request.context) == (1.0, 0, (), ())
        assert request.max_frames == frame_cap(clip.text, 12.5)
        np.testing.assert_array_equal(made.codes(clip), codes_of(request.seed))
    assert len({request.seed for request in speaking.requests}) == sum(COUNTS.values())


def test_it_replaces_the_general_clips_and_keeps_the_others(
    tiny_base_folder: Path, prepared: Prepared, speaking: Speaking
) -> None:
    made = with_self_speech(prepared, str(tiny_base_folder), COUNTS)
    assert {split: len(made.select(None, split)) for split in SPLITS} == COUNTS
    assert all(clip.corpus == "self" for split in SPLITS for clip in made.select(None, split))
    assert made.select("happy", "train") == prepared.select("happy", "train")
    assert made.num_frames()["happy-0"] == 4
    left = next(clip for clip in made.clips if clip.id == "read")
    assert left == replace(prepared.clips[-1], split=None), "it can still be heard as context"
    heard = Counter((clip.split, clip.speaker) for clip in own(made))
    assert heard["train", "anna"] == 5
    assert heard["train", "ben"] == 4
    assert not heard["train", "reader"], "only who acts an emotion"
    assert len(speaking.requests) == sum(COUNTS.values())


def test_a_second_run_and_a_larger_one_speak_only_what_is_missing(
    tiny_base_folder: Path, prepared: Prepared, speaking: Speaking
) -> None:
    first = with_self_speech(prepared, str(tiny_base_folder), COUNTS)
    num = len(speaking.requests)
    again = with_self_speech(prepare(["Hello there", "Good morning"]), str(tiny_base_folder), COUNTS)
    assert len(speaking.requests) == num, "nothing is spoken twice"
    assert own(again) == own(first)
    assert all(np.array_equal(again.codes(clip), first.codes(clip)) for clip in own(first))
    more = with_self_speech(prepared, str(tiny_base_folder), COUNTS | {"train": 12})
    assert len(speaking.requests) == num + 3
    assert set(own(first)) < set(own(more))
    only_read = with_self_speech(prepared, str(tiny_base_folder), COUNTS, use_cached_only=True)
    assert own(only_read) == own(first)


def test_a_fresh_cache_gives_the_same_speech(
    tiny_base_folder: Path, prepared: Prepared, speaking: Speaking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = with_self_speech(prepared, str(tiny_base_folder), COUNTS)
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "elsewhere"))
    second = with_self_speech(prepare(["Hello there", "Good morning"]), str(tiny_base_folder), COUNTS)
    assert len(speaking.requests) == 2 * sum(COUNTS.values())
    assert own(second) == own(first)
    assert all(np.array_equal(second.codes(clip), first.codes(clip)) for clip in own(first))


def test_where_something_is_missing_it_must_be_allowed_to_speak(
    tiny_base_folder: Path, prepared: Prepared, speaking: Speaking
) -> None:
    with pytest.raises(DataError, match="run once without --skip-datasets"):
        with_self_speech(prepared, str(tiny_base_folder), COUNTS, use_cached_only=True)
    assert speaking.calls == []


def test_an_interrupted_run_keeps_what_it_spoke(
    tiny_base_folder: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Speaking):
        def __call__(self, base: Any, requests: Any, *, on_progress: Any) -> list[Spoken]:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().__call__(base, requests, on_progress=on_progress)

    monkeypatch.setattr(self_speech, "_SHARD", 4)
    monkeypatch.setattr(self_speech, "generate", stopped := Stopping(_every_third))
    with pytest.raises(KeyboardInterrupt):
        with_self_speech(prepared, str(tiny_base_folder), COUNTS)
    assert len(stopped.requests) == 8
    monkeypatch.setattr(self_speech, "generate", resumed := Speaking(_every_third))
    made = with_self_speech(prepare(["Hello there", "Good morning"]), str(tiny_base_folder), COUNTS)
    assert not {request.seed for request in resumed.requests} & {request.seed for request in stopped.requests}
    monkeypatch.setenv("AFFETTO_CACHE", str(cache_root() / "straight"))
    monkeypatch.setattr(self_speech, "generate", straight := Speaking(_every_third))
    assert own(with_self_speech(prepare(["Hello there", "Good morning"]), str(tiny_base_folder), COUNTS)) == own(made)
    assert len(straight.requests) == len(stopped.requests) + len(resumed.requests)


def _every_third(request: Request) -> bool:
    return request.seed % 3 == 0


def test_no_text_is_in_two_splits_or_that_of_a_clip(
    tiny_base_folder: Path, prepared: Prepared, speaking: Speaking
) -> None:
    counts = {"train": 60, "validation": 60, "test": 60}
    first = with_self_speech(prepared, str(tiny_base_folder), counts)
    words = [normalise_text(text) for text in texts(first)]
    assert len(set(words)) == 180
    # Texts that would have been chosen, now said by an actor in other spelling: neither is chosen, nothing else moves.
    taken = {texts(first)[0], texts(first)[70]}
    acted = prepare([text.upper() + "!" for text in sorted(taken)])
    second = with_self_speech(acted, str(tiny_base_folder), counts)
    assert taken == set(texts(first)) - set(texts(second))
    assert len(set(texts(second)) - set(texts(first))) == 2
    voices = {clip.text: clip.speaker for clip in own(first)}
    assert all(clip.speaker == voices.get(clip.text, clip.speaker) for clip in own(second))
    assert len(speaking.requests) == 182


def test_a_texts_split_does_not_depend_on_the_counts(
    tiny_base_folder: Path, prepared: Prepared, speaking: Speaking
) -> None:
    few = with_self_speech(prepared, str(tiny_base_folder), {"train": 30, "validation": 2, "test": 30})
    many = with_self_speech(prepared, str(tiny_base_folder), {"train": 2, "validation": 30, "test": 2})
    assert speaking.calls
    splits = {clip.text: clip.split for clip in own(many)}
    shared = [clip for clip in own(few) if clip.text in splits]
    assert len(shared) == 6
    assert all(splits[clip.text] == clip.split for clip in shared)


def test_speech_depends_on_base_seed_and_speaker(
    tiny_base_folder: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(voices: dict[str, int], seed: int = 0) -> list[str]:
        speech = SelfSpeech(str(tiny_base_folder), prepared.cache, seed=seed)
        return [one.key for one in islice(speech.candidates("train", voices, ()), 5)]

    plain = keys({"anna": 4})
    assert keys({"renamed": 4}) == plain, "only the number reaches the base"
    assert not {*keys({"anna": 5})} & {*plain}
    assert not {*keys({"anna": 4}, seed=1)} & {*plain}
    monkeypatch.setattr(self_speech, "weights_hash", lambda _: "another base")
    assert not {*keys({"anna": 4})} & {*plain}


def test_by_speaker_each_split_has_its_own_voices(
    tiny_base_folder: Path, prepared: Prepared, speaking: Speaking
) -> None:
    placed = [replace(clip, split="test") if clip.speaker == "ben" else clip for clip in prepared.clips if clip.emotion]
    made = with_self_speech(
        replace(prepared, clips=tuple(placed)), str(tiny_base_folder), {"train": 4, "test": 4}, by_speaker=True
    )
    assert {(clip.split, clip.speaker) for clip in own(made)} == {("train", "anna"), ("test", "ben")}
    assert len(speaking.requests) == 8


@dataclass
class FakeCodec:
    """Twelve and a half frames a second, and one loudness."""

    level: float = 0.1
    frame_rate: float = 12.5

    def decode(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        return np.full(1920 * len(codes_TK), self.level, dtype=np.float32)


def stuck(num_same: int) -> NDArray[np.int64]:
    """Ten frames of which `num_same` have one code in codebook zero."""
    codes_TK = np.arange(80).reshape(10, 8)
    codes_TK[:num_same, 0] = 200
    return codes_TK


@pytest.mark.parametrize(
    ("codes_TK", "hit_cap", "level", "reason"),
    [
        (np.arange(80).reshape(10, 8), False, 0.1, None),
        (np.arange(80).reshape(10, 8), True, 0.1, "never ended"),
        (np.zeros((0, 8), dtype=np.int64), False, 0.1, "shorter than 0.4 s"),
        (np.arange(32).reshape(4, 8), False, 0.1, "shorter than 0.4 s"),
        (np.arange(40).reshape(5, 8), False, 0.1, None),
        (stuck(9), False, 0.1, "stuck on one code"),
        (stuck(8), False, 0.1, None),
        (np.arange(80).reshape(10, 8), False, 0.0009, "silent"),
        (np.arange(80).reshape(10, 8), False, -0.0011, None),
    ],
)
def test_what_is_a_failure(codes_TK: NDArray[np.int64], hit_cap: bool, level: float, reason: str | None) -> None:
    assert failure(Spoken(codes_TK, hit_cap), FakeCodec(level)) == reason  # type: ignore[arg-type]


def test_failures_are_replaced_counted_and_remembered(
    tiny_base_folder: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(self_speech, "generate", fake := Speaking(_every_third))
    made = with_self_speech(prepared, str(tiny_base_folder), COUNTS)
    assert {split: len(made.select(None, split)) for split in SPLITS} == COUNTS
    failed = {request.seed for request in fake.requests if _every_third(request)}
    assert len(failed) == len(fake.requests) - sum(COUNTS.values()) > 0
    spoken = {codes.tobytes() for codes in map(codes_of, failed)}
    assert not spoken & {made.codes(clip).astype(np.int64).tobytes() for clip in own(made)}
    told = f"16 clips, {len(failed)} dropped ({len(failed)} never ended)"
    assert told in " ".join(capsys.readouterr().err.split())
    num = len(fake.requests)
    again = with_self_speech(prepare(["Hello there", "Good morning"]), str(tiny_base_folder), COUNTS)
    assert own(again) == own(made)
    assert len(fake.requests) == num, "what failed isn't tried again"
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_base_that_mostly_fails_is_an_error(
    tiny_base_folder: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_speech, "generate", fake := Speaking(lambda _: True))
    with pytest.raises(DataError, match=r"of 18 plain sentences, 18 dropped \(18 never ended\)\. Add general clips"):
        with_self_speech(prepared, str(tiny_base_folder), COUNTS)
    assert len(fake.requests) == 18


def test_without_emotional_clips_nobody_can_speak(tiny_base_folder: Path, prepared: Prepared) -> None:
    with pytest.raises(DataError, match="there is no emotional clip"):
        with_self_speech(replace(prepared, clips=prepared.clips[-1:]), str(tiny_base_folder), COUNTS)
