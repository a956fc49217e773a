"""The take that is kept is the one whose codes follow best from the words, by the network's own logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from affetto.adapters.bank import AdapterBank
from affetto.errors import ConfigError
from affetto.model.base import Base, load_base
from affetto.model.batch import Row, Turn, collate
from affetto.speak import takes
from affetto.speak.generation import Request, Spoken, generate, weights_of
from affetto.speak.takes import LAMBDA, best_takes, log_likelihoods, take_scores
from affetto.speak.voice import Voice
from affetto.types import SPEAKING_TAKES

TEXTS = ["the silver key", "a", "a much longer line about rivers"]


@pytest.fixture
def gated(tiny_base: Base) -> Base:
    """The tiny base with two adapters that change it a lot."""
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, ("q_proj", "down_proj", "inputs_embeds_projector"))
    generator = torch.Generator().manual_seed(0)
    for seed, name in enumerate(("happy", "sad")):
        bank.add(name, rank=2, alpha=8.0, seed=seed)
        with torch.no_grad():
            for _, _, b_OR, _ in bank.factors(name):
                b_OR.normal_(std=0.2, generator=generator)
    return tiny_base


def _requests(base: Base, texts: Sequence[str] = TEXTS, **fields: object) -> list[Request]:
    wordless = base.prompt_ids("", 0)
    return [
        Request(base.prompt_ids(text, 0), **({"max_frames": 7, "wordless_ids": wordless, "seed": 3 + i} | fields))  # type: ignore[arg-type]
        for i, text in enumerate(texts)
    ]


def _codes(num_frames: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(1, 256, (num_frames, 8))


@torch.no_grad()
def _by_the_network(base: Base, request: Request, codes_TK: NDArray[np.int64]) -> float:
    """log p of codes by the trained road: its own rows, batches and logits, over what the codec has."""
    row = Row("said", (*request.context, Turn(request.text_ids, codes_TK)), request.gate)
    logits = base.network(collate([row], 8))
    log_p_TKC = torch.cat([logits.c0_NV[:, None], logits.depth_MJV], dim=1)[..., :256].double().log_softmax(-1)
    # The row's last frame ends speech, and wasn't said.
    return float(log_p_TKC[:-1].gather(2, torch.from_numpy(codes_TK)[..., None]).sum())


def test_likelihoods_are_those_of_the_teacher_forced_logits(
    gated: Base, make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takes, "_POSITIONS", 40)
    monkeypatch.setattr(takes, "_ROWS", 3)
    gates = [(), (0.0, 0.0), (1.0, 0.0), (0.5, -0.7), (1.0, 0.0), (1.0, 0.0), (1.0, 0.0)]
    asked = [replace(_requests(gated)[i % 3], gate=gate) for i, gate in enumerate(gates)]
    asked[4] = replace(asked[4], context=make_row(11, frames=(3, 2)).turns)
    codes = [_codes(length, seed) for seed, length in enumerate((4, 1, 9, 6, 3, 7, 2))]
    spoken = [Spoken(said, hit_cap=False) for said in codes]
    found = log_likelihoods(weights_of(gated.network), asked, spoken)
    expected = [_by_the_network(gated, request, said) for request, said in zip(asked, codes, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(found[2] - _by_the_network(gated, replace(asked[2], gate=()), codes[2])) > 1.0, "gates matter"


def test_the_score_is_the_mutual_information_of_words_and_codes(tiny_base: Base) -> None:
    request, codes = _requests(tiny_base)[0], _codes(6, 1)
    (found,) = take_scores(weights_of(tiny_base.network), [request], [Spoken(codes, hit_cap=False)])
    silent = replace(request, text_ids=request.wordless_ids)
    after_text, after_none = (_by_the_network(tiny_base, asked, codes) for asked in (request, silent))
    assert found == pytest.approx((after_text - LAMBDA * after_none) / 6, rel=1e-5)
    (nothing,) = take_scores(weights_of(tiny_base.network), [request], [Spoken(codes[:0], hit_cap=False)])
    assert nothing == -np.inf


def test_the_best_of_the_takes_is_kept_and_the_first_has_the_requests_seed(tiny_base: Base) -> None:
    requests = [replace(request, takes=3 + i) for i, request in enumerate(_requests(tiny_base, temperature=1.0))]
    kept = generate(tiny_base, requests)
    weights, places = weights_of(tiny_base.network), []
    for request, found in zip(requests, kept, strict=True):
        singles = [
            replace(request, takes=1, seed=request.seed + take * takes._SEEDS_APART) for take in range(request.takes)
        ]
        alone = generate(tiny_base, singles)
        assert len({one.codes_TK.tobytes() for one in alone}) == request.takes
        scores = take_scores(weights, singles, alone)
        place = int(scores.argmax())
        assert found.codes_TK.tolist() == alone[place].codes_TK.tolist()
        places.append(place)
    assert any(places), "the first take was always the best: nothing is proved"
    assert [one.codes_TK.tolist() for one in generate(tiny_base, requests, batch_size=2)] == [
        one.codes_TK.tolist() for one in kept
    ]


def test_takes_that_failed_are_kept_only_where_all_did(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, cut, nothing = Spoken(_codes(3, 0), False), Spoken(_codes(7, 1), True), Spoken(_codes(0, 2), False)

    def scores(_weights: object, _requests: object, spoken: list[Spoken]) -> NDArray[np.float64]:
        return np.array([-np.inf if said is nothing else len(said.codes_TK) for said in spoken])

    monkeypatch.setattr(takes, "take_scores", scores)
    request = replace(_requests(tiny_base)[0], takes=3)
    weights = weights_of(tiny_base.network)
    for said, expected in (([cut, ends, nothing], ends), ([nothing, cut, cut], nothing), ([cut, cut, cut], cut)):
        assert best_takes(weights, [request], lambda _singles, said=said: said) == [expected]


def test_greedy_takes_are_all_the_same(tiny_base: Base) -> None:
    requests = _requests(tiny_base, temperature=0.0)
    once, often = generate(tiny_base, requests), generate(tiny_base, [replace(one, takes=3) for one in requests])
    assert [one.codes_TK.tolist() for one in once] == [one.codes_TK.tolist() for one in often]


def test_what_is_said_once_and_what_is_said_often_may_go_together(tiny_base: Base) -> None:
    once, often = _requests(tiny_base, TEXTS[:2])
    once, often = replace(once, wordless_ids=()), replace(often, takes=3)
    together = generate(tiny_base, [once, often, once])
    alone = [generate(tiny_base, [request])[0] for request in (once, often, once)]
    assert [one.codes_TK.tolist() for one in together] == [one.codes_TK.tolist() for one in alone]


def test_progress_is_told_of_requests_and_not_of_takes(tiny_base: Base) -> None:
    told: list[int] = []
    generate(tiny_base, [replace(one, takes=4) for one in _requests(tiny_base)], on_progress=told.append)
    assert sum(told) == len(TEXTS)
    assert all(told)


def test_words_that_were_said_are_told_from_others() -> None:
    """The shipped base: what it says of a text is weighed higher with that text than with another."""
    base = load_base("miniature")
    requests = _requests(base, ["your mirror will not want those lucky lunches", "the old farmer sold a red boat"])
    said = generate(base, [replace(request, max_frames=60) for request in requests])
    weights = weights_of(base.network)
    right, wrong = take_scores(weights, requests, said), take_scores(weights, requests[::-1], said)
    assert (right > wrong + 1.0).all()


def test_speaking_takes_several_unless_told_otherwise(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    voice, asked = Voice(tiny_base), []
    real = Voice.generate
    monkeypatch.setattr(Voice, "generate", lambda self, requests: asked.extend(requests) or real(self, requests))
    voice.speak("a key", seed=1)
    voice.speak("a key", seed=1, takes=2)
    assert [request.takes for request in asked] == [SPEAKING_TAKES, 2]
    assert asked[0].wordless_ids == tiny_base.prompt_ids("", 0)
    assert voice.request("a key").takes == 1
    assert voice.request("a key", takes=4, temperature=0.0).takes == 1


def test_what_cannot_be_weighed_is_refused(tiny_base: Base, tiny_moshi: Base) -> None:
    with pytest.raises(ConfigError, match="takes must be 1 or more"):
        _requests(tiny_base, takes=0)
    with pytest.raises(ConfigError, match="wordless_ids"):
        Request((0, 1), 3, takes=2)
    assert Voice(tiny_moshi).num_takes(4) == 1
    with pytest.raises(ConfigError, match="can't weigh what it said: ask it for one take"):
        generate(tiny_moshi, [Request((1, 2), 3, takes=2, wordless_ids=(1,))])
    voice = Voice(tiny_base)
    with pytest.raises(ConfigError, match="stream one take"):
        next(voice.stream_together([voice.request("a key", takes=2)]))
