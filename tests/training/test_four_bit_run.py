"""A whole run upon a base in four bits, with everything on; its adapter upon the whole base."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from training_helpers import TINY

from affetto.adapters.bank import AdapterBank
from affetto.adapters.peft_files import insert_adapter, read_adapter
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.files import read_json
from affetto.model.base import load_base
from affetto.training.log import read_log
from affetto.training.loop import train


def test_an_adapter_learns_upon_four_bits_and_loads_upon_the_whole_base(
    config_of: Callable[..., Config], prepared: Prepared
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("bitsandbytes", reason="the extra four-bit (bitsandbytes) is not installed")
    run = train(
        config_of("packed", **TINY, base_precision="nf4", activation_checkpointing=True), "happy", prepared
    )  # fmt: skip
    log = read_log(run / "training_log.jsonl")
    losses = [row["terms"]["emotion_nll"] for row in log if row["split"] == "validation"]
    assert losses[0] - losses[-1] > 0.05
    assert any(row["terms"].get("ewc", 0.0) > 0 for row in log), "the Fisher of the packed base holds it"
    whole = load_base(config_of().base)
    assert read_json(run / "best" / "affetto.json")["base"]["hash"] == whole.hash
    bank = AdapterBank(whole.model, whole.network.gates)
    insert_adapter(bank, "happy", read_adapter(run / "best"), whole.hash)
    assert bank.delta_norm("happy") > 0
    assert all(torch.isfinite(parameter).all() for parameter in bank.parameters("happy").values())
