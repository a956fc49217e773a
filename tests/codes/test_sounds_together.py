"""Many sounds in one pass: each is what it is alone and at once, whenever it begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_sound_stream import BOOKS, VARIANTS, codes_of, mimi_of
from torch import nn
from transformers import DacConfig, DacModel, MimiConfig, MimiModel

from affetto.codes.codec import load_codec
from affetto.codes.mimi_layers import _transposed
from affetto.codes.neural import DacCodec, MimiCodec
from affetto.codes.sound_stream import SeparateStreams
from affetto.errors import BaseModelError, DataError
from affetto.types import SoundStream, SoundStreams

Sounds = dict[int, NDArray[np.float32]]
PLAN = {7: (0, 5), 3: (0, 24), 11: (2, 20), 0: (5, 1), 4: (6, 9), 12: (6, 9), 5: (7, 17), 8: (30, 3), 9: (31, 6)}
"""The step that a sound begins with and its frames. They overlap in all ways; before the last two nothing is open."""


def speak(streams: SoundStreams, codes: Mapping[int, NDArray[np.int64]], starts: Mapping[int, int]) -> Sounds:
    """All samples of each sound of `codes` (T, K), one frame a step; sounds end as soon as they have no more frames."""
    found: dict[int, list[NDArray[np.float32]]] = {number: [] for number in codes}
    for step in range(max(starts[number] + len(codes_TK) for number, codes_TK in codes.items())):
        places = {number: step - starts[number] for number in codes}
        now = {n: codes[n][place][None] for n, place in places.items() if 0 <= place < len(codes[n])}
        told = streams.push(now)
        assert told.keys() == now.keys()
        for number, samples in told.items():
            found[number].append(samples)
            if places[number] == len(codes[number]) - 1:
                found[number].append(streams.finish(number))
    return {number: np.concatenate(pieces) for number, pieces in found.items()}


def planned(codec: Any, num_codebooks: int) -> tuple[dict[int, NDArray[np.int64]], dict[int, int]]:
    rng = np.random.default_rng(5)
    codes = {n: rng.integers(0, codec.codebook_size, (length, num_codebooks)) for n, (_, length) in PLAN.items()}
    return codes, {number: start for number, (start, _) in PLAN.items()}


def at_once(codec: MimiCodec, codes_TK: NDArray[np.int64]) -> NDArray[Any]:
    return codec.model.eval().decode(torch.tensor(codes_TK.T[None])).audio_values.flatten().detach().numpy()


def alone(open_stream: Callable[[], SoundStream], codes_TK: NDArray[np.int64]) -> NDArray[np.float32]:
    stream = open_stream()
    return np.concatenate([*(stream.push(frame_K[None]) for frame_K in codes_TK), stream.finish()])


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_sounds_that_come_and_go_are_those_at_once(changes: dict[str, Any]) -> None:
    codec = mimi_of(**changes)
    codes, starts = planned(codec, BOOKS)
    found = speak(codec.open_streams(), codes, starts)
    assert found.keys() == PLAN.keys()
    for number, codes_TK in codes.items():
        whole = at_once(codec, codes_TK)
        assert whole.std() > 1e-3
        np.testing.assert_allclose(found[number], whole, rtol=1e-5, atol=1e-6 * whole.std(), err_msg=str(number))


def test_in_float32_they_are_those_alone() -> None:
    codec = mimi_of(sliding_window=9)
    codec.model.float()
    codes, starts = planned(codec, BOOKS)
    found = speak(codec.open_streams(), codes, starts)
    for number, codes_TK in codes.items():
        single = alone(codec.open_stream, codes_TK)
        assert single.std() > 1e-3
        for wanted in (single, at_once(codec, codes_TK)):
            assert np.abs(found[number] - wanted).max() <= 1e-5 * max(1.0, float(np.abs(wanted).max()))


def test_at_the_published_size_they_are_those_at_once() -> None:
    torch.manual_seed(0)
    codec = MimiCodec(MimiModel(MimiConfig()), 32)
    lengths, starts = {0: 4, 1: 2, 2: 2}, {0: 0, 1: 0, 2: 1}
    rng = np.random.default_rng(0)
    codes = {number: rng.integers(0, 2048, (length, 32)) for number, length in lengths.items()}
    for layer in codec.model.decoder.layers:
        # transformers' biases alone are louder than what codes make of its weights.
        for part in layer.modules():
            if isinstance(part, nn.Conv1d | nn.ConvTranspose1d):
                nn.init.normal_(part.weight, std=(2 / part.weight[0].numel()) ** 0.5)
    for name, buffer in codec.model.named_buffers():
        if name.endswith("embed_sum"):
            nn.init.normal_(buffer)
    found = speak(codec.open_streams(), codes, starts)
    for number, codes_TK in codes.items():
        whole = at_once(codec, codes_TK)
        assert whole.std() > 1e-3
        assert np.abs(found[number] - whole).max() <= 1e-5 * max(1.0, float(np.abs(whole).max()))


def test_pieces_of_any_size_do_as_well() -> None:
    codec = mimi_of(sliding_window=5)
    one_TK, other_TK = codes_of(20, codec), codes_of(20, codec)[::-1].copy()
    streams, found = codec.open_streams(), dict[int, list[NDArray[np.float32]]]({0: [], 1: []})
    for start, end in ((0, 3), (3, 3), (3, 4), (4, 11), (11, 20)):
        # The other one begins with the third piece.
        pieces = {0: one_TK[start:end]} | ({1: other_TK[start:end]} if start >= 3 and end > 3 else {})
        for number, samples in streams.push(pieces).items():
            found[number].append(samples)
    for number, codes_TK in ((0, one_TK), (1, other_TK[3:])):
        np.testing.assert_allclose(np.concatenate(found[number]), at_once(codec, codes_TK), rtol=1e-5, atol=1e-6)


def test_one_pass_is_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, shapes = mimi_of(), []
    streams, decode = codec.open_streams(), codec.model.quantizer.decode
    monkeypatch.setattr(
        codec.model.quantizer, "decode", lambda codes: shapes.append(tuple(codes.shape)) or decode(codes)
    )
    codes_TK = codes_of(4, codec)
    streams.push(dict.fromkeys(range(3), codes_TK[:1]))
    streams.finish(1)
    streams.push(dict.fromkeys((0, 2, 5, 6), codes_TK[1:2]))
    assert shapes == [(3, BOOKS, 1), (4, BOOKS, 1)]


def test_a_number_may_be_used_again() -> None:
    codec = mimi_of()
    codes_TK = codes_of(4, codec)
    streams = codec.open_streams()
    first = [streams.push({3: codes_TK, 4: codes_TK[::-1]})[3]]
    assert len(streams.finish(3)) == 0
    first.append(streams.push({4: codes_TK, 3: codes_TK})[3])
    np.testing.assert_allclose(first[0], first[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({0: 1}, "no codes for sound 1: all"),
        ({0: 1, 1: 2}, "the same number of frames, not .1, 2."),
        ({0: 1, 2: 1}, "no codes for sound 1: all"),
        ({}, "no codes for sound 0, 1: all"),
    ],
    ids=str,
)
def test_open_sounds_go_on_together(wrong: dict[int, int], message: str, tiny_base_folder: Path) -> None:
    for codec in (mimi_of(), load_codec(tiny_base_folder)):
        codes_TK = np.random.default_rng(0).integers(0, codec.codebook_size, (6, codec.num_codebooks))
        streams = codec.open_streams()
        found = [streams.push({0: codes_TK[:1], 1: codes_TK[:1]})[0]]
        with pytest.raises(DataError, match=message):
            streams.push({number: codes_TK[1 : 1 + length] for number, length in wrong.items()})
        found.append(streams.push({0: codes_TK[1:], 1: codes_TK[1:]})[0])
        found.append(streams.finish(0))
        np.testing.assert_allclose(np.concatenate(found), codec.decode(codes_TK), rtol=1e-5, atol=1e-6)


def test_a_codec_of_single_sounds_decodes_them_one_by_one(tiny_base_folder: Path) -> None:
    codec = load_codec(tiny_base_folder)
    streams = codec.open_streams()
    assert isinstance(streams, SeparateStreams)
    codes, starts = planned(codec, codec.num_codebooks)
    codes = {number: codes_TK[:6] for number, codes_TK in codes.items()}
    for number, samples in speak(streams, codes, starts).items():
        np.testing.assert_array_equal(samples, codec.decode(codes[number]))


def test_what_looks_ahead_is_refused() -> None:
    dac = DacModel(DacConfig(encoder_hidden_size=8, decoder_hidden_size=64, hidden_size=64, n_codebooks=2))
    for codec in (mimi_of(use_causal_conv=False, kernel_size=7), DacCodec(dac)):
        with pytest.raises(BaseModelError, match="look ahead"):
            codec.open_streams()


def test_nothing_is_no_sound(tiny_base_folder: Path) -> None:
    for codec in (mimi_of(), load_codec(tiny_base_folder)):
        streams = codec.open_streams()
        assert streams.push({}) == {}
        nothing = np.zeros((0, codec.num_codebooks), dtype=np.int64)
        assert [len(samples) for samples in streams.push({2: nothing}).values()] == [0]
        assert len(streams.finish(2)) == len(streams.finish(77)) == 0


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [(16, 8), (8, 4), (7, 3), (3, 5), (5, 1), (1, 1)])
def test_a_transposed_convolution_is_torchs(kernel: int, stride: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.ConvTranspose1d(6, 4, kernel, stride, bias=has_bias).double()
    for num_steps in (1, 2, 9):
        x_BCT = torch.randn(3, 6, num_steps, dtype=torch.float64)
        torch.testing.assert_close(_transposed(conv, x_BCT), conv(x_BCT))
