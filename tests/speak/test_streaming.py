"""Many requests heard while they are spoken: each is what it is alone, and the codec is asked once a frame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import MimiModel

from affetto.codes.neural import MimiCodec
from affetto.miniature.base import make_config
from affetto.model.base import Base
from affetto.speak.engine import Engine
from affetto.speak.generation import generate, weights_of
from affetto.speak.requests import Request
from affetto.speak.state import Heard
from affetto.speak.streaming import Piece, sound_of
from affetto.speak.voice import Voice


def requests_of(voice: Voice) -> list[Request]:
    """Of unlike lengths, some of which end by themselves and some by their caps."""
    texts = ["a key", "the silver key", "a", "old stones", "a much longer line about rivers", "the"]
    made = [voice.request(text, seed=seed) for seed, text in enumerate(texts)]
    return [replace(one, max_frames=cap) for one, cap in zip(made, (9, 24, 3, 12, 30, 7), strict=True)]


def joined(pieces: Iterable[Piece], count: int) -> list[NDArray[np.float32]]:
    """All that was heard of each request, which must have ended once and with nothing behind."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in range(count)]
    ended: list[int] = []
    for piece in pieces:
        assert piece.number not in ended
        found[piece.number].append(piece.samples_N)
        if piece.is_last:
            ended.append(piece.number)
    assert sorted(ended) == list(range(count))
    return [np.concatenate(parts) for parts in found]


def assert_close(samples: NDArray[np.float32], whole: NDArray[np.float32]) -> None:
    """Equal to float32's rounding, of sounds that random weights may make as loud as they like."""
    np.testing.assert_allclose(samples, whole, rtol=0, atol=1e-5 * float(np.abs(whole).max(initial=1.0)))


@pytest.fixture(params=["vocoder", "mimi"])
def voice(tiny_base: Base, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Voice:
    made = Voice(tiny_base)
    if request.param == "mimi":
        torch.manual_seed(0)
        monkeypatch.setitem(made.__dict__, "codec", MimiCodec(MimiModel(make_config().codec_config), 8))
    return made


@pytest.mark.parametrize("batch_size", [2, 4, 32])
def test_each_request_is_heard_as_it_is_spoken_alone(voice: Voice, batch_size: int) -> None:
    requests = requests_of(voice)
    found = joined(voice.stream_together(requests, batch_size=batch_size), len(requests))
    spoken = generate(voice.base, requests, batch_size=batch_size)
    assert {one.hit_cap for one in spoken} == {True}, "the tiny base never ends by itself"
    for samples, one in zip(found, spoken, strict=True):
        whole = voice.decode(one)
        assert len(whole) > 0
        assert_close(samples, whole)


def test_rows_that_end_by_themselves_end_their_sounds(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = {"sums": 0}
    step = Engine.step

    def ending(engine: Engine) -> list[Heard]:
        """Row 1 says the frame that ends speech as its fifth, row 3 as its first."""
        frames["sums"] += 1
        batch = engine._batch
        told = step(engine)
        rows = engine._batch.rows if engine._batch else batch.rows if batch else []
        changed = []
        for one in told:
            if one.number in (1, 3) and frames["sums"] == {1: 5, 3: 1}[one.number]:
                next(row for row in rows if row.number == one.number).is_done = True
                one = one._replace(codes_K=None, is_last=True)
            changed.append(one)
        return changed

    requests = sorted(requests_of(voice), key=lambda one: one.max_frames)[1:]
    lengths = [one.max_frames for one in requests]
    spoken = generate(voice.base, requests)
    monkeypatch.setattr(Engine, "step", ending)
    found = joined(voice.stream_together(requests), len(requests))
    lengths[1], lengths[3] = 4, 0
    for samples, one, length in zip(found, spoken, lengths, strict=True):
        whole = voice.codec.decode(one.codes_TK[:length])
        assert_close(samples, whole)


def test_with_mimi_the_codec_is_asked_once_a_frame(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    voice, codec = Voice(tiny_base), MimiCodec(MimiModel(make_config().codec_config), 8)
    monkeypatch.setitem(voice.__dict__, "codec", codec)
    decode, widths = codec.model.quantizer.decode, []
    monkeypatch.setattr(codec.model.quantizer, "decode", lambda codes: widths.append(len(codes)) or decode(codes))
    pieces = list(voice.stream_together(requests_of(voice)))
    caps = [one.max_frames for one in requests_of(voice)]
    assert widths == [sum(cap > frame for cap in caps) for frame in range(max(caps))]
    assert len(pieces) == sum(caps) + len(caps)


def test_a_request_without_a_frame_ends_at_once(voice: Voice) -> None:
    requests = [replace(one, max_frames=0) for one in requests_of(voice)[:2]]
    pieces = list(voice.stream_together(requests))
    assert [(piece.number, len(piece.samples_N), piece.is_last) for piece in pieces] == [(0, 0, True), (1, 0, True)]
    assert [one.hit_cap for one in generate(voice.base, requests)] == [True, True]


def test_rows_that_join_an_engine_later_are_heard_too(voice: Voice) -> None:
    requests = requests_of(voice)[:3]
    engine, streams = Engine(weights_of(voice.base.network)), voice.codec.open_streams()
    pieces, codes = [], {number: [] for number in range(3)}
    engine.join(requests[:1])
    for step in range(100):
        if step in (2, 4):
            engine.join([requests[step // 2]])
        told = engine.step() if engine.num_speaking else []
        for one in told:
            codes[one.number].append(one.codes_K)
        pieces += sound_of(told, streams)
    for number, samples in enumerate(joined(pieces, 3)):
        assert len(codes[number]) == requests[number].max_frames
        assert_close(samples, voice.codec.decode(np.stack(codes[number])))


def test_who_stops_listening_ends_the_batch(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, close = [], Engine.close
    monkeypatch.setattr(Engine, "close", lambda engine: closed.append(engine.num_speaking) or close(engine))
    pieces = voice.stream_together(requests_of(voice))
    for _ in range(4):
        next(pieces)
    pieces.close()
    assert closed == [6]
