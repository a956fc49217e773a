"""Mimi through transformers: the same codes as transformers' own, one clip at a time, wherever the weights lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from code_signals import vowel
from safetensors.torch import load_file, save_file
from transformers import MimiModel

from affetto.codes.codec import MimiCodec, codec_hash, load_codec
from affetto.codes.vocoder import VocoderCodec
from affetto.errors import BaseModelError
from affetto.miniature.base import NUM_CODEBOOKS, make_config, make_model

LENGTHS = (5_000, 1_921, 24_000, 9_600)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MimiModel]:
    """A CSM checkpoint with a Mimi of random codebooks inside, and that Mimi."""
    folder = tmp_path_factory.mktemp("csm")
    model = make_model(make_config(hidden_size=128, num_layers=1, depth_size=64, depth_layers=1), seed=0)
    shape_codebooks(model.codec_model)
    model.save_pretrained(folder)
    return folder, model.codec_model.eval()


def shape_codebooks(mimi: MimiModel) -> None:
    """Centroids like the hidden states that they quantise; a fresh Mimi has zeros, which code everything alike."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, buffer in mimi.named_buffers():
            if name.endswith("embed_sum"):
                buffer.copy_(0.02 * torch.randn_like(buffer))
            elif name.endswith("cluster_usage"):
                buffer.fill_(1.0)
        for name, weight in mimi.named_parameters():
            if weight.ndim > 1 and name.startswith("encoder."):
                weight.copy_(3.0 * torch.randn_like(weight) / weight[0].numel() ** 0.5)


def sounds() -> list[np.ndarray]:
    return [vowel(110.0 + 40 * index, 1.0, semitones=7)[:length] for index, length in enumerate(LENGTHS)]


def reference(mimi: MimiModel, sound: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        values = torch.tensor(sound, dtype=torch.float32)[None, None]
        return mimi.encode(values, num_quantizers=NUM_CODEBOOKS).audio_codes[0].T.numpy()


def test_pitfall_08_codes_equal_those_of_each_clip_alone(checkpoint: tuple[Path, MimiModel]) -> None:
    folder, mimi = checkpoint
    codec = load_codec(folder)
    found = [codec.encode(sound) for sound in sounds()]
    assert len(np.unique(np.concatenate(found))) > 20, "the fixture's codes should vary"
    for codes, sound in zip(found, sounds(), strict=True):
        np.testing.assert_array_equal(codes, reference(mimi, sound))
        assert codes.shape == (-(-len(sound) // 1920), NUM_CODEBOOKS)


def test_pitfall_08_padded_batches_would_differ(checkpoint: tuple[Path, MimiModel]) -> None:
    _, mimi = checkpoint
    short = sounds()[0]
    padded = reference(mimi, np.pad(short, (0, 24_000 - len(short))))[: -(-len(short) // 1920)]
    assert not np.array_equal(padded, reference(mimi, short)), "if not, clips could be coded in batches"


def test_pitfall_08_always_in_eval_mode(checkpoint: tuple[Path, MimiModel]) -> None:
    codec = load_codec(checkpoint[0])
    assert isinstance(codec, MimiCodec)
    codes = codec.encode(sounds()[0])
    codec.model.train()
    np.testing.assert_array_equal(codec.encode(sounds()[0]), codes)
    codec.decode(codes)
    assert not any(module.training for module in codec.model.modules())
    assert not any(weight.requires_grad for weight in codec.model.parameters())


def test_decoding_equals_transformers(checkpoint: tuple[Path, MimiModel]) -> None:
    folder, mimi = checkpoint
    codec = load_codec(folder)
    codes = codec.encode(sounds()[3])
    with torch.no_grad():
        wanted = mimi.decode(torch.tensor(codes.T)[None]).audio_values[0, 0].numpy()
    found = codec.decode(codes)
    np.testing.assert_array_equal(found, wanted)
    assert found.shape == (len(codes) * 1920,)
    assert codec.decode(codes[:0]).shape == (0,)


@pytest.mark.parametrize("num_samples", [0, 1, 100, 1920])
def test_very_short_clips_are_one_frame(checkpoint: tuple[Path, MimiModel], num_samples: int) -> None:
    assert load_codec(checkpoint[0]).encode(sounds()[0][:num_samples]).shape == (1, NUM_CODEBOOKS)


def test_mimi_alone_loads_too(checkpoint: tuple[Path, MimiModel], tmp_path: Path) -> None:
    folder, mimi = checkpoint
    mimi.save_pretrained(tmp_path)
    np.testing.assert_array_equal(load_codec(tmp_path).encode(sounds()[0]), load_codec(folder).encode(sounds()[0]))


def test_shards_and_named_weights_are_followed(checkpoint: tuple[Path, MimiModel], tmp_path: Path) -> None:
    """The hub's CSM-1B: `model.safetensors` is of another format, the configuration names the right index."""
    folder, _ = checkpoint
    state = load_file(folder / "model.safetensors")
    half = len(state) // 2
    shards = {"one.safetensors": sorted(state)[:half], "two.safetensors": sorted(state)[half:]}
    for name, keys in shards.items():
        save_file({key: state[key] for key in keys}, tmp_path / name, metadata={"format": "pt"})
    index = {"weight_map": {key: name for name, keys in shards.items() for key in keys}}
    (tmp_path / "transformers.safetensors.index.json").write_text(json.dumps(index))
    save_file({"decoder.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="is missing"):
        load_codec(tmp_path)
    config["transformers_weights"] = "transformers.safetensors.index.json"
    (tmp_path / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(load_codec(tmp_path).encode(sounds()[0]), load_codec(folder).encode(sounds()[0]))


def test_nothing_loads_half_way(checkpoint: tuple[Path, MimiModel], tmp_path: Path) -> None:
    shutil.copytree(checkpoint[0], tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    lost = next(key for key in state if key.startswith("codec_model.encoder."))
    kept = {key: value for key, value in state.items() if key != lost}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=f"{lost.removeprefix('codec_model.')} is missing"):
        load_codec(tmp_path)
    save_file(state | {"codec_model.strange": torch.ones(1)}, weights, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match="strange is unknown"):
        load_codec(tmp_path)
    weights.write_bytes(b"torn")
    with pytest.raises(BaseModelError, match="can't be read"):
        load_codec(tmp_path)
    weights.unlink()
    with pytest.raises(BaseModelError, match=r"none of model\.safetensors"):
        load_codec(tmp_path)


def test_folder_without_a_codec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="neither"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(BaseModelError, match="gpt2"):
        load_codec(tmp_path)


def test_vocoder_comes_first(checkpoint: tuple[Path, MimiModel], codec: VocoderCodec, tmp_path: Path) -> None:
    shutil.copytree(checkpoint[0], tmp_path, dirs_exist_ok=True)
    assert load_codec(tmp_path).name == "mimi"
    before = codec_hash(tmp_path)
    codec.save(tmp_path)
    assert load_codec(tmp_path).name == "vocoder"
    assert codec_hash(tmp_path) != before


def test_hash_names_the_codec(checkpoint: tuple[Path, MimiModel], codec_folder: Path, tmp_path: Path) -> None:
    assert codec_hash(checkpoint[0]) == codec_hash(checkpoint[0])
    copied = Path(shutil.copytree(codec_folder, tmp_path / "copy"))
    assert codec_hash(copied) == codec_hash(codec_folder), "a name must not depend on the place"
    (copied / ".codec.safetensors.tmp.safetensors").write_bytes(b"torn")
    assert codec_hash(copied) == codec_hash(codec_folder)
    loaded = VocoderCodec.load(copied)
    VocoderCodec(loaded.mean_D + 1, loaded.scale_D, loaded.basis_DP, loaded.codebooks_KVP).save(copied)
    assert codec_hash(copied) != codec_hash(codec_folder)
