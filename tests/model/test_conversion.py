"""`affetto convert`: what Kyutai's package says of a checkpoint, transformers says of the converted one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoTokenizer, GenerationConfig, MoshiForConditionalGeneration

from affetto.codes.codec import load_codec
from affetto.errors import BaseModelError
from affetto.model.base import find_base, load_base
from affetto.model.conversion.architecture import language_model_settings, settings_of_arguments
from affetto.model.conversion.moshi import convert
from affetto.model.conversion.names import halves
from affetto.model.conversion.source import AuthorsCheckpoint, TensorInfo
from moshi_checkpoint import REFERENCE

MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"


@pytest.fixture
def copied(authors_folder: Path, tmp_path: Path) -> Path:
    """The authors' files, to be damaged."""
    return Path(shutil.copytree(authors_folder, tmp_path / "authors"))


def _change(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@torch.no_grad()
def test_transformers_says_what_the_authors_package_says(moshi_folder: Path) -> None:
    """Logits of every stream, laid out step by step by hand: start tokens first, acoustic codes one step late."""
    model = MoshiForConditionalGeneration.from_pretrained(moshi_folder, dtype=torch.float32).eval()
    theirs = load_file(REFERENCE / "reference.safetensors")
    codes_BCT, num = theirs["codes"], model.num_codebooks
    batch, streams, frames = codes_BCT.shape
    steps_BCT = torch.full((batch, streams, frames + 1), model.config.audio_vocab_size)
    steps_BCT[:, 0] = model.config.vocab_size
    for stream in range(streams):
        late = 1 if stream not in (0, 1, 1 + num) else 0
        steps_BCT[:, stream, 1 + late :] = codes_BCT[:, stream, : frames - late]
    heard, said = steps_BCT[..., :-1], steps_BCT[..., 1:]
    out = model(input_ids=heard[:, 0], moshi_audio_codes=heard[:, 1 : 1 + num], user_audio_codes=heard[:, 1 + num :])
    assert theirs["text_logits"].std() > 0.5
    torch.testing.assert_close(out.logits, theirs["text_logits"], rtol=0, atol=1e-4)
    depth_UKV = model.depth_decoder(
        input_ids=said[:, :num].transpose(1, 2).reshape(-1, num),
        last_hidden_state=out.last_hidden_state.reshape(batch * frames, 1, -1), use_cache=False,
    ).logits  # fmt: skip
    logits_BKTV = depth_UKV.view(batch, frames, num, -1).transpose(1, 2)
    for k in range(num):
        late = min(k, 1)
        torch.testing.assert_close(logits_BKTV[:, k, late:], theirs["logits"][:, k, : frames - late], rtol=0, atol=1e-4)


def test_mimi_codes_and_sounds_as_the_authors_package_does(moshi_folder: Path) -> None:
    theirs, codec = load_file(REFERENCE / "reference.safetensors"), load_codec(moshi_folder)
    codes_TK = theirs["mimi_codes"][0].T.numpy()
    np.testing.assert_array_equal(codec.encode(theirs["samples"][0, 0].numpy()), codes_TK)
    np.testing.assert_allclose(codec.decode(codes_TK), theirs["mimi_sound"][0, 0].numpy(), atol=1e-4)
    assert (codec.sample_rate, codec.frame_rate) == (24_000, 12.5)


def test_shards_are_bounded_and_hold_the_same(authors_folder: Path, moshi_folder: Path, tmp_path: Path) -> None:
    convert(authors_folder, tmp_path / "sharded", shard_bytes=100_000)
    whole, files = load_file(moshi_folder / "model.safetensors"), sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 3
    found: dict[str, Tensor] = {}
    for file in files:
        part = load_file(file)
        assert sum(value.nbytes for value in part.values()) <= 100_000
        found |= part
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found) == set(whole)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    assert load_base(str(tmp_path / "sharded")).num_codebooks == 4


def test_numbers_keep_their_kind(moshi_folder: Path) -> None:
    """As published: the language model in bfloat16, Mimi in float32."""
    for name, value in load_file(moshi_folder / "model.safetensors").items():
        assert value.dtype == (torch.float32 if name.startswith("audio_encoder.") else torch.bfloat16), name
    assert json.loads((moshi_folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_files_that_store_one_matrix_per_step_are_read_too(copied: Path, moshi_folder: Path, tmp_path: Path) -> None:
    """The package's own state_dict, as moshi-finetune saves it, against the published files' fused matrices."""

    def split(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(("in_proj_weight", "out_proj.weight"))]:
            steps = 4 if name.startswith("depformer.") else 1
            stem = name.removesuffix("_weight").removesuffix(".weight")
            for k, part in enumerate(tensors.pop(name).chunk(steps)):
                tensors[f"{stem}s.{k}.weight"] = part.clone()

    _change(copied / "model.safetensors", split)
    _change(copied / MIMI, split)
    again = load_file(convert(copied, tmp_path / "new") / "model.safetensors")
    whole = load_file(moshi_folder / "model.safetensors")
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_rows_of_rotary_projections_change_from_pairs_to_halves() -> None:
    rows = torch.arange(12.0)[:, None].expand(12, 5)
    assert halves(rows, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_what_stands_beside_the_weights(moshi_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(moshi_folder)
    words = tokenizer("hello the silver key")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(words) == ["▁hello", "▁the", "▁silver", "▁key"]
    assert tokenizer("  hello   the silver  key ")["input_ids"] == words
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert AutoFeatureExtractor.from_pretrained(moshi_folder).sampling_rate == 24_000
    generation = GenerationConfig.from_pretrained(moshi_folder)
    assert (generation.temperature, generation.top_k) == (0.7, 25)
    assert generation.depth_decoder_config["max_length"] == 5


def test_base_takes_either_form(
    authors_folder: Path, moshi_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    folder = find_base(str(authors_folder))
    assert folder.is_relative_to(tmp_path / "cache")
    assert find_base(str(authors_folder)) == folder
    assert find_base(str(moshi_folder)) == moshi_folder
    assert load_base(str(authors_folder)).hash == load_base(str(moshi_folder)).hash


def test_the_command(affetto: Callable[..., tuple[int, str, str]], authors_folder: Path, tmp_path: Path) -> None:
    status, said, _ = affetto("convert", authors_folder, tmp_path / "new")
    assert (status, said.strip()) == (0, str(tmp_path / "new"))
    assert load_base(str(tmp_path / "new")).num_codebooks == 4
    status, _, errors = affetto("convert", authors_folder, tmp_path / "new")
    assert status == 1
    assert "exists already" in errors


@pytest.mark.parametrize("target", ["file/new", "/proc/new", "/proc/nowhere/new"])
def test_a_target_that_cannot_be_made_is_told(
    affetto: Callable[..., tuple[int, str, str]], authors_folder: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "file").write_text("x")
    status, _, errors = affetto("convert", authors_folder, target)
    assert status == 1
    assert f"{target} can't be created" in " ".join(errors.split())
    assert "name another place" in " ".join(errors.split())


def test_no_folder_and_no_hub_id(affetto: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, _, errors = affetto("convert", "nowhere", tmp_path / "new")
    assert status == 1
    assert "not a hub id" in errors


def test_a_hub_model_without_access_offline(
    affetto: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, _, errors = affetto("convert", "kyutai/moshiko-pytorch-bf16", tmp_path / "new")
    assert status == 1
    assert "kyutai/moshiko-pytorch-bf16" in errors
    assert "can't be fetched" in errors


def _refused(folder: Path, match: str) -> None:
    target = folder.parent / "new"
    with pytest.raises(BaseModelError, match=match):
        convert(folder, target)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "something was left behind"


@pytest.mark.parametrize("name", ["model.safetensors", MIMI, "tokenizer_spm_32k_3.model", "mimi.json"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    _refused(copied, rf"{name.split('-')[0].split('_')[0]}.*which should hold")


@pytest.mark.parametrize("name", ["model.safetensors", MIMI])
def test_a_truncated_file_is_named(copied: Path, name: str) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) * 2 // 3])
    _refused(copied, rf"{name}.*is damaged or incomplete")


def test_a_text_model_that_is_none(copied: Path) -> None:
    (copied / "tokenizer_spm_32k_3.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    _refused(copied, r"tokenizer_spm_32k_3\.model is no SentencePiece model")


@pytest.mark.parametrize("name", ["transformer.layers.1.norm2.alpha", "depformer.layers.0.gating.2.linear_in.weight",
                                  "transformer.layers.0.self_attn.in_proj_weight"])  # fmt: skip
def test_a_missing_tensor_is_named(copied: Path, name: str) -> None:
    _change(copied / "model.safetensors", lambda tensors: tensors.pop(name))
    _refused(copied, rf"model\.safetensors lacks {name}")


def test_a_missing_tensor_of_mimi_is_named(copied: Path) -> None:
    _change(copied / MIMI, lambda tensors: tensors.pop("quantizer.rvq_rest.vq.layers.2._codebook.embedding_sum"))
    _refused(copied, rf"{MIMI} doesn't fit.*layers\.2\.codebook\.embed_sum")


def test_an_extra_tensor_is_named(copied: Path) -> None:
    _change(
        copied / "model.safetensors", lambda tensors: tensors.update({"condition_provider.x.weight": torch.ones(2)})
    )
    _change(copied / "model.safetensors", lambda tensors: tensors.update(
        {name: value.bfloat16() for name, value in tensors.items()}))  # fmt: skip
    _refused(copied, r"no place for: condition_provider\.x\.weight")


def test_a_tensor_of_another_shape_is_named(copied: Path) -> None:
    name = "transformer.layers.1.gating.linear_in.weight"
    _change(copied / "model.safetensors", lambda tensors: tensors.update({name: tensors[name][:-2].clone()}))
    _refused(copied, rf"{name} would make decoder\.model\.layers\.1\.mlp\.fc1")


def test_quantised_and_mixed_numbers_are_refused(copied: Path) -> None:
    name = "transformer.layers.1.gating.linear_in.weight"
    _change(copied / "model.safetensors", lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    _refused(copied, rf"quantised.*{name} is I8")


def test_mixed_numbers_are_refused(copied: Path) -> None:
    _change(
        copied / "model.safetensors",
        lambda tensors: tensors.update({"text_emb.weight": tensors["text_emb.weight"].float()}),
    )
    _refused(copied, r"model\.safetensors mixes BF16, F32: text_emb\.weight is F32, the others BF16; save it")


def test_a_checkpoint_of_another_kind_is_refused(copied: Path, tiny_base_folder: Path) -> None:
    shutil.copyfile(tiny_base_folder / "model.safetensors", copied / "model.safetensors")
    _refused(copied, r"is not Moshi's: it has no text_emb\.weight \(it has backbone_model")


def test_a_transformers_checkpoint_is_no_source(tiny_base_folder: Path, moshi_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"of a 'csm' model, not of the moshi package"):
        convert(tiny_base_folder, tmp_path / "new")
    with pytest.raises(BaseModelError, match=r"transformers' format already"):
        convert(moshi_folder, tmp_path / "new")


@pytest.mark.parametrize(
    ("key", "value"),
    [("delays", [0, 0, 2, 2, 2, 0, 2, 2, 2]), ("norm", "layer_norm"), ("depformer_weights_per_step_schedule", [0] * 4),
     ("model_type", "hibiki"), ("existing_text_padding_id", 7), ("conditioners", {"cfg": {"type": "lut"}}),
     ("fuser", {"cross_attention_pos_emb": False, "sum": ["cfg"]}), ("extra_heads_num_heads", 2),
     ("depformer_context", 3)],
)  # fmt: skip
def test_what_transformers_cannot_express_is_named(copied: Path, key: str, value: object) -> None:
    _change_config(copied, **{key: value})
    _refused(copied, rf"config\.json: {key} is")


def test_what_says_that_there_is_nothing_is_accepted(copied: Path, tmp_path: Path) -> None:
    nothing: dict[str, object] = {"conditioners": {}, "extra_heads_num_heads": 0, "extra_heads_dim": 6}
    fuser = {"cross_attention_pos_emb": False, "sum": [], "prepend": [], "cross": []}
    _change_config(copied, **nothing, fuser=fuser, depformer_context=4)
    assert convert(copied, tmp_path / "new").is_dir()
    _change_config(copied, conditioners=None, fuser=None, extra_heads_num_heads=None, depformer_context=None)
    assert convert(copied, tmp_path / "again").is_dir()


def test_lora_beside_the_model_must_be_merged(copied: Path) -> None:
    _change_config(copied, lora_name="lora.safetensors")
    _refused(copied, "merge them first")


def test_without_a_config_only_the_published_size_is_known(copied: Path) -> None:
    (copied / "config.json").unlink()
    _refused(copied, r"32 wide.*not Moshi 7B.*config\.json")


def test_a_broken_config_is_named(copied: Path) -> None:
    (copied / "config.json").write_text('{"dep_q": 4,')
    _refused(copied, r"config\.json can't be read")


def test_a_quantised_checkpoint_by_its_name(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "model.q8.safetensors")
    (copied / "config.json").unlink()
    _refused(copied, r"has no model\.safetensors.*quantised weights")


def test_a_full_disk_is_told(authors_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from affetto.model.conversion import moshi

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(moshi, "save_file", full)
    with pytest.raises(BaseModelError, match=r"No space left on device.*free disk"):
        convert(authors_folder, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("layer", "key"), [("transformer.layers.1", "num_layers"),
                                            ("depformer.layers.1", "depformer_num_layers")])  # fmt: skip
def test_a_whole_layer_that_is_missing_is_named(copied: Path, layer: str, key: str) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(f"{layer}.")]:
            del tensors[name]

    _change(copied / "model.safetensors", drop)
    _refused(
        copied, rf"model\.safetensors lacks all tensors of {layer}, and .*config\.json says {key}: 2: get it again"
    )


def test_a_codebook_that_is_missing_is_named(copied: Path) -> None:
    _change(copied / "model.safetensors", lambda tensors: tensors.pop("emb.7.weight"))
    _refused(copied, r"lacks all tensors of emb\.7, and .*says n_q: 8")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("num_layers", 1, r"has tensors of transformer\.layers\.1, and .*config\.json says num_layers: 1"),
        ("num_layers", 3, r"lacks all tensors of transformer\.layers\.2, and .*config\.json says num_layers: 3"),
        ("depformer_num_layers", 1, r"has tensors of depformer\.layers\.1"),
        ("dim", 64, r"text_emb\.weight is \(307, 32\), so dim is 32, and .*config\.json says dim: 64"),
        ("card", 33, r"linears\.0\.weight is \(32, 16\), so card is 32, and .*config\.json says card: 33"),
        ("text_card", 300, r"so text_card is 306, and .*says text_card: 300"),
        ("depformer_dim", 32, r"depformer_in\.0\.weight is .*so depformer_dim is 16"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_refused(copied: Path, key: str, value: int, told: str) -> None:
    _change_config(copied, **{key: value})
    _refused(copied, told)


def test_what_a_config_does_not_say_is_held_against_the_published_model(copied: Path) -> None:
    path = copied / "config.json"
    config = json.loads(path.read_text())
    del config["num_layers"]
    path.write_text(json.dumps(config))
    _refused(copied, r"lacks all tensors of transformer\.layers\.2, .* and 26 more, and .*doesn't say.*7B's.* 32")


@pytest.mark.parametrize(
    ("key", "value"),
    [("dep_q", "x"), ("dep_q", None), ("dep_q", []), ("dep_q", True), ("dep_q", 1.5), ("num_heads", "x"),
     ("num_heads", None), ("num_heads", 0), ("num_heads", 5), ("depformer_num_heads", 0), ("context", "x"),
     ("context", 10**400), ("max_period", None), ("max_period", "a"), ("max_period", float("inf"))],
)  # fmt: skip
def test_an_argument_that_makes_no_sense_is_named(copied: Path, key: str, value: object) -> None:
    _change_config(copied, **{key: value})
    _refused(copied, rf"config\.json: {key} is .*get the file again")


@pytest.mark.parametrize("name", ["transformer.layers.{k}.gating.linear_in.weight",
                                  "depformer.layers.0.gating.{k}.linear_in.weight"])  # fmt: skip
def test_rows_of_a_gate_that_are_no_pairs_are_named(copied: Path, name: str) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        for k in range(4):
            if (key := name.format(k=k)) in tensors:
                tensors[key] = tensors[key][:-1].clone()

    _change(copied / "model.safetensors", cut)
    _refused(copied, rf"model\.safetensors: {name.format(k=0)} is \(\d+, \d+\), and its number of rows must be even")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("num_heads", 0, "refuses"), ("num_heads", "x", "refuses"), ("max_period", "a", "damaged")],
)
def test_mimis_configuration_that_makes_no_sense_is_named(copied: Path, key: str, value: object, told: str) -> None:
    path = copied / "mimi.json"
    config = json.loads(path.read_text())
    config["transformer"][key] = value
    path.write_text(json.dumps(config))
    _refused(copied, rf"mimi\.json.*{told}")


def test_senseless_arguments_are_told_by_base_and_plan(copied: Path) -> None:
    from affetto.planning.plan import base_config

    _change_config(copied, dep_q=None)
    for ask in (find_base, base_config):
        with pytest.raises(BaseModelError, match=r"config\.json: dep_q is None"):
            ask(str(copied))


def test_a_text_model_of_another_model_is_refused(copied: Path) -> None:
    """Before anything is written: its ids would stand for nothing, or for the start of the text."""
    _change_config(copied, text_card=280)

    def cut(tensors: dict[str, Tensor]) -> None:
        for name in ("text_emb.weight", "depformer_text_emb.weight"):
            tensors[name] = tensors[name][:281].clone()
        tensors["text_linear.weight"] = tensors["text_linear.weight"][:280].clone()

    _change(copied / "model.safetensors", cut)
    _refused(copied, r"tokenizer_spm_32k_3\.model: it has ids up to 297, .* end at 279: .*tokenizer of another model")


def test_weights_are_hashed_once_until_they_change(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the conversion, the base and the codec together; a changed checkpoint is another one for all three."""
    from affetto import file_hashes
    from affetto.codes import codec
    from affetto.files import hash_file
    from affetto.model import base
    from affetto.model.conversion import moshi

    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    for module in (base, moshi, codec):
        monkeypatch.setattr(module, "LARGE_BYTES", 1000)
    hashed: list[str] = []
    monkeypatch.setattr(file_hashes, "hash_file", lambda path: hashed.append(path.name) or hash_file(path))

    def names() -> tuple[str, str, str]:
        hashed.clear()
        folder = find_base(str(copied))
        return folder.name, base.weights_hash(folder), codec.codec_hash(folder)

    first = names()
    assert sorted(hashed)[:2] == ["config.json", "model.safetensors"]
    assert hashed.count("model.safetensors") == 2, "the authors' file and the converted one"
    assert names() == first
    assert "model.safetensors" not in hashed
    _change(copied / "model.safetensors", lambda tensors: tensors["text_emb.weight"].mul_(2))
    second = names()
    assert hashed.count("model.safetensors") == 2
    assert all(new != old for new, old in zip(second, first, strict=True))


def test_what_was_converted_before_is_held_against_its_config_too(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older affetto made a shallower model of it without a word, and the cache still has that."""
    from affetto.model.conversion import moshi

    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    _change_config(copied, num_layers=3)
    with monkeypatch.context() as patched:
        patched.setattr(moshi, "language_model_settings", lambda _: {})
        patched.setattr(moshi, "convert", lambda _, target: target.mkdir(parents=True))
        assert moshi.converted(copied).is_dir()
    with pytest.raises(BaseModelError, match=r"lacks all tensors of transformer\.layers\.2"):
        find_base(str(copied))


def test_without_a_config_a_lost_layer_of_the_published_model_is_named(tmp_path: Path) -> None:
    """By the headers alone: Moshi 7B's shapes, and then its last layer gone."""
    shapes = {"text_emb.weight": (32001, 4096), "depformer_in.0.weight": (1024, 4096)}
    shapes |= {f"emb.{k}.weight": (2049, 4096) for k in range(16)}
    shapes |= {f"linears.{k}.weight": (2048, 1024) for k in range(8)}
    shapes |= {f"transformer.layers.{k}.gating.linear_in.weight": (22528, 4096) for k in range(32)}
    shapes |= {f"depformer.layers.{k}.gating.0.linear_in.weight": (5632, 1024) for k in range(6)}
    tensors = {name: TensorInfo(shape, "BF16") for name, shape in shapes.items()}
    file: Any = SimpleNamespace(path=tmp_path / "model.safetensors", tensors=tensors)
    checkpoint = AuthorsCheckpoint(tmp_path, file, file, tmp_path / "text", None, None)
    settings = language_model_settings(checkpoint)
    assert (settings["num_hidden_layers"], settings["depth_decoder_config"]["num_hidden_layers"]) == (32, 6)
    assert settings["ffn_dim"] == settings_of_arguments({}, tmp_path)["ffn_dim"]
    del tensors["transformer.layers.31.gating.linear_in.weight"]
    with pytest.raises(
        BaseModelError, match=r"lacks all tensors of transformer\.layers\.31, and Moshi 7B.* of 32: get"
    ):
        language_model_settings(checkpoint)
