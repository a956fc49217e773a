"""Adapters travel: ours into transformers and PEFT without affetto, PEFT's into our bank; logits and codes agree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_tools import assert_differ, assert_same, random_adapter
from safetensors.numpy import load_file, save_file

from affetto.adapters.bank import AdapterBank, all_targets
from affetto.adapters.peft_files import insert_adapter, read_adapter, save_adapter
from affetto.model.base import Base, load_base
from affetto.model.batch import Batch, Logits, Row, collate
from affetto.speak.generation import Request, generate

WITHOUT_AFFETTO = """
import sys, types

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "affetto":
            raise ImportError("affetto is not here")

sys.meta_path.insert(0, Blocker())
try:
    import affetto
except ImportError:
    pass
else:
    raise SystemExit("affetto could be imported, so this proves nothing")

import torch
from safetensors.torch import load_file, save_file
from transformers import CsmForConditionalGeneration
from transformers.utils import logging
logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)
base, work = sys.argv[1:]
inputs = load_file(work + "/inputs.safetensors")
"""

LOADS_OURS = """
from peft import PeftModel
model = CsmForConditionalGeneration.from_pretrained(base).eval()
model = PeftModel.from_pretrained(model, work + "/ours").eval()
adapted = [name for name, _ in model.named_modules() if name.endswith("lora_A")]
assert len(adapted) == 28, adapted
with torch.no_grad():
    said = model(inputs_embeds=inputs["embeds"], labels=inputs["labels"])
greedy = {"do_sample": False, "depth_decoder_do_sample": False, "max_new_tokens": 6}
unspoken = [256, 257, 258]
greedy |= {"suppress_tokens": unspoken, "depth_decoder_suppress_tokens": unspoken}
codes = model.generate(input_ids=inputs["prompt"], attention_mask=torch.ones_like(inputs["prompt"]), **greedy)
outputs = {"ours c0": said.logits, "ours depth": said.depth_decoder_logits, "ours codes": codes.contiguous()}
"""

MAKES_THEIRS = """
from peft import LoraConfig, get_peft_model
torch.manual_seed(3)
model = CsmForConditionalGeneration.from_pretrained(base)
config = LoraConfig(
    r=4, lora_alpha=12, use_rslora=True, target_modules=["q_proj", "o_proj", "down_proj", "inputs_embeds_projector"]
)
model = get_peft_model(model, config)
trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
assert any("codec_model" in name for name in trained), "the codec is not adapted, so this says nothing about it"
optimizer = torch.optim.SGD(trained.values(), lr=0.02)
for _ in range(3):
    model(inputs_embeds=inputs["embeds"], labels=inputs["labels"]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval()
model.save_pretrained(work + "/theirs")
with torch.no_grad():
    said = model(inputs_embeds=inputs["embeds"], labels=inputs["labels"])
outputs |= {"theirs c0": said.logits, "theirs depth": said.depth_decoder_logits}
save_file(outputs, work + "/outputs.safetensors")
"""


@dataclass(frozen=True)
class Journey:
    """What an interpreter without affetto made of our adapter, and the adapter that PEFT trained there."""

    work: Path
    batch: Batch
    outputs: dict[str, np.ndarray]

    def logits(self, whose: str) -> Logits:
        rows, places = self.batch.frames_N2.unbind(1)
        c0, depth = (torch.from_numpy(self.outputs[f"{whose} {part}"]) for part in ("c0", "depth"))
        return Logits(c0[rows, places - 1], depth)


@pytest.fixture(scope="module")
def journey(tiny_base_folder: Path, make_row: Callable[..., Row], tmp_path_factory: pytest.TempPathFactory) -> Journey:
    work, base = tmp_path_factory.mktemp("journey"), load_base(str(tiny_base_folder))
    batch = collate([make_row(0, frames=(6,), words=(5,)), make_row(1, frames=(4, 3), words=(4, 6))], 8)
    with torch.no_grad():
        embeds = base.network.embed(batch)
    labels = torch.full_like(batch.codes_BSK, -100)
    rows, places = batch.frames_N2.unbind(1)
    labels[rows, places] = batch.codes_BSK[rows, places]
    prompt = torch.tensor([base.prompt_ids("the silver key", 12)])
    inputs = {"embeds": embeds.numpy(), "labels": labels.numpy(), "prompt": prompt.numpy()}
    save_file(inputs, work / "inputs.safetensors")
    bank = AdapterBank(base.model, base.network.gates)
    random_adapter(bank, "happy", rank=3, alpha=7.0)
    save_adapter(work / "ours", bank, "happy", base.id, {"base": {"hash": base.hash}})
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": os.environ.get("PATH", "")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_AFFETTO + LOADS_OURS + MAKES_THEIRS, str(base.folder), str(work)],
        capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Journey(work, batch, dict(load_file(work / "outputs.safetensors")))


def test_our_adapter_speaks_the_same_through_peft_without_affetto(tiny_base: Base, journey: Journey) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    insert_adapter(bank, "happy", read_adapter(journey.work / "ours"), tiny_base.hash)
    with torch.no_grad():
        ours = tiny_base.network(journey.batch.with_gate(torch.ones(2, 1)))
        assert_same(journey.logits("ours"), ours)
        assert_differ(tiny_base.network(journey.batch), ours)
    request = Request(tiny_base.prompt_ids("the silver key", 12), max_frames=6, gate=(1.0,), temperature=0.0)
    spoken, plain = generate(tiny_base, [request, replace(request, gate=(0.0,))])
    assert spoken.codes_TK.tolist() == journey.outputs["ours codes"][0].tolist()
    assert spoken.codes_TK.tolist() != plain.codes_TK.tolist()


def test_an_adapter_that_peft_trained_speaks_the_same_in_our_bank(tiny_base: Base, journey: Journey) -> None:
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, all_targets(tiny_base.model))
    adapter = read_adapter(journey.work / "theirs")
    assert any(site.startswith("codec_model.") for site in adapter.tensors)
    assert set(adapter.scales.values()) == {12 / 4**0.5}
    insert_adapter(bank, "theirs", adapter, tiny_base.hash)
    with torch.no_grad():
        ours = tiny_base.network(journey.batch.with_gate(torch.ones(2, 1)))
        assert_same(journey.logits("theirs"), ours)
        assert_differ(tiny_base.network(journey.batch), ours)
