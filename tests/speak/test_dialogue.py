"""Speaking with Moshi: greedily it says what Kyutai's own generator says, code by code."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from affetto.adapters.bank import AdapterBank
from affetto.codes.silence import silence_codes
from affetto.errors import BaseModelError, ConfigError
from affetto.model.base import Base
from affetto.model.batch import Row, Streams, Turn, collate
from affetto.model.monologue import END_PADDING, PADDING
from affetto.speak.dialogue import (
    END_FRAMES,
    PATIENCE_FRAMES,
    _Reader,
    _words,
    continue_dialogue,
    converse,
    stream_dialogue,
    stream_words,
)
from affetto.speak.generation import generate
from affetto.speak.requests import Request
from affetto.speak.voice import Voice
from banks import trained_bank
from moshi_checkpoint import REFERENCE

WINDOW = 40
"""Positions that the tiny Moshi looks back over, its own among them (`context` of the package's config.json)."""


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
@pytest.mark.parametrize("frames", [12, WINDOW])
def test_what_is_said_is_what_the_network_finds_likeliest(tiny_moshi: Base, frames: int) -> None:
    """Pitfall 6: step by step with caches equals teacher forcing on the whole, for every codebook."""
    user_TK = np.random.default_rng(0).integers(0, 32, (frames, 4))
    text_T, codes_TK = continue_dialogue(tiny_moshi, user_TK, temperature=0, text_temperature=0)
    row = Row("said", (Turn((), codes_TK, Streams(text_T, np.ones(frames), user_TK)),))
    said = tiny_moshi.network(collate([row], 4))
    assert said.text_NW is not None
    np.testing.assert_array_equal(said.text_NW.argmax(dim=-1), text_T[:-1])
    np.testing.assert_array_equal(said.c0_NV.argmax(dim=-1), codes_TK[:-1, 0])
    np.testing.assert_array_equal(said.depth_MJV.argmax(dim=-1), codes_TK[:-1, 1:])


@dataclass
class _Steps:
    """What went into the main transformer at each step of a dialogue, what came out, and its cache."""

    inputs: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    cache: Any = None
    cached_bytes: list[int] = field(default_factory=list)

    def heard(self, _: nn.Module, __: Any, given: dict[str, Any], found: Any) -> None:
        self.inputs.append(given["inputs_embeds"])
        self.states.append(found.last_hidden_state)
        self.cache = given["past_key_values"]
        kept = [values.untyped_storage() for layer in self.cache.layers for values in (layer.keys, layer.values)]
        self.cached_bytes.append(sum(storage.nbytes() for storage in kept))


@torch.no_grad()
def test_each_step_hears_a_window_and_keeps_no_more(tiny_moshi: Base) -> None:
    """Beyond the window too, step by step equals one pass in which position q sees p where 0 <= q - p < context.

    That mask is the one of the package's attention (`delta < self.context`, moshi/modules/transformer.py).
    """
    assert tiny_moshi.window == WINDOW
    backbone, steps = tiny_moshi.network.backbone, _Steps()
    ears = backbone.register_forward_hook(steps.heard, with_kwargs=True)
    user_TK = np.random.default_rng(3).integers(0, 32, (3 * WINDOW, 4))
    continue_dialogue(tiny_moshi, user_TK, seed=5)
    ears.remove()
    inputs_BSD, stepwise_BSD = torch.cat(steps.inputs, dim=1), torch.cat(steps.states, dim=1)
    assert stepwise_BSD.std() > 0.5
    places_S = torch.arange(inputs_BSD.shape[1])
    ago_SS = places_S[:, None] - places_S
    for context, is_said in ((WINDOW - 1, False), (WINDOW, True), (WINDOW + 1, False)):
        mask_SS = (ago_SS >= 0) & (ago_SS < context)
        whole_BSD = backbone(inputs_embeds=inputs_BSD, attention_mask=mask_SS[None, None]).last_hidden_state
        off_S = (whole_BSD - stepwise_BSD).abs().amax(dim=(0, 2))
        assert (off_S[: min(context, WINDOW)] < 1e-4).all()
        assert bool((off_S < 1e-4).all()) == is_said, f"{context} positions: off by up to {off_S.max():.2g}"
    # Without a mask, as rows are trained, it is the same up to the window, which is as long as rows may be.
    plain_BSD = backbone(inputs_embeds=inputs_BSD[:, : WINDOW + 1]).last_hidden_state
    off_S = (plain_BSD - stepwise_BSD[:, : WINDOW + 1]).abs().amax(dim=(0, 2))
    assert (off_S[:WINDOW] < 1e-4).all()
    assert off_S[WINDOW] > 1e-4
    assert [layer.keys.shape[-2] for layer in steps.cache.layers] == [WINDOW - 1] * 2, "the next step is the last of it"
    assert len(set(steps.cached_bytes[WINDOW:])) == 1, "the cache grows"


@torch.no_grad()
def test_what_was_heard_before_the_window_is_forgotten(tiny_moshi: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two layers looks back over 39 positions before its own, so what is heard at one counts 78 steps later."""
    said = torch.randint(0, 32, (4 * WINDOW, 1, 4), generator=torch.Generator().manual_seed(0))
    turn = iter(())

    def scripted(*_: Any) -> Tensor:
        return next(turn)

    monkeypatch.setattr("affetto.speak.dialogue._codes", scripted)
    user_TBK = torch.randint(0, 32, (3 * WINDOW, 1, 4), generator=torch.Generator().manual_seed(1))
    other_TBK = user_TBK.clone()
    other_TBK[0] = (other_TBK[0] + 1) % 32
    heard: list[list[Tensor]] = []
    for user in (user_TBK, other_TBK):
        turn, logits = iter(said), []

        def pick(logits_BW: Tensor, _: int, logits: list[Tensor] = logits) -> Tensor:
            logits.append(logits_BW)
            return torch.tensor([PADDING])

        list(converse(tiny_moshi, user, pick, [Request((), len(user))], len(user)))
        heard.append(logits)
    differs = [bool((one != other).any()) for one, other in zip(*heard, strict=True)]
    # The first frame's first code is heard at step 1 and its acoustic ones at step 2.
    last = 2 + 2 * (WINDOW - 1)
    assert differs == [False] + [True] * last + [False] * (len(differs) - last - 1)


def test_a_seed_says_the_same_again_and_another_something_else(tiny_moshi: Base) -> None:
    user_TK = silence_codes(tiny_moshi.folder, 10)
    first, again, other = (continue_dialogue(tiny_moshi, user_TK, seed=seed) for seed in (1, np.int64(1), 2))
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


def test_threads_that_speak_at_once_keep_to_their_own_emotions(tiny_moshi: Base) -> None:
    """Its adapters are gated by the network itself, one gate at a time."""
    trained_bank(tiny_moshi)
    ids = tiny_moshi.prompt_ids("the key", 0)
    requests = [Request(ids, max_frames=12, gate=(2.0 * (number % 2),), seed=number // 2) for number in range(6)]

    def say(request: Request) -> list[list[int]]:
        codes: list[list[int]] = generate(tiny_moshi, [request])[0].codes_TK.tolist()
        return codes

    alone = [say(request) for request in requests]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(say, requests)) == alone


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
    told = list(stream_words(tiny_moshi, requests))
    for n, result in enumerate(spoken):
        own = [one for frame in told for one in frame if one.number == n]
        assert [one.is_last for one in own] == [*[False] * (len(own) - 1), True], "and then nothing more"
        codes = [one.codes_K for one in own if one.codes_K is not None]
        np.testing.assert_array_equal(np.stack(codes), result.codes_TK)


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


@pytest.mark.parametrize(
    "name",
    ["decoder.model.layers.0.self_attn.v_proj.linear.weight", "decoder.lm_head.weight",
     "depth_decoder.layers.1.mlp.fc2.weight", "depth_decoder.lm_heads.weight"],
)  # fmt: skip
def test_a_moshi_whose_weights_are_not_numbers_says_so(tiny_moshi: Base, name: str) -> None:
    tiny_moshi.model.get_parameter(name).data.view(-1)[-1] = torch.nan
    request = Request(tiny_moshi.prompt_ids("the key", 0), 6)
    with pytest.raises(BaseModelError, match=r"NaN or infinite.*fetch the checkpoint again") as caught:
        generate(tiny_moshi, [request])
    assert str(tiny_moshi.folder) in str(caught.value)
    with pytest.raises(BaseModelError, match="NaN or infinite"):
        continue_dialogue(tiny_moshi, np.zeros((3, 4), dtype=np.int64))


def test_words_longer_than_the_window_are_said_by_moshi(tiny_moshi: Base) -> None:
    """It forgets the oldest of what was said; nothing ends."""
    assert Voice(tiny_moshi).request("the silver key " * 40).max_frames > 2 * tiny_moshi.window
