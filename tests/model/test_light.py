"""Bases loaded without transformers against the same bases loaded with it."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from affetto.adapters.bank import AdapterBank, all_targets
from affetto.errors import BaseModelError
from affetto.miniature.base import make_config
from affetto.model.base import MINIATURE, Base, load_base
from affetto.model.batch import Row, Turn, collate
from affetto.model.light import load_for_speaking, rotary_frequencies
from affetto.speak.generation import generate
from affetto.speak.requests import Request

TEXTS = ["I found the silver key.", "", "  Two  spaces, ÄÖÜ and 'quotes'… ", "<|AUDIO|> 12 [3]", "x" * 300]


def _is_light(base: Base) -> bool:
    return type(base.model).__module__ == "affetto.model.light"


@pytest.fixture(scope="module", params=["tiny", MINIATURE])
def pair(request: pytest.FixtureRequest, tiny_base_folder: Path) -> tuple[Base, Base]:
    """(light, whole)."""
    name = str(tiny_base_folder) if request.param == "tiny" else MINIATURE
    light = load_for_speaking(name)
    assert _is_light(light), "transformers loaded it after all, so nothing is compared"
    return light, load_base(name)


def test_all_weights_are_those_that_transformers_loads(pair: tuple[Base, Base]) -> None:
    light, whole = pair
    expected = {name: value for name, value in whole.model.named_parameters() if not name.startswith("codec_model.")}
    expected |= {name: value for name, value in whole.model.state_dict().items() if name in light.model.state_dict()}
    found = light.model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not any(value.requires_grad for value in light.model.parameters())
    assert light.network.backbone.config.head_dim == whole.network.backbone.config.head_dim
    for part in ("backbone", "depth"):
        stacks = [getattr(base.network, part) for base in pair]
        light_rope, whole_rope = (getattr(stack, "model", stack).rotary_emb for stack in stacks)
        assert torch.equal(light_rope.inv_freq, whole_rope.inv_freq)
        assert light_rope.attention_scaling == whole_rope.attention_scaling


def test_facts_and_prompts_are_the_same(pair: tuple[Base, Base]) -> None:
    light, whole = pair
    for name in ("id", "folder", "hash", "num_codebooks", "window", "frame_rate", "device"):
        assert getattr(light, name) == getattr(whole, name)
    for name in ("vocab_size", "codebook_size", "num_codebooks"):
        assert getattr(light.network, name) == getattr(whole.network, name)
    for text in TEXTS:
        assert light.prompt_ids(text, 7) == whole.prompt_ids(text, 7)


def test_prompts_are_those_of_the_processors_template() -> None:
    """The chat template itself, as a user of transformers would apply it."""
    from transformers import AutoProcessor

    light = load_for_speaking(MINIATURE)
    processor = AutoProcessor.from_pretrained(light.folder)
    for text in (text for text in TEXTS if "<|" not in text):
        talk = [{"role": "7", "content": [{"type": "text", "text": text}]}]
        ids = processor.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"][0]
        assert light.prompt_ids(text, 7) == tuple(np.asarray(ids).tolist())


def test_speech_is_the_same(pair: tuple[Base, Base]) -> None:
    requests = [Request(pair[0].prompt_ids("the silver key", i), 8, seed=i, temperature=float(i)) for i in range(3)]
    light, whole = ([one.codes_TK.tolist() for one in generate(base, requests)] for base in pair)
    assert light == whole


def test_adapters_find_the_same_layers(pair: tuple[Base, Base]) -> None:
    light, whole = load_for_speaking(pair[0].id), copy.deepcopy(pair[1].model)
    targets = all_targets(light.model)
    assert set(targets) == set(all_targets(whole))
    banks = [AdapterBank(model, light.network.gates, targets) for model in (light.model, whole)]
    assert set(banks[0].sites) == set(banks[1].sites)
    assert len(banks[0].sites) > 10


def test_it_says_that_it_only_speaks(pair: tuple[Base, Base]) -> None:
    batch = collate([Row("", (Turn((0, 1), np.zeros((1, 8), np.int64)),))], 8)
    with pytest.raises(NotImplementedError, match="speaking only"):
        pair[0].network.backbone(inputs_embeds=batch.codes_BSK)


@pytest.fixture
def folder(tiny_base_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be changed."""
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_table_may_lack_where_they_are_tied_alone(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("depth_decoder.model.embed_tokens.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tied = load_for_speaking(str(folder))
    assert _is_light(tied)
    tables = tied.model.backbone_model.embed_tokens.embed_audio_tokens, tied.model.depth_decoder.model.embed_tokens
    assert tables[0].weight.data_ptr() == tables[1].weight.data_ptr()
    _edit(folder / "config.json", tie_codebooks_embeddings=False)
    with pytest.raises(BaseModelError, match="embed_tokens"):
        load_for_speaking(str(folder))


@pytest.mark.parametrize("name", ["lm_head.weight", "backbone_model.layers.1.mlp.up_proj.weight"])
def test_missing_weights_are_refused_as_ever(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=name.replace(".", r"\.")):
        load_for_speaking(str(folder))


def test_damaged_weights_and_unknown_bases_are_refused_as_ever(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(BaseModelError):
        load_for_speaking(str(folder))
    with pytest.raises(BaseModelError, match="no folder"):
        load_for_speaking("nowhere")


def test_what_is_not_plain_goes_the_long_way(folder: Path) -> None:
    """A tokenizer of another class, and a rotary scaling that isn't known here."""
    assert _is_light(load_for_speaking(str(folder)))
    kept = (folder / "tokenizer_config.json").read_text()
    _edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizer")
    from affetto.model import light

    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(light, "load_base", lambda name, **_: told.append(name))
        load_for_speaking(str(folder))
        (folder / "tokenizer_config.json").write_text(kept)
        rope = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 2.0}
        _edit(folder / "config.json", rope_parameters=rope)
        load_for_speaking(str(folder))
    assert told == [str(folder)] * 2


def test_llama3_frequencies_are_those_of_transformers() -> None:
    config = make_config()
    config.head_dim = 64
    config.rope_parameters = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "high_freq_factor": 0.5,
        "low_freq_factor": 0.125, "original_max_position_embeddings": 1024,
    }  # fmt: skip
    expected, scaling = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    found = rotary_frequencies({"head_dim": 64, "rope_parameters": config.rope_parameters})
    assert scaling == 1.0
    assert torch.allclose(found, expected, rtol=1e-5, atol=0)
    plain = rotary_frequencies({"head_dim": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}})
    ratios = found / plain
    assert ratios.min() < 0.05
    assert ratios.max() == 1.0
    assert ((ratios > 0.05) & (ratios < 0.99)).any(), "no frequency lies between"


def test_speaking_imports_neither_transformers_nor_peft(tmp_path: Path) -> None:
    """What takes seconds to import and isn't needed; `affetto speak` runs in a fresh process."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from affetto.speak.to_file import speak_to_file\n"
        f"speak_to_file('a key', {{}}, Path({str(tmp_path / 'a.wav')!r}))\n"
        "print(sorted({'transformers', 'peft', 'matplotlib', 'pandas', 'scipy', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "a.wav").is_file()
