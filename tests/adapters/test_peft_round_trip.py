"""Adapters travel: ours into transformers and PEFT without affetto, PEFT's into our bank; logits and codes agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lora_tools import assert_differ, assert_same, random_adapter
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from affetto.adapters.bank import AdapterBank, all_targets
from affetto.adapters.peft_files import insert_adapter, read_adapter, save_adapter
from affetto.codes.codec import load_codec
from affetto.files import read_json, write_json
from affetto.model.base import Base, load_base
from affetto.model.batch import Batch, Logits, Row, collate
from affetto.model.random_base import random_base
from affetto.speak.generation import generate
from affetto.speak.requests import Request

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
from transformers.utils import logging
logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)
"""

LOADS_OURS = """
from peft import PeftModel
from transformers import CsmForConditionalGeneration
base, work = sys.argv[1:]
inputs = load_file(work + "/inputs.safetensors")
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


DIFFERENCES = (Path(__file__).resolve().parents[2] / "docs" / "differences.md").read_text(encoding="utf-8")
SNIPPET = re.findall(r"^```python\n(.*?)^```$", DIFFERENCES, flags=re.MULTILINE | re.DOTALL)[0]
TIES = re.findall(r"^base\.backbone_model.* = .*\n", SNIPPET, flags=re.MULTILINE)[0]
SPEAKS = """
told = {}
for name, lines in (("page", sys.argv[1]), ("untied", sys.argv[2])):
    torch.manual_seed(0)
    names = {}
    exec(lines, names)
    told[name + " ids"] = names["inputs"]["input_ids"]
    told[name + " sound"] = names["sound"][0]
    told[name + " codes"] = names["emotion_model"].generate(**names["inputs"], **names["spoken"]).contiguous()
save_file(told, "told.safetensors")
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
    _run_without_affetto(LOADS_OURS + MAKES_THEIRS, work, str(base.folder), str(work))
    return Journey(work, batch, dict(load_file(work / "outputs.safetensors")))


def _run_without_affetto(lines: str, work: Path, *arguments: str) -> None:
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": os.environ.get("PATH", "")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_AFFETTO + lines, *arguments],
        cwd=work, capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


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


def _write_like_csm_1b(folder: Path) -> None:
    """A tiny checkpoint in float32 with one of its two tables of code embeddings, which speaks greedily."""
    shutil.copytree(random_base("random:csm-tiny"), folder)
    for path in folder.glob("*.safetensors"):
        tensors = load_tensors(path)
        assert not any("embed_audio_tokens" in name for name in tensors)
        save_tensors({name: value.float() if value.is_floating_point() else value for name, value in tensors.items()},
                     path, metadata={"format": "pt"})  # fmt: skip
    greedy = {"do_sample": False, "depth_decoder_do_sample": False, "max_new_tokens": 6}
    write_json(folder / "generation_config.json", read_json(folder / "generation_config.json") | greedy)


def test_the_pages_lines_speak_with_one_table_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/differences.md, as they stand there."""
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    folder, adapter = tmp_path / "sesame" / "csm-1b", tmp_path / "emotion_models" / "happy" / "best"
    _write_like_csm_1b(folder)
    base = load_base(str(folder))
    bank = AdapterBank(base.model, base.network.gates)
    random_adapter(bank, "happy", rank=3, alpha=7.0)
    save_adapter(adapter, bank, "happy", base.id, {"base": {"hash": base.hash}})
    _run_without_affetto(SPEAKS, tmp_path, SNIPPET, SNIPPET.replace(TIES, ""))
    told = load_file(tmp_path / "told.safetensors")

    request = Request(base.prompt_ids("Say this with emotion: Hello, world!", 0), 6, gate=(1.0,), temperature=0.0)
    spoken, plain = generate(base, [request, replace(request, gate=(0.0,))])
    assert told["page ids"][0].tolist() == list(request.text_ids)
    assert told["page codes"][0].tolist() == spoken.codes_TK.tolist()
    assert len(spoken.codes_TK) == 6
    assert spoken.codes_TK.tolist() != plain.codes_TK.tolist()
    assert told["untied codes"][0].tolist() != spoken.codes_TK.tolist(), "the line that ties does nothing: drop it"
    sound = load_codec(folder).decode(spoken.codes_TK)
    np.testing.assert_allclose(told["page sound"], sound, rtol=0, atol=1e-5)
    written, rate = soundfile.read(tmp_path / "hello.wav", dtype="float32")
    assert rate == 24_000
    assert len(written) == len(sound) == 6 * 1920
