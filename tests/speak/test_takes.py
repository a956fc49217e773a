"""The take that is kept is the one that sounds most like the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from affetto.adapters.bank import AdapterBank
from affetto.codes.codec import load_codec
from affetto.errors import ConfigError
from affetto.model.base import Base, load_base
from affetto.speak import takes
from affetto.speak.generation import generate, generate_best
from affetto.speak.requests import Request, Spoken
from affetto.speak.takes import best_takes, take_distances, warped_distances
from affetto.speak.voice import Voice
from affetto.types import SPEAKING_TAKES, Codec

TEXTS = ["the silver key", "a", "a much longer line about rivers"]


@pytest.fixture
def codec(tiny_base: Base) -> Codec:
    return load_codec(tiny_base.folder)


def _requests(base: Base, texts: Sequence[str] = TEXTS, **fields: Any) -> list[Request]:
    return [
        Request(base.prompt_ids(text, 0), **({"max_frames": 7, "seed": 3 + i} | fields)) for i, text in enumerate(texts)
    ]


def _codes(num_frames: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(1, 256, (num_frames, 8))


def _slowly(distances_ST: NDArray[np.floating]) -> float:
    """Every cell by its three neighbours."""
    num_s, num_t = distances_ST.shape
    sums = np.full((num_s + 1, num_t + 1), np.inf)
    sums[0, 0] = 0.0
    for s, t in np.ndindex(num_s, num_t):
        here = distances_ST[s, t]
        sums[s + 1, t + 1] = min(sums[s, t + 1] + here, sums[s + 1, t] + here, sums[s, t] + 2 * here)
    return float(sums[num_s, num_t]) / (num_s + num_t)


def test_the_best_alignment_is_found_whatever_stands_beside_it() -> None:
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 5), (5, 1), (2, 1), (2, 2), (7, 3), (3, 7), (30, 41), (41, 30)]
    pairs = [rng.random(shape).astype(np.float32) for shape in shapes]
    expected = [_slowly(pair) for pair in pairs]
    assert warped_distances(pairs) == pytest.approx(expected, rel=1e-5)
    assert [warped_distances([pair])[0] for pair in pairs] == pytest.approx(expected, rel=1e-5)


def test_speaking_slower_or_louder_is_no_distance() -> None:
    sound = np.random.default_rng(1).normal(size=(40, 24))
    slower, louder, other = np.repeat(sound, 2, axis=0), sound + np.eye(24)[0] * 5, sound[::-1]
    found = take_distances([sound, slower, louder, other])
    np.testing.assert_allclose(found[0, :3], 0.0, atol=0.01)
    assert (found[3, :3] > 1.0).all()
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("cells", [2**24, 1])
def test_pairs_are_compared_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(takes, "_MOST_CELLS", cells)
    sounds = [np.random.default_rng(seed).normal(size=(9 + seed, 24)) for seed in range(5)]
    found = take_distances(sounds)
    assert found[1, 3] == pytest.approx(take_distances([sounds[1], sounds[3]])[0, 1], rel=1e-6)
    assert found.shape == (5, 5)


def test_the_take_like_the_others_is_kept_and_the_first_has_the_requests_seed(tiny_base: Base, codec: Codec) -> None:
    requests = [replace(request, takes=3 + i) for i, request in enumerate(_requests(tiny_base, temperature=1.0))]
    kept, places = generate_best(tiny_base, codec, requests), []
    for request, found in zip(requests, kept, strict=True):
        singles = [
            replace(request, takes=1, seed=request.seed + take * takes._SEED_STRIDE) for take in range(request.takes)
        ]
        alone = generate(tiny_base, singles)
        assert len({one.codes_TK.tobytes() for one in alone}) == request.takes
        assert all(one.hit_cap for one in alone), "none ends by itself: all are compared"
        place = int(take_distances([codec.cepstra(one.codes_TK) for one in alone]).sum(1).argmin())
        assert found.codes_TK.tolist() == alone[place].codes_TK.tolist()
        places.append(place)
    assert any(places), "the first take was always the best: nothing is proved"
    again = generate_best(tiny_base, codec, requests, batch_size=2)
    assert [one.codes_TK.tolist() for one in again] == [one.codes_TK.tolist() for one in kept]


def test_takes_that_failed_are_kept_only_where_all_did(tiny_base: Base, codec: Codec) -> None:
    def ends(seed: int) -> Spoken:
        return Spoken(_codes(3, seed), hit_cap=False)

    cut, nothing, whole = Spoken(_codes(7, 1), hit_cap=True), Spoken(_codes(0, 2), hit_cap=False), ends(0)
    request = replace(_requests(tiny_base)[0], takes=3)
    for said, expected in (
        ([cut, whole, nothing], whole), ([nothing, cut, cut], cut), ([nothing] * 3, nothing), ([cut, cut, cut], cut),
        ([cut, whole, ends(5)], whole), ([cut, cut, ends(1), whole, whole], whole),
    ):  # fmt: skip
        asked = replace(request, takes=len(said))
        assert best_takes(codec, [asked], lambda _singles, said=said: said) == [expected]


def test_witnesses_speak_more_softly_and_are_not_kept(tiny_base: Base, codec: Codec) -> None:
    """Half as many as takes, at other seeds; whoever is nearest to all is kept, of the takes alone."""
    often, plain, few = (
        replace(_requests(tiny_base)[0], takes=number, gate=gate)
        for number, gate in ((6, (1.0, 0.4)), (6, (0.0, 0.0)), (2, (1.0, 0.4)))
    )
    asked: list[list[Request]] = []
    same, other, third = (_codes(9, seed) for seed in (1, 2, 3))
    spoken = {"takes": [other, same, other, third, same, other], "witnesses": [same, same, third]}

    def say(singles: list[Request]) -> list[Spoken]:
        asked.append(singles)
        codes = spoken["witnesses" if len(asked) == 2 else "takes"]
        return [Spoken(codes[index], hit_cap=False) for index in range(len(singles))]

    (kept,) = best_takes(codec, [plain], say)
    assert kept.codes_TK is other, "three of six"
    asked.clear()
    (kept,) = best_takes(codec, [often], say)
    assert kept.codes_TK is same, "four of nine"
    takes_asked, softer = asked
    assert [one.gate for one in takes_asked] == [(1.0, 0.4)] * 6
    assert [one.gate for one in softer] == [pytest.approx((0.85, 0.34))] * 3
    assert len({one.seed for one in (*takes_asked, *softer)}) == 9
    for request in (plain, few):
        asked.clear()
        best_takes(codec, [request], say)
        assert len(asked) == 1, "the base, and two takes, have no witness"


def test_a_witness_that_failed_is_none(tiny_base: Base, codec: Codec) -> None:
    request = replace(_requests(tiny_base)[0], takes=3, gate=(1.0,))
    one, another = (Spoken(_codes(9, seed), hit_cap=False) for seed in (1, 2))
    for failed in (Spoken(another.codes_TK, hit_cap=True), Spoken(_codes(0, 3), hit_cap=False)):
        said = iter([[another, one, one], [failed]])
        assert best_takes(codec, [request], lambda _singles, said=said: next(said)) == [one]


def test_progress_counts_witnesses(tiny_base: Base, codec: Codec) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, ("q_proj",))
    bank.add("happy", 2, 4.0, 0)
    told: list[int] = []
    often = [replace(one, takes=6, gate=(1.0,)) for one in _requests(tiny_base)]
    generate_best(tiny_base, codec, often, on_progress=told.append)
    assert sum(told) == len(TEXTS)


def test_greedy_takes_are_all_the_same(tiny_base: Base, codec: Codec) -> None:
    requests = _requests(tiny_base, temperature=0.0)
    often = generate_best(tiny_base, codec, [replace(one, takes=3) for one in requests])
    assert [one.codes_TK.tolist() for one in generate(tiny_base, requests)] == [one.codes_TK.tolist() for one in often]


def test_what_is_said_once_and_what_is_said_often_may_go_together(tiny_base: Base, codec: Codec) -> None:
    once, often = _requests(tiny_base, TEXTS[:2])
    often = replace(often, takes=3)
    together = generate_best(tiny_base, codec, [once, often, once])
    alone = [generate_best(tiny_base, codec, [request])[0] for request in (once, often, once)]
    assert [one.codes_TK.tolist() for one in together] == [one.codes_TK.tolist() for one in alone]


def test_progress_is_told_of_requests_and_not_of_takes(tiny_base: Base, codec: Codec) -> None:
    told: list[int] = []
    often = [replace(one, takes=4) for one in _requests(tiny_base)]
    generate_best(tiny_base, codec, often, on_progress=told.append)
    assert sum(told) == len(TEXTS)
    assert all(told)


def test_a_take_that_says_something_else_is_not_kept() -> None:
    """The shipped base: of three takes of a sentence and one of another, in any order."""
    base = load_base("miniature")
    codec = load_codec(base.folder)
    text, other = "your mirror will not want those lucky lunches", "the old farmer sold a red boat to the captain"
    singles = [*_requests(base, [text] * 3), *_requests(base, [other])]
    said = generate(base, [replace(request, max_frames=80) for request in singles])
    assert not any(one.hit_cap for one in said)
    distances = take_distances([codec.cepstra(one.codes_TK) for one in said])
    assert distances[3, :3].min() > 1.3 * distances[:3, :3].max()
    request = replace(singles[0], takes=4)
    (kept,) = best_takes(codec, [request], lambda _singles: said[::-1])
    assert kept is not said[3]


def test_speaking_takes_several_unless_told_otherwise(
    tiny_base: Base, tiny_moshi: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice, asked = Voice(tiny_base), []
    real = Voice.generate
    monkeypatch.setattr(Voice, "generate", lambda self, requests: asked.extend(requests) or real(self, requests))
    voice.speak("a key", seed=1)
    voice.speak("a key", seed=1, takes=2)
    assert [request.takes for request in asked] == [SPEAKING_TAKES, 2]
    assert voice.request("a key").takes == 1
    assert Voice(tiny_moshi).num_takes(SPEAKING_TAKES) == 1
    assert voice.request("a key", takes=4, temperature=0.0).takes == 1


def test_what_cannot_be_compared_is_refused(tiny_base: Base) -> None:
    with pytest.raises(ConfigError, match="takes must be 1 or more"):
        _requests(tiny_base, takes=0)
    voice = Voice(tiny_base)
    with pytest.raises(ConfigError, match="stream one take"):
        next(voice.stream_together([voice.request("a key", takes=2)]))
