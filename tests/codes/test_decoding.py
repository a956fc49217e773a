"""Sounds decoded side by side are the sounds decoded one by one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from affetto.codes import decoding
from affetto.codes.codec import load_codec
from affetto.codes.decoding import decode_each
from affetto.codes.vocoder import VocoderCodec
from affetto.model.base import find_base


@pytest.fixture(scope="module")
def codec() -> VocoderCodec:
    found = load_codec(find_base("miniature"))
    assert isinstance(found, VocoderCodec)
    return found


@pytest.fixture(scope="module")
def codes(codec: VocoderCodec) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    lengths = (5, 0, 12, 1, 7)
    return [rng.integers(codec.codebook_size, size=(frames, codec.num_codebooks)) for frames in lengths]


def test_many_sounds_are_what_each_is_alone(
    codec: VocoderCodec, codes: list[NDArray[np.int64]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_SOUNDS_AT_ONCE", 2)
    found = list(decode_each(codec, codes))
    assert [len(sound) for sound in found] == [1920 * len(codes_TK) for codes_TK in codes]
    for sound, codes_TK in zip(found, codes, strict=True):
        np.testing.assert_array_equal(sound, codec.decode(codes_TK))


def test_only_what_computes_outside_of_pythons_lock_is_given_threads(
    codec: VocoderCodec, codes: list[NDArray[np.int64]], monkeypatch: pytest.MonkeyPatch
) -> None:
    where: set[str] = set()

    def decode(_self: object, codes_TK: NDArray[np.int64]) -> NDArray[np.float32]:
        where.add(threading.current_thread().name)
        return np.zeros(len(codes_TK), dtype=np.float32)

    network = type("Network", (), {"decode": decode})()
    list(decode_each(network, codes))
    assert where == {threading.main_thread().name}
    where.clear()
    monkeypatch.setattr(VocoderCodec, "decode", decode)
    list(decode_each(codec, codes))
    assert threading.main_thread().name not in where
