"""A converted Moshi that is damaged, incomplete or another's: one error each, with file, tensor and remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from affetto.errors import BaseModelError
from affetto.model.base import load_base

STACK = "depth_decoder.layers.1.mlp.fc1.weight"
PROJECTION = "decoder.model.layers.0.self_attn.q_proj.linear.weight"


@pytest.fixture
def copied(moshi_folder: Path, tmp_path: Path) -> Path:
    """The converted checkpoint, to be damaged."""
    return Path(shutil.copytree(moshi_folder, tmp_path / "moshi"))


def _change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _refused(folder: Path, match: str) -> None:
    with pytest.raises(BaseModelError, match=match):
        load_base(str(folder))


@pytest.mark.parametrize("name", [STACK, PROJECTION, "embed_tokens.5.weight", "depth_decoder.lm_heads.weight"])
def test_a_missing_tensor_is_named(copied: Path, name: str) -> None:
    _change_weights(copied, lambda weights: weights.pop(name))
    _refused(copied, rf"{copied}: model\.safetensors lacks 1 tensor: {name}; copy or fetch the checkpoint again")


def test_an_extra_tensor_is_named(copied: Path) -> None:
    _change_weights(copied, lambda weights: weights.update({"decoder.model.layers.2.norm.weight": torch.ones(2)}))
    _refused(copied, r"model\.safetensors holds 1 tensor: decoder\.model\.layers\.2\.norm\.weight, unknown.*original")


@pytest.mark.parametrize("name", [STACK, PROJECTION])
def test_quantised_numbers_are_refused(copied: Path, name: str) -> None:
    _change_weights(copied, lambda weights: weights.update({name: weights[name].to(torch.int8)}))
    _refused(copied, rf"model\.safetensors: {name} is stored as I8.*F32.*give the original")


def test_a_stack_of_too_few_codebooks_is_refused(copied: Path) -> None:
    _change_weights(copied, lambda weights: weights.update({STACK: weights[STACK][:-1].clone()}))
    _refused(copied, rf"model\.safetensors: {STACK} is \(3, .* but config\.json says \(4, .*copy or fetch")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_named(copied: Path, share: float) -> None:
    content = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(content[: int(len(content) * share)])
    _refused(copied, r"model\.safetensors is cut off.*copy or fetch")


def test_csms_weights_under_moshis_config(copied: Path, tiny_base_folder: Path) -> None:
    shutil.copyfile(tiny_base_folder / "model.safetensors", copied / "model.safetensors")
    _refused(copied, r"holds 0 of the \d+ tensors of a Moshi.*another kind \(backbone_model.*give one of the Moshi")


def test_a_config_of_senseless_values_is_named(copied: Path) -> None:
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": "x"}))
    _refused(copied, r"config\.json: transformers refuses this configuration; copy or fetch.*hidden_size")
