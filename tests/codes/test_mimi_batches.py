"""Mimi and DAC in batches of clips of unequal lengths: the same codes as one clip at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from code_signals import make_clips, manifest, vowel
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import DacConfig, DacModel, MimiConfig, MimiModel

from affetto.audio.sound import read_sound
from affetto.codes import batches
from affetto.codes import prepare as stage
from affetto.codes.batches import exactly, mimi_latents, pack
from affetto.codes.codec import load_codec
from affetto.codes.neural import DacCodec, MimiCodec
from affetto.codes.prepare import prepare
from affetto.errors import DataError
from affetto.miniature.base import make_config
from affetto.types import EMOTIONS, BatchCodec

BOOKS = 8
LENGTHS = (0, 1, 100, 959, 960, 961, 1919, 1920, 1921, 2879, 3840, 9_599, 9_600, 9_601, 33_333, 38_401, 271_111)
"""The longest has more steps than the 250 that attention looks back, its neighbour fewer."""
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "two dilated blocks with shortcuts": {"num_residual_layers": 2, "use_conv_shortcut": True, "kernel_size": 7},
    "last value again": {"pad_mode": "replicate"},
    "convolutions look ahead": {"use_causal_conv": False, "kernel_size": 7},
    "both": {"use_causal_conv": False, "kernel_size": 7, "pad_mode": "replicate"},
    "frames of the encoder": {"frame_rate": 25.0},
}


def mimi_of(**changes: Any) -> MimiModel:
    """A tiny Mimi whose centroids lie like the latents that they are to code."""
    config = make_config(hidden_size=128, num_layers=1, depth_size=64, depth_layers=1).codec_config
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**(config.to_dict() | changes))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("encoder.") or name == "downsample.conv.weight":
                weight.copy_(torch.randn_like(weight) / weight[0].numel() ** 0.5)
        values = torch.tensor(sounds_of((60_000,))[0], dtype=torch.float32)[None, None]
        model.encoder.layers[-1].conv.bias -= model.encoder(values)[0].mean(1)
        spread_centroids(model)
    return model


def spread_centroids(model: MimiModel) -> None:
    latents_FD, _ = mimi_latents(model, sounds_of((60_000, 48_000, 50_000)))
    quantizer = model.quantizer
    for part in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        vectors_FD = latents_FD if part.input_proj is None else part.input_proj(latents_FD.T[None])[0].T
        for index, layer in enumerate(part.layers):
            chosen = vectors_FD[torch.randint(len(vectors_FD), (2, layer.codebook.codebook_size))]
            between = chosen[0] - chosen[1] if index else chosen[0] + 0.3 * (chosen[0] - chosen[1])
            layer.codebook.embed_sum.copy_(0.7**index * between)
            layer.codebook.cluster_usage.fill_(1.0)


def sounds_of(lengths: Sequence[int], rate: float = 110.0) -> list[NDArray[np.float64]]:
    """Gliding vowels of so many samples which don't end in silence."""
    return [
        vowel(rate + 31 * (index % 9), length / 24_000 + 0.01, name="aiu"[index % 3], semitones=9)[:length]
        for index, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def codec() -> MimiCodec:
    """In float64, where what the order of sums changes is too little to change a code."""
    return MimiCodec(mimi_of().double(), BOOKS)


def assert_same(found: Sequence[NDArray[np.int64]], wanted: Sequence[NDArray[np.int64]]) -> None:
    assert len(found) == len(wanted)
    for codes_TK, alone_TK in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(codes_TK, alone_TK)
        assert codes_TK.dtype == alone_TK.dtype


def assert_latents_are_near(model: MimiModel, sounds: Sequence[NDArray[np.float64]], tolerance: float) -> None:
    """Those of a batch to those of each clip alone, as transformers makes them, relative to the largest."""
    together_FD, frames = mimi_latents(model, sounds)
    assert frames == [-(-len(sound) // round(24_000 / model.config.frame_rate)) for sound in sounds]
    for sound, part_FD in zip(sounds, together_FD.split(frames), strict=True):
        values = model.encoder(torch.tensor(sound, dtype=torch.float32).to(model.dtype)[None, None])
        values = model.encoder_transformer(values.mT, return_dict=True).last_hidden_state.mT
        alone_FD = (values if model.downsample is None else model.downsample(values))[0].T
        assert (part_FD - alone_FD).abs().max() < tolerance * alone_FD.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_pitfall_08_a_batch_gives_the_codes_of_each_clip_alone(variant: str) -> None:
    codec = MimiCodec(mimi_of(**VARIANTS[variant]).double(), BOOKS)
    sounds = sounds_of(LENGTHS if variant == "published" else LENGTHS[:-1])
    assert_latents_are_near(codec.model, [sound for sound in sounds if len(sound) >= 1920], 1e-12)
    alone = [codec.encode(sound) for sound in sounds]
    assert len(np.unique(np.concatenate(alone))) > 120, "the fixture's codes should vary"
    assert_same(codec.encode_batch(sounds, batch_s=1e4), alone)


@torch.inference_mode()
def test_pitfall_08_in_float32_batches_differ_by_rounding_alone() -> None:
    """No code differs where this was written; another processor's sums may decide one between centroids as near."""
    codec, sounds = MimiCodec(mimi_of(), BOOKS), sounds_of(LENGTHS)
    assert_latents_are_near(codec.model, [sound for sound in sounds if len(sound) >= 1920], 1e-5)
    found_TK = np.concatenate(codec.encode_batch(sounds, batch_s=1e4))
    assert (found_TK != np.concatenate([codec.encode(sound) for sound in sounds])).any(1).mean() < 0.01


@pytest.mark.parametrize("variant", ["published", "convolutions look ahead"])
def test_pitfall_08_what_stands_behind_an_end_matters(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its filling the oracle above fails."""
    codec, sounds = MimiCodec(mimi_of(**VARIANTS[variant]).double(), BOOKS), sounds_of(LENGTHS[:-1])
    monkeypatch.setattr(batches, "_fill", lambda *_, **__: None)
    found = codec.encode_batch(sounds, batch_s=1e4)
    differ = [not np.array_equal(codes, codec.encode(sound)) for codes, sound in zip(found, sounds, strict=True)]
    assert sum(differ) >= 3


def test_the_order_and_the_company_of_clips_do_not_matter(codec: MimiCodec) -> None:
    sounds = sounds_of(LENGTHS[:-1])
    alone = [codec.encode(sound) for sound in sounds]
    rng = np.random.default_rng(0)
    for batch_s in (0.5, 2.0, 5.0, 1e4):
        order = rng.permutation(len(sounds))
        assert_same(codec.encode_batch([sounds[i] for i in order], batch_s=batch_s), [alone[i] for i in order])
    assert codec.encode_batch([], batch_s=5.0) == []


@given(st.lists(st.integers(1, 50)), st.integers(1, 120))
def test_batches_are_bounded_and_hold_every_clip_once(lengths: list[int], most: int) -> None:
    packed = pack(lengths, most)
    assert sorted(place for places in packed for place in places) == list(range(len(lengths)))
    inside = [[lengths[place] for place in places] for places in packed]
    assert all(len(batch) * max(batch) <= most or len(batch) == 1 for batch in inside)
    assert [length for batch in inside for length in batch] == sorted(lengths), "like lengths are together"
    for batch, later in pairwise(inside):
        assert (len(batch) + 1) * later[0] > most, "the next clip would have found room"


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Lengths of the clips of every batch that was coded together."""
    found: list[list[int]] = []
    real = MimiCodec._encode_one_batch

    def counting(self: MimiCodec, padded: Sequence[NDArray[np.float32]]) -> list[NDArray[np.int64]]:
        found.append([len(samples) for samples in padded])
        return real(self, padded)

    monkeypatch.setattr(MimiCodec, "_encode_one_batch", counting)
    return found


def test_on_a_cpu_clips_go_one_by_one(codec: MimiCodec, sizes: list[list[int]]) -> None:
    sounds = sounds_of((5_000, 1, 9_000))
    assert isinstance(codec, BatchCodec)
    assert_same(codec.encode_batch(sounds), [codec.encode(sound) for sound in sounds])
    assert sizes == []
    codec.encode_batch(sounds, batch_s=1.0)
    assert sizes == [[1920, 5_000], [9_000]]


def test_padding_by_reflection_is_left_one_by_one(sizes: list[list[int]]) -> None:
    codec, sounds = MimiCodec(mimi_of(pad_mode="reflect"), BOOKS), sounds_of((5_000, 1_921, 9_000))
    assert_same(codec.encode_batch(sounds, batch_s=10.0), [codec.encode(sound) for sound in sounds])
    assert sizes == []


def test_batches_are_coded_in_eval_mode_and_in_full_precision(
    codec: MimiCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool, bool]] = []
    real = batches._convolve

    def watching(layer: Any, *rest: Any, **options: Any) -> Any:
        seen.append((layer.training, torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()))
        return real(layer, *rest, **options)

    monkeypatch.setattr(batches, "_convolve", watching)
    before = torch.backends.cudnn.allow_tf32
    codec.model.train()
    codec.encode_batch(sounds_of((5_000, 1_921)), batch_s=10.0)
    assert {*seen} == {(False, False, False)}
    with pytest.raises(ZeroDivisionError), exactly():
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 == before


def dac_of(ratios: tuple[int, ...]) -> DacModel:
    torch.manual_seed(0)
    config = DacConfig(
        encoder_hidden_size=4, decoder_hidden_size=16,
        downsampling_ratios=[*ratios], upsampling_ratios=[*reversed(ratios)],
        n_codebooks=3, codebook_size=64, codebook_dim=4, sampling_rate=24_000,
    )  # fmt: skip
    model = DacModel(config).eval()
    with torch.no_grad():
        for layer in model.encoder.modules():
            if isinstance(layer, torch.nn.Conv1d):
                layer.weight.copy_(torch.randn_like(layer.weight) / layer.weight[0].numel() ** 0.5)
                layer.bias.copy_(0.3 * torch.randn_like(layer.bias))
    return model


@pytest.mark.parametrize("ratios", [(2, 4, 8, 8), (3, 5, 2)])
def test_pitfall_08_so_does_dac(ratios: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    codec = DacCodec(dac_of(ratios).double())
    sounds = sounds_of((0, 1, 511, 512, 513, 1_999, 9_600, 12_345, 24_001))
    alone = [codec.encode(sound) for sound in sounds]
    assert len(np.unique(np.concatenate(alone))) > 20, "the fixture's codes should vary"
    assert_same(codec.encode_batch(sounds, batch_s=1e4), alone)
    assert_same(codec.encode_batch(sounds[::-1], batch_s=1.0), alone[::-1])
    assert not any(layer._forward_pre_hooks for layer in codec.model.modules()), "hooks are for the batch alone"
    monkeypatch.setattr(torch.Tensor, "masked_fill", lambda self, *_: self)
    plain = codec.encode_batch(sounds, batch_s=1e4)
    assert not all(np.array_equal(codes, other) for codes, other in zip(plain, alone, strict=True))


def test_a_dac_whose_steps_are_not_whole_is_left_one_by_one(sizes: list[list[int]]) -> None:
    codec, sounds = DacCodec(dac_of((2, 1, 4))), sounds_of((500, 777))
    assert_same(codec.encode_batch(sounds, batch_s=10.0), [codec.encode(sound) for sound in sounds])
    assert sizes == []


@pytest.fixture
def base(tmp_path: Path, codec: MimiCodec) -> Path:
    codec.model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def in_batches(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Code in batches of so many seconds, as on a GPU, but in this process, where it is seen: in_batches(2.0)."""
    real = MimiCodec.encode_batch

    def set_up(batch_s: float) -> None:
        monkeypatch.setattr("affetto.codes.workers._stays_here", lambda *_: True)
        monkeypatch.setattr(MimiCodec, "encode_batch", lambda self, sounds: real(self, sounds, batch_s=batch_s))

    return set_up


def test_prepare_codes_in_batches(
    base: Path, tmp_path: Path, in_batches: Callable[[float], None], sizes: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    in_batches(1.7)
    monkeypatch.setattr(stage, "_PILE_S", 3.0)
    clips = make_clips(tmp_path / "data", 9)
    cut = replace(clips[0], id="cut", text="take", start_s=0.1, end_s=0.45)
    prepared = prepare([manifest(tmp_path / "data" / "manifest.jsonl", [*clips, cut])], base, emotions=EMOTIONS)
    assert len(prepared.clips) == 10
    assert max(map(len, sizes)) == 3
    assert all(len(batch) * max(batch) <= 1.7 * 24_000 for batch in sizes)
    codec = load_codec(base)
    for clip in prepared.clips:
        sound = read_sound(clip.audio, 24_000, start_s=clip.start_s, end_s=clip.end_s)
        np.testing.assert_array_equal(prepared.codes(clip), codec.encode(sound))


def test_a_run_that_dies_goes_on_with_the_shard_it_died_in(
    base: Path, tmp_path: Path, in_batches: Callable[[float], None], sizes: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    in_batches(5.0)
    monkeypatch.setattr(stage, "_SHARD_CLIPS", 4)
    source = manifest(tmp_path / "data" / "manifest.jsonl", make_clips(tmp_path / "data", 10))
    real, calls = stage._work, []

    def dying(codec: Any, clips: Any) -> Any:
        calls.append(len(clips))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(codec, clips)

    monkeypatch.setattr(stage, "_work", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], base, emotions=EMOTIONS)
    assert [len(batch) for batch in sizes] == [4]
    sizes.clear()
    prepared = prepare([source], base, emotions=EMOTIONS)
    assert [len(batch) for batch in sizes] == [4, 2]
    for clip in prepared.clips:
        np.testing.assert_array_equal(prepared.codes(clip), load_codec(base).encode(read_sound(clip.audio, 24_000)))


def test_a_sound_that_vanishes_is_told(base: Path, tmp_path: Path) -> None:
    clips, codec = make_clips(tmp_path / "data", 3), load_codec(base)
    assert [name for name, _ in stage._work(codec, clips)] == [clip.id for clip in clips]
    clips[1].audio.write_bytes(b"torn")
    with pytest.raises(DataError, match=clips[1].audio.name):
        stage._work(codec, clips)


def test_piles_are_bounded_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = make_clips(tmp_path / "data", 6)
    monkeypatch.setattr(stage, "_PILE_S", 1.2)
    long = replace(clips[5], id="long", audio=make_clips(tmp_path / "long", 1, first=80)[0].audio)
    part = replace(clips[5], id="part", start_s=0.2, end_s=0.3)
    piles = list(stage._piles([*clips[:5], long, part, replace(part, id="open", end_s=None)]))
    assert [[clip.id for clip in pile] for pile in piles] == [
        ["general-0", "general-1"], ["general-2", "general-3"], ["general-4"], ["long"], ["part", "open"],
    ]  # fmt: skip
