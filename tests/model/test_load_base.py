"""Bases from disk: nothing loads half-way, nothing chatters, and the prompt is the processor's own."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CsmProcessor

from affetto.audio.speakers import speaker_numbers
from affetto.codes.codec import load_codec
from affetto.config import Config
from affetto.errors import BaseModelError
from affetto.model import base as base_module
from affetto.model.base import Base, find_base, load_base, weights_hash
from affetto.model.batch import Row, collate
from affetto.model.light import load_for_speaking
from affetto.model.rows import make_rows
from affetto.planning.plan import base_config, plan
from affetto.planning.workload import Data
from affetto.types import Clip

HEARD, SPOKEN = "backbone_model.embed_tokens.embed_audio_tokens.weight", "depth_decoder.model.embed_tokens.weight"
ODD_TEXTS = [
    "I found the silver key.",
    "",
    " leading and  double spaces ",
    "[7]in brackets [x] {text} <b>",
    "naïve café — “quoted” … ½ ﬁ é",
    "two\nlines\n\nand a tab\t",
    "日本語 🎉 привет",
    "ALL CAPS & 100% of $5.00 + #1",
]


@pytest.fixture
def copied(tiny_base_folder: Path, tmp_path: Path) -> Path:
    """The tiny base's folder, to be damaged."""
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_loaded_base_is_frozen_and_in_eval_mode(tiny_base: Base) -> None:
    assert not any(parameter.requires_grad for parameter in tiny_base.model.parameters())
    assert not any(module.training for module in [*tiny_base.model.modules(), *tiny_base.network.modules()])
    assert tiny_base.num_codebooks == 8
    assert tiny_base.device == torch.device("cpu")


@pytest.mark.parametrize("speaker", [0, 12, 4077])
def test_pitfall_07_prompt_ids_are_those_of_the_chat_template(tiny_base: Base, speaker: int) -> None:
    processor = CsmProcessor.from_pretrained(tiny_base.folder)
    for text in ODD_TEXTS:
        turn = {"role": str(speaker), "content": [{"type": "text", "text": text}]}
        theirs = processor.apply_chat_template([turn], tokenize=True, return_dict=True)["input_ids"]
        assert tiny_base.prompt_ids(text, speaker) == tuple(theirs[0].tolist()), text


def test_pitfall_07_rows_with_context_are_laid_out_as_the_template_does(tiny_base: Base) -> None:
    """Text and audio places of a dialogue, id by id; the template writes placeholders where frames stand."""
    processor = CsmProcessor.from_pretrained(tiny_base.folder)
    texts, speakers, frames = ["how are you?", "well, thanks", "good"], ["11", "3", "11"], [2, 4, 3]
    clips = {
        str(n): Clip(str(n), Path("x.wav"), text, None, speaker, "test", context=("0", "1") if n == 2 else ())
        for n, (text, speaker) in enumerate(zip(texts, speakers, strict=True))
    }
    codes = {str(n): np.full((count, 8), 9, dtype=np.int64) for n, count in enumerate(frames)}
    numbers = speaker_numbers(set(speakers))
    rows = make_rows(tiny_base, [clips["2"]], lambda clip: codes[clip.id], numbers, template="say: {text}", by_id=clips)
    batch = collate(rows, tiny_base.num_codebooks)
    conversation = [
        {
            "role": speaker,
            "content": [{"type": "text", "text": text}, {"type": "audio", "path": np.zeros(1920 * count, np.float32)}],
        }
        for text, speaker, count in zip([*texts[:2], "say: good"], speakers, frames, strict=True)
    ]
    theirs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"][0]
    audio = (theirs == processor.audio_token_id) | (theirs == processor.audio_eos_token_id)
    assert batch.is_audio_BS[0].tolist() == audio.tolist()
    assert batch.text_BS[0][~audio].tolist() == theirs[~audio].tolist()
    is_end = theirs == processor.audio_eos_token_id
    assert (batch.codes_BSK[0][is_end] == 0).all()
    assert (batch.codes_BSK[0][audio & ~is_end] == 9).all()


@torch.no_grad()
def test_pitfall_11_tied_code_embeddings_survive_a_round_trip(
    copied: Path, tmp_path: Path, make_row: Callable[..., Row]
) -> None:
    """CSM-1B stores one table for both; transformers 5 would leave the other at random values."""
    _change_weights(copied, lambda weights: weights.pop(HEARD))
    base = load_base(str(copied))
    stored = load_file(copied / "model.safetensors")[SPOKEN]
    heard = base.network.backbone.embed_tokens.embed_audio_tokens.weight
    assert heard is base.network.depth.model.embed_tokens.weight
    assert torch.equal(heard, stored)
    base.model.save_pretrained(tmp_path / "again")
    shutil.copy(copied / "tokenizer.json", tmp_path / "again")
    shutil.copy(copied / "tokenizer_config.json", tmp_path / "again")
    again = load_base(str(tmp_path / "again"))
    tables = (
        again.network.backbone.embed_tokens.embed_audio_tokens.weight,
        again.network.depth.model.embed_tokens.weight,
    )
    assert tables[0] is tables[1]
    assert torch.equal(tables[0], stored)
    batch = collate([make_row(0)], base.num_codebooks)
    assert torch.equal(base.network(batch).c0_NV, again.network(batch).c0_NV)


def test_pitfall_11_the_other_table_may_be_the_stored_one(copied: Path) -> None:
    stored = load_file(copied / "model.safetensors")[HEARD]
    _change_weights(copied, lambda weights: weights.pop(SPOKEN))
    assert torch.equal(load_base(str(copied)).network.depth.model.embed_tokens.weight, stored)


def test_tables_that_were_trained_apart_stay_apart(tiny_base_folder: Path) -> None:
    stored, base = load_file(tiny_base_folder / "model.safetensors"), load_base(str(tiny_base_folder))
    assert torch.equal(base.network.backbone.embed_tokens.embed_audio_tokens.weight, stored[HEARD])
    assert torch.equal(base.network.depth.model.embed_tokens.weight, stored[SPOKEN])


def test_the_hash_names_the_weights(copied: Path, tiny_base: Base) -> None:
    assert weights_hash(copied) == tiny_base.hash == weights_hash(tiny_base.folder)

    def nudge(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"][3, 5] += 1e-4

    _change_weights(copied, nudge)
    assert weights_hash(copied) != tiny_base.hash


def test_loading_is_silent(tiny_base_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_base(str(tiny_base_folder))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_an_unknown_folder_is_named() -> None:
    with pytest.raises(BaseModelError, match=r"no folder 'nowhere'.*hub id"):
        load_base("nowhere")
    with pytest.raises(BaseModelError, match=r"no folder '/nowhere/at/all'"):
        load_base("/nowhere/at/all")


@pytest.mark.parametrize("name", ["spaces in/it", "owner/..", "-/x"])
def test_what_cannot_be_a_hub_id_is_said_so(name: str) -> None:
    with pytest.raises(BaseModelError, match="hub id"):
        load_base(name)


def test_a_hub_model_that_is_not_here_cannot_be_fetched_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match=r"nobody/nothing.*can't be fetched"):
        load_base("nobody/nothing")


def test_the_miniature_says_how_to_build_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "MINIATURE_FOLDER", tmp_path)
    with pytest.raises(BaseModelError, match="affetto miniature build"):
        find_base("miniature")


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        load_base(str(tmp_path))


def test_a_broken_config_is_named(copied: Path) -> None:
    (copied / "config.json").write_text('{"model_type": "csm",')
    with pytest.raises(BaseModelError, match=r"config\.json can't be read"):
        load_base(str(copied))


@pytest.mark.parametrize(("key", "value"), [("hidden_size", "x"), ("num_hidden_layers", [2]), ("codec_config", 3)])
def test_a_config_of_senseless_values_is_named(copied: Path, key: str, value: object) -> None:
    _change_config(copied, **{key: value})
    with pytest.raises(BaseModelError, match=r"config\.json: transformers refuses this configuration; copy or fetch"):
        load_base(str(copied))


def test_another_kind_of_model_is_refused(copied: Path) -> None:
    _change_config(copied, model_type="llama")
    with pytest.raises(BaseModelError, match=r"'llama' is not supported; supported: csm"):
        load_base(str(copied))


def test_the_config_of_another_kind_is_told_by_base_codec_and_plan(tmp_path: Path) -> None:
    """A Moshi whose codec's settings are a CSM's key, and whose sizes don't go together."""
    folder = Path(shutil.copytree(find_base("random:csm-tiny"), tmp_path / "base"))
    _change_config(folder, model_type="moshi")
    for ask in (load_base, lambda name: plan(Config(base=name), Data(9, 1.0), tflops=1.0)):
        with pytest.raises(
            BaseModelError, match=r"base/config\.json: transformers refuses this configuration; copy or"
        ):
            ask(str(folder))
    with pytest.raises(
        BaseModelError, match=r"config\.json: its codec is that of another kind .* than model_type 'moshi'.*copy"
    ):
        load_codec(folder)
    _change_config(folder, model_type="llama")
    with pytest.raises(BaseModelError, match=r"config\.json: model_type 'llama' is not supported.*Give a checkpoint"):
        find_base(str(folder))


def test_the_format_of_csms_authors_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"backbone_flavor": "llama-1B", "decoder_flavor": "llama-100M"}')
    for ask in (load_base, base_config):
        with pytest.raises(BaseModelError, match=r"config\.json is in the format of CSM's authors.*sesame/csm-1b"):
            ask(str(tmp_path))


def test_missing_weights_are_named(copied: Path) -> None:
    _change_weights(copied, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(BaseModelError, match=r"model\.safetensors lacks 1 tensor: lm_head\.weight; copy or fetch"):
        load_base(str(copied))


def test_both_tables_missing_is_not_a_tie(copied: Path) -> None:
    _change_weights(copied, lambda weights: (weights.pop(HEARD), weights.pop(SPOKEN)))
    with pytest.raises(BaseModelError, match=f"lacks 2 tensors: {HEARD}, {SPOKEN}"):
        load_base(str(copied))


def test_a_missing_table_is_no_tie_where_the_tables_are_apart(copied: Path) -> None:
    _change_weights(copied, lambda weights: weights.pop(HEARD))
    _change_config(copied, tie_codebooks_embeddings=False)
    with pytest.raises(BaseModelError, match=f"lacks 1 tensor: {HEARD}"):
        load_base(str(copied))


def test_weights_that_belong_nowhere_are_named(copied: Path) -> None:
    _change_weights(copied, lambda weights: weights.update({"lm_haed.weight": torch.ones(2)}))
    with pytest.raises(BaseModelError, match=r"model\.safetensors holds 1 tensor: lm_haed\.weight, unknown.*original"):
        load_base(str(copied))


def test_weights_of_another_shape_are_refused(copied: Path) -> None:
    _change_weights(copied, lambda weights: weights.update({"lm_head.weight": torch.ones(3, 128)}))
    with pytest.raises(BaseModelError, match=r"safetensors: lm_head\.weight is \(3, 128\), but config.*copy or fetch"):
        load_base(str(copied))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(copied: Path, dtype: torch.dtype) -> None:
    name = "backbone_model.layers.1.mlp.up_proj.weight"
    _change_weights(copied, lambda weights: weights.update({name: weights[name].to(dtype)}))
    with pytest.raises(BaseModelError, match=rf"{name} is stored as (I8|F8_E4M3).*F32.*give the original"):
        load_base(str(copied))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_any_float_load_in_the_one_asked_for(copied: Path, dtype: torch.dtype) -> None:
    _change_weights(copied, lambda weights: weights.update({key: w.to(dtype) for key, w in weights.items()}))
    stored = load_file(copied / "model.safetensors")["lm_head.weight"]
    assert stored.dtype == dtype
    for wanted in (torch.float32, torch.bfloat16):
        base = load_base(str(copied), dtype=wanted)
        assert {parameter.dtype for parameter in base.model.parameters()} == {wanted}
        assert torch.equal(base.network.c0_head.weight, stored.to(wanted))


def test_a_checkpoint_of_another_kind_under_a_csms_config(copied: Path) -> None:
    """Sesame's own format: other names, the same model."""
    theirs = {f"backbone.layers.{n}.attn.q_proj.weight": torch.ones(2) for n in range(9)}
    save_file(theirs, copied / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"holds 0 of the \d+ tensors of a CSM.*another kind.*attn\.q_proj"):
        load_base(str(copied))


def test_no_weights_at_all(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"holds none of model\.safetensors, .*index\.json; give a checkpoint"):
        load_base(str(copied))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(copied: Path, share: float) -> None:
    content = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BaseModelError, match=r"model\.safetensors is cut off.*copy or fetch"):
        load_base(str(copied))


def test_weights_that_are_something_else(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"not json" + bytes(100))
    with pytest.raises(BaseModelError, match=r"model\.safetensors is damaged or no safetensors file"):
        load_base(str(copied))


def test_a_missing_shard_is_named(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    parts = {"one.safetensors": list(weights)[::2], "two.safetensors": list(weights)[1::2]}
    for name, keys in parts.items():
        save_file({key: weights[key] for key in keys}, copied / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_base(str(copied)).num_codebooks == 8
    (copied / "two.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"index\.json names two\.safetensors, which .* lacks; copy or fetch"):
        load_base(str(copied))
    (copied / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(BaseModelError, match="is no index of weights"):
        load_base(str(copied))


def test_the_weights_that_the_config_names_are_loaded_and_hashed(copied: Path) -> None:
    """The hub's CSM-1B keeps another format's weights under the usual name."""
    (copied / "model.safetensors").rename(copied / "transformers.safetensors")
    _change_config(copied, transformers_weights="transformers.safetensors")
    before = load_base(str(copied)).hash
    save_file({"backbone.odd": torch.ones(2)}, copied / "model.safetensors")
    assert load_base(str(copied)).hash == before


def test_no_tokenizer(copied: Path) -> None:
    for path in copied.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(BaseModelError, match=r"tokenizer\.json is missing.*copy or fetch it again$"):
        load_base(str(copied))


@pytest.mark.parametrize(("name", "text"), [("tokenizer.json", '{"version": "1.0"}'), ("tokenizer.json", "{"),
                                            ("tokenizer.json", "[]"), ("tokenizer_config.json", "no")])  # fmt: skip
def test_a_damaged_tokenizer_is_named(copied: Path, name: str, text: str) -> None:
    (copied / name).write_text(text)
    for load in (load_base, load_for_speaking):
        with pytest.raises(BaseModelError, match=rf"{name}: the tokenizer can't be read .*copy or fetch it again"):
            load(str(copied))


def _add_token(folder: Path, number: int, *, special: bool) -> None:
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    told["added_tokens"].append(told["added_tokens"][-1] | {"id": number, "content": "<|other|>", "special": special})
    path.write_text(json.dumps(told))


@pytest.mark.parametrize("load", [load_base, load_for_speaking])
def test_a_tokenizer_of_another_model_is_refused(copied: Path, tiny_base: Base, load: Callable[[str], Base]) -> None:
    """Its ids would read beyond the text's table."""
    rows = tiny_base.network.num_text_ids
    _add_token(copied, rows, special=False)
    with pytest.raises(
        BaseModelError, match=rf"tokenizer\.json: .*ids up to {rows}, .* end at {rows - 1}: .*another model"
    ):
        load(str(copied))


@pytest.mark.parametrize("load", [load_base, load_for_speaking])
def test_a_special_token_beyond_the_table_is_refused_where_it_stands_in_a_text(
    copied: Path, tiny_base: Base, load: Callable[[str], Base]
) -> None:
    """One that was added for padding, say."""
    rows = tiny_base.network.num_text_ids
    _add_token(copied, rows, special=True)
    base = load(str(copied))
    assert base.prompt_ids("a key", 0) == tiny_base.prompt_ids("a key", 0)
    with pytest.raises(BaseModelError, match=rf"tokenizer\.json: .*ids up to {rows}"):
        base.prompt_ids("a <|other|> key", 0)


def test_both_roads_know_rate_and_revision(tiny_base_folder: Path, tmp_path: Path) -> None:
    """Of a Mimi inside that has another rate than Mimi's own, as a hub's snapshot."""
    folder = tmp_path / "snapshots" / "0123abc"
    shutil.copytree(tiny_base_folder, folder)
    (folder / "codec.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    for codec, rate in (({"upsampling_ratios": [4, 6, 5, 4]}, 25.0), ({"_frame_rate": 20.0}, 20.0)):
        _change_config(folder, codec_config=config["codec_config"] | codec)
        bases = [load(str(folder)) for load in (load_base, load_for_speaking)]
        assert [(base.frame_rate, base.revision) for base in bases] == [(rate, "0123abc")] * 2
        assert type(bases[1].model).__module__ == "affetto.model.light"
