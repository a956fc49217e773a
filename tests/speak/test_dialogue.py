"""Speaking with Moshi: greedily it says what Kyutai's own generator says, code by code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from affetto.adapters.bank import AdapterBank
from affetto.codes.silence import silence_codes
from affetto.errors import ConfigError
from affetto.model.base import Base
from affetto.model.batch import Row, Streams, Turn, collate
from affetto.model.monologue import END_PADDING, PADDING
from affetto.speak.dialogue import (
    END_FRAMES,
    PATIENCE_FRAMES,
    _Reader,
    _words,
    continue_dialogue,
    stream_dialogue,
    stream_words,
)
from affetto.speak.generation import Request, generate
from affetto.speak.voice import Voice
from moshi_checkpoint import REFERENCE


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("row", [0, 1])
def test_greedy_dialogue_is_that_of_the_authors_generator(tiny_moshi: Base, row: int) -> None:
    """`LMGen` of the moshi package, on the same user's codes: text and every code of every frame."""
    theirs = load_file(REFERENCE / "reference.safetensors")
    text_T, codes_TK = continue_dialogue(tiny_moshi, theirs["user"][row].T.numpy(), temperature=0, text_temperature=0)
    spoken_CT = theirs["spoken"][row]
    assert spoken_CT.shape == (5, 14)
    assert len(np.unique(spoken_CT[1:])) > 8
    np.testing.assert_array_equal(text_T, spoken_CT[0])
    np.testing.assert_array_equal(codes_TK, spoken_CT[1:].T)


@torch.no_grad()
def test_what_is_said_is_what_the_network_finds_likeliest(tiny_moshi: Base) -> None:
    """Pitfall 6: step by step with caches equals teacher forcing on the whole, for every codebook."""
    user_TK = np.random.default_rng(0).integers(0, 32, (12, 4))
    text_T, codes_TK = continue_dialogue(tiny_moshi, user_TK, temperature=0, text_temperature=0)
    row = Row("said", (Turn((), codes_TK, Streams(text_T, np.ones(12), user_TK)),))
    said = tiny_moshi.network(collate([row], 4))
    assert said.text_NW is not None
    np.testing.assert_array_equal(said.text_NW.argmax(dim=-1), text_T[:-1])
    np.testing.assert_array_equal(said.c0_NV.argmax(dim=-1), codes_TK[:-1, 0])
    np.testing.assert_array_equal(said.depth_MJV.argmax(dim=-1), codes_TK[:-1, 1:])


def test_a_seed_says_the_same_again_and_another_something_else(tiny_moshi: Base) -> None:
    user_TK = silence_codes(tiny_moshi.folder, 10)
    first, again, other = (continue_dialogue(tiny_moshi, user_TK, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[1] != other[1]).any()


def test_a_user_is_heard_while_moshi_speaks(tiny_moshi: Base) -> None:
    """A frame of the user's is asked for when all before it have been answered."""
    user_TK = np.random.default_rng(1).integers(0, 32, (8, 4))
    text_T, codes_TK = continue_dialogue(tiny_moshi, user_TK, seed=2)
    asked = []

    def microphone() -> Iterator[NDArray[np.int64]]:
        for place, codes_K in enumerate(user_TK):
            asked.append(place)
            yield codes_K

    for place, (text, codes_K) in enumerate(stream_dialogue(tiny_moshi, microphone(), 8, seed=2)):
        assert len(asked) == place + 1
        assert tiny_moshi.network.gates.rows_BE is None, "between frames the network is the base's"
        assert (text, codes_K.tolist()) == (text_T[place], codes_TK[place].tolist())
    assert place == 7
    # Who hangs up has heard an answer to every frame but the last.
    short = list(stream_dialogue(tiny_moshi, user_TK[:5], 8, seed=2))
    assert [codes_K.tolist() for _, codes_K in short] == codes_TK[:5].tolist()


def test_a_voice_streams_moshi(tiny_moshi: Base) -> None:
    voice = Voice(tiny_moshi)
    whole, _ = voice.speak("the silver key", seed=4)
    pieces = list(voice.stream("the silver key", seed=4))
    with pytest.raises(ConfigError, match="can't be given earlier turns"):
        voice.turn("hello", whole, 24_000)
    assert all(len(piece) == 1920 for piece in pieces)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-4 * whole.std())


def test_given_words_are_all_said_in_order_and_alone(tiny_moshi: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    from affetto.speak import dialogue

    heard: list[list[dialogue.Frame]] = []
    converse = dialogue.converse

    def listening(*arguments: Any, **named: Any) -> Iterator[dialogue.Frame]:
        heard.append([])
        for frame in converse(*arguments, **named):
            heard[-1].append(frame)
            yield frame

    monkeypatch.setattr(dialogue, "converse", listening)
    ids = [tiny_moshi.prompt_ids(text, 0) for text in ("hello the silver key", "the key")]
    requests = [Request(one, 120, seed=n, temperature=0.7) for n, one in enumerate(ids)]
    spoken = generate(tiny_moshi, requests)
    for n, (one, result) in enumerate(zip(ids, spoken, strict=True)):
        text_T = torch.stack([frame.text_B[n] for frame in heard[0]])[: len(result.codes_TK)]
        assert text_T[(text_T != PADDING) & (text_T != END_PADDING)].tolist() == list(one)
        assert not result.hit_cap
        assert len(one) + END_FRAMES <= len(result.codes_TK) <= 120
        alone = generate(tiny_moshi, [requests[n]])[0]
        np.testing.assert_array_equal(result.codes_TK, alone.codes_TK)
        np.testing.assert_array_equal(np.stack(list(stream_words(tiny_moshi, requests[n]))), result.codes_TK)


def test_the_cap_is_told(tiny_moshi: Base) -> None:
    spoken = generate(tiny_moshi, [Request(tiny_moshi.prompt_ids("hello the silver key", 0), 3)])[0]
    assert spoken.hit_cap
    assert spoken.codes_TK.shape == (3, 4)


def test_a_row_is_said_with_its_own_adapter(tiny_moshi: Base) -> None:
    bank = AdapterBank(tiny_moshi.model, tiny_moshi.network.gates)
    bank.add("happy", rank=2, alpha=4.0, seed=0)
    with torch.no_grad():
        for _, _, b_OR, _ in bank.factors("happy"):
            assert b_OR is not None
            b_OR.normal_(std=0.3)
    request = Request(tiny_moshi.prompt_ids("the key", 0), 60, (0.0,), temperature=0)
    plain, happy = generate(tiny_moshi, [request, replace(request, gate=(1.0,))])
    again = generate(tiny_moshi, [request])[0]
    np.testing.assert_array_equal(plain.codes_TK, again.codes_TK)
    length = min(len(plain.codes_TK), len(happy.codes_TK))
    assert (plain.codes_TK[:length] != happy.codes_TK[:length]).any()


def test_a_voice_speaks_with_moshi(tiny_moshi: Base) -> None:
    voice = Voice(tiny_moshi)
    samples, rate = voice.speak("the silver key")
    assert rate == 24_000
    assert len(samples) % 1920 == 0
    assert np.abs(samples).max() > 0


def test_words_are_told_by_their_first_pieces(tiny_moshi: Base) -> None:
    ids = tiny_moshi.prompt_ids("hello key, sing", 0)
    pieces = [tiny_moshi.tokenizer.convert_ids_to_tokens(word) for word in _words(tiny_moshi, ids)]
    assert ["".join(word) for word in pieces] == ["▁hello", "▁key,", "▁sing"]


def test_a_word_waits_for_moshi_and_not_for_ever() -> None:
    reader = _Reader([[300, 301], [302]], max_frames=100)
    assert [reader.next(PADDING, step) for step in range(2)] == [PADDING] * 2
    assert reader.next(END_PADDING, 2) == END_PADDING
    assert [reader.next(PADDING, 3 + step) for step in range(2)] == [PADDING] * 2
    assert [reader.next(wanted, 5) for wanted in (299, PADDING)] == [300, 301]
    said = [reader.next(PADDING, 7 + step) for step in range(PATIENCE_FRAMES + 1)]
    assert said == [PADDING] * PATIENCE_FRAMES + [302]
    last = 7 + PATIENCE_FRAMES + 1
    assert [reader.next(5, last + step) for step in range(END_FRAMES)] == [PADDING] * END_FRAMES
    assert reader.end is None
    assert reader.next(5, last + END_FRAMES) == PADDING
    assert reader.end == last + END_FRAMES
