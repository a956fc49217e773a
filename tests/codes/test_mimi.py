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

from affetto.codes.codec import codec_hash, load_codec
from affetto.codes.neural import HEARING, MimiCodec
from affetto.codes.vocoder import VocoderCodec
from affetto.errors import BaseModelError
from affetto.miniature.base import NUM_CODEBOOKS, make_config, make_model
from dia_checkpoint import write_dia

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


def test_what_codes_sound_follows_when_there_is_sound_to_be_coded(checkpoint: tuple[Path, MimiModel]) -> None:
    """Onto "meta", which has no memory and thus no sound: where each part lies is all that can be seen."""
    folder, _ = checkpoint
    codec = load_codec(folder)
    assert isinstance(codec, MimiCodec)
    names = {name for name, _ in codec.model.named_children()}
    assert set(HEARING) < names
    codec.to("meta", speaks_only=True)

    def on_host() -> set[str]:
        tensors = [*codec.model.named_parameters(), *codec.model.named_buffers()]
        return {name.partition(".")[0] for name, tensor in tensors if tensor.device.type == "cpu"}

    assert (codec.device.type, on_host()) == ("meta", set(HEARING))
    codec.decode(np.zeros((0, NUM_CODEBOOKS), dtype=np.int64))
    codec.open_streams()
    assert on_host() == set(HEARING)
    with pytest.raises(RuntimeError):  # there are no numbers
        codec.encode(sounds()[0])
    assert on_host() == set()


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
    told = r"model\.safetensors holds no tensor of the Mimi .*none is called codec_model\.….*copy or fetch the whole"
    with pytest.raises(BaseModelError, match=told):
        load_codec(tmp_path)
    config["transformers_weights"] = "transformers.safetensors.index.json"
    (tmp_path / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(load_codec(tmp_path).encode(sounds()[0]), load_codec(folder).encode(sounds()[0]))


@pytest.fixture(params=["Mimi inside CSM", "Mimi inside Moshi", "Mimi alone", "DAC alone"])
def codec_copy(
    request: pytest.FixtureRequest, checkpoint: tuple[Path, MimiModel], moshi_folder: Path, tmp_path: Path
) -> tuple[Path, str, str]:
    """A folder whose codec may be damaged, what the names of its tensors begin with, and the codec's own name."""
    (folder, mimi), copied = checkpoint, tmp_path / "copied"
    if request.param == "DAC alone":
        write_dia(copied)
        return Path(f"{copied}-dac"), "", "DAC"
    if request.param == "Mimi alone":
        mimi.save_pretrained(copied)
        return copied, "", "Mimi"
    is_csm = request.param == "Mimi inside CSM"
    shutil.copytree(folder if is_csm else moshi_folder, copied)
    return copied, "codec_model." if is_csm else "audio_encoder.", "Mimi"


def refused(folder: Path, match: str) -> None:
    with pytest.raises(BaseModelError, match=match):
        load_codec(folder)


def test_nothing_loads_half_way(codec_copy: tuple[Path, str, str]) -> None:
    folder, prefix, name = codec_copy
    weights = folder / "model.safetensors"
    content, state = weights.read_bytes(), load_file(weights)

    def stored(**changed: torch.Tensor | None) -> None:
        kept = {key: value for key, value in (state | changed).items() if value is not None}
        save_file(kept, weights, metadata={"format": "pt"})

    assert load_codec(folder).name == name.lower()
    conv = next(key for key in state if key.startswith(f"{prefix}encoder.") and key.endswith(".weight"))
    # What has neither weight nor bias in its name: Mimi's centroids, DAC's activations.
    nameless = next(key for key in state if key.startswith(prefix) and key.endswith(("embed_sum", "alpha")))
    for lost in (conv, nameless):
        stored(**{lost: None})
        refused(folder, rf"{folder}: model\.safetensors lacks 1 tensor: {lost}; copy or fetch the checkpoint again")
    stored(**{f"{prefix}strange": torch.ones(1)})
    refused(folder, rf"model\.safetensors holds 1 tensor: {prefix}strange, unknown to the {name}.*give the original")
    stored(**{conv: state[conv][:-1].clone()})
    refused(folder, rf"model\.safetensors: {conv} is \(.* but config\.json says .*copy or fetch")
    for quantised in (conv, nameless):
        stored(**{quantised: state[quantised].to(torch.int8)})
        refused(folder, rf"model\.safetensors: {quantised} is stored as I8, .*give the original")
    weights.write_bytes(content[:-100])
    refused(folder, r"model\.safetensors is cut off.*copy or fetch")
    weights.write_bytes(b"torn")
    refused(folder, r"model\.safetensors is cut off or no safetensors file.*copy or fetch")
    weights.unlink()
    refused(folder, r"none of model\.safetensors")


def test_a_codec_that_is_quite_another(codec_copy: tuple[Path, str, str]) -> None:
    folder, prefix, name = codec_copy
    save_file({f"{prefix}generator.conv.weight": torch.ones(2)}, folder / "model.safetensors")
    refused(folder, rf"holds 0 of the \d+ tensors of a {name}, so it is a checkpoint of another kind")


def test_a_codec_whose_config_makes_no_sense(codec_copy: tuple[Path, str, str]) -> None:
    folder, prefix, _ = codec_copy
    config = json.loads((folder / "config.json").read_text())
    key = {"codec_model.": "codec_config", "audio_encoder.": "audio_encoder_config"}.get(prefix)
    (config[key] if key else config)["hidden_size"] = "x"
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, r"config\.json: transformers refuses this configuration; copy or fetch the checkpoint again\. .")


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
