"""Sound in pieces: together they are what the codec makes of all codes at once, and no piece waits without need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import DacConfig, DacModel, MimiConfig, MimiModel

from affetto.codes.codec import load_codec
from affetto.codes.neural import DacCodec, MimiCodec
from affetto.codes.sound_stream import RepeatingStream
from affetto.errors import BaseModelError
from affetto.miniature.base import make_config
from affetto.types import SoundStream

BOOKS = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "two dilated blocks with shortcuts": {"num_residual_layers": 2, "use_conv_shortcut": True, "kernel_size": 7},
    "first value before the beginning": {"pad_mode": "replicate", "kernel_size": 7},
    "frames of the encoder": {"frame_rate": 25.0},
    "attention looks back five steps": {"sliding_window": 5},
    "two layers of attention": {"num_hidden_layers": 2, "sliding_window": 5},
}


def mimi_of(**changes: Any) -> MimiCodec:
    """A tiny Mimi in float64 whose layers all matter."""
    config = make_config(hidden_size=128, num_layers=1, depth_size=64, depth_layers=1).codec_config
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**(config.to_dict() | changes))).double()
    with torch.no_grad():
        for weight in model.parameters():
            fan = weight[0].numel() if weight.ndim > 1 else 4
            weight.copy_(torch.randn_like(weight) / fan**0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("embed_sum"):
                buffer.copy_(torch.randn_like(buffer))
    return MimiCodec(model, BOOKS)


def codes_of(num_frames: int, codec: MimiCodec) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, codec.codebook_size, (num_frames, BOOKS))


def cut(codes_TK: NDArray[np.int64], sizes: Callable[[], int]) -> list[NDArray[np.int64]]:
    pieces, start = [], 0
    while start < len(codes_TK):
        size = sizes()
        pieces.append(codes_TK[start : start + size])
        start += size
    return pieces


@pytest.mark.parametrize("size", ["one by one", "any size", "all at once"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_mimi_in_pieces_is_mimi_at_once(changes: dict[str, Any], size: str) -> None:
    codec = mimi_of(**changes)
    codes_TK = codes_of(40, codec)
    whole = codec.model.eval().decode(torch.tensor(codes_TK.T[None])).audio_values.flatten().detach().numpy()
    rng = np.random.default_rng(1)
    sizes = {"one by one": lambda: 1, "any size": lambda: int(rng.integers(0, 6)), "all at once": lambda: 40}
    stream = codec.open_stream()
    pieces = cut(codes_TK, sizes[size])
    found = [stream.push(piece) for piece in pieces]
    hop = len(whole) // 40
    assert [len(samples) for samples in found] == [hop * len(piece) for piece in pieces], "nothing waits"
    assert len(stream.finish()) == 0
    assert whole.std() > 1e-3
    np.testing.assert_allclose(np.concatenate(found), whole, rtol=1e-5, atol=1e-6 * whole.std())


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_mimi_codes_a_sound_while_it_is_heard(changes: dict[str, Any]) -> None:
    codec = mimi_of(**changes)
    hop = round(codec.sample_rate / codec.frame_rate)
    rng = np.random.default_rng(2)
    samples = rng.normal(0.0, 0.3, 40 * hop).astype(np.float32)
    whole = codec.encode(samples)
    assert len(np.unique(whole)) > 20
    ear, found, start = codec.open_ear(), [], 0
    while start < len(samples):
        size = int(rng.integers(0, 3 * hop))
        found.append(ear.push(samples[start : start + size]))
        start += size
        assert sum(map(len, found)) == min(start, len(samples)) // hop, "every whole frame is told at once"
    np.testing.assert_array_equal(np.concatenate(found), whole)


def test_what_is_no_whole_frame_waits() -> None:
    codec = mimi_of()
    ear = codec.open_ear()
    assert ear.push(np.zeros(1919)).shape == (0, BOOKS)
    assert ear.push(np.zeros(1)).shape == (1, BOOKS)


def test_streams_of_one_codec_do_not_hear_each_other() -> None:
    codec = mimi_of()
    codes_TK = codes_of(6, codec)
    one, other = codec.open_stream(), codec.open_stream()
    first = one.push(codes_TK)
    other.push(codes_TK[::-1])
    again = codec.open_stream()
    np.testing.assert_array_equal(again.push(codes_TK), first)


def test_a_codec_that_looks_ahead_is_refused() -> None:
    dac = DacModel(DacConfig(encoder_hidden_size=8, decoder_hidden_size=64, hidden_size=64, n_codebooks=2))
    for codec in (mimi_of(use_causal_conv=False, kernel_size=7), DacCodec(dac)):
        for open_ in (codec.open_stream, codec.open_ear):
            with pytest.raises(BaseModelError, match="look ahead"):
                open_()


def test_the_miniatures_codec_is_a_frame_late(tiny_base_folder: Path) -> None:
    codec = load_codec(tiny_base_folder)
    codes_TK = np.random.default_rng(0).integers(0, codec.codebook_size, (7, codec.num_codebooks))
    stream = codec.open_stream()
    found = [stream.push(frame_K[None]) for frame_K in codes_TK]
    hop = round(codec.sample_rate / codec.frame_rate)
    assert [len(samples) for samples in found] == [0, *6 * [hop]]
    np.testing.assert_array_equal(np.concatenate([*found, stream.finish()]), codec.decode(codes_TK))


@pytest.mark.parametrize("codes", [np.zeros((0, 8), dtype=np.int64)])
def test_nothing_said_is_no_sound(codes: NDArray[np.int64], tiny_base_folder: Path) -> None:
    streams: list[SoundStream] = [mimi_of().open_stream(), load_codec(tiny_base_folder).open_stream()]
    streams.append(RepeatingStream(lambda _: pytest.fail("there is nothing to decode")))
    for stream in streams:
        assert len(stream.push(codes)) == len(stream.finish()) == 0
