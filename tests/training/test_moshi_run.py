"""A whole run on Moshi, with everything on: the loss goes down, the rest is kept, PEFT and transformers take it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, MoshiForConditionalGeneration

from affetto.audio.speakers import speaker_numbers
from affetto.codes.cache import CodeCache
from affetto.codes.codec import load_codec
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import Interrupted
from affetto.files import read_json
from affetto.model.base import load_base
from affetto.speak.dialogue import continue_dialogue
from affetto.training import loop
from affetto.training.log import read_log
from affetto.training.loop import train
from affetto.types import Clip

Make = Callable[..., Config]
TEXTS = ("the key", "hello the key", "the silver key is")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Clips whose codes tell the emotion: each has two codes of its own per codebook."""
    folder, rng = tmp_path_factory.mktemp("moshi-prepared"), np.random.default_rng(0)
    clips, codes = [], {}
    for emotion, seed in (("happy", 1), (None, 2)):
        values_KX = np.random.default_rng(seed).integers(0, 32, (4, 2))
        for number in range(12):
            split = "train" if number < 8 else "validation" if number < 10 else "test"
            name = f"{emotion or 'general'}-{number}"
            text = f"{TEXTS[number % 3]} {'abcdefghijkl'[number]}{(emotion or 'general')[0]}"
            clips.append(Clip(name, folder / f"{name}.wav", text, emotion, "ab"[number % 2], "made-up", split))
            choice_TK = rng.integers(0, 2, (int(rng.integers(10, 15)), 4))
            codes[f"key-{name}"] = np.take_along_axis(values_KX.T, choice_TK, axis=0)
    cache = CodeCache(folder / "codes")
    cache.add(codes)
    speakers = speaker_numbers({clip.speaker for clip in clips})
    return Prepared(tuple(clips), (), (), speakers, {clip.id: f"key-{clip.id}" for clip in clips}, cache)


@pytest.fixture
def config_of(moshi_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A short run with every term on, and the weights that moshi-finetune publishes."""
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))

    def make(name: str = "run", **changes: Any) -> Config:
        values: dict[str, Any] = {
            "emotions": ("happy",), "base": str(moshi_folder), "output_dir": tmp_path / name, "adapter_r": 4,
            "fisher_clips": 4, "rehearsal_buffer_size": 6, "num_epochs": 6, "batch_size": 6, "learning_rate": 5e-3,
            "ewc_lambda": 100.0, "replay_ratio": 0.4, "distillation_alpha": 0.5, "trackers": (),
            "validation_clips": 4, "first_codebook_weight": 100 / 107,
        }  # fmt: skip
        return Config(**(values | changes))

    return make


def test_the_loss_goes_down_with_preservation_on(config_of: Make, prepared: Prepared, moshi_folder: Path) -> None:
    folder = train(config_of(), "happy", prepared)
    log = read_log(folder / "training_log.jsonl")
    steps = [row["terms"] for row in log if row["split"] == "train"]
    parts = [f"{stream}_{kind}_{part}" for stream, kind in (("emotion", "ce"), ("rehearsal", "ce"), ("rehearsal", "kl"))
             for part in ("c0", "depth", "text")]  # fmt: skip
    assert {*parts, "ewc", "total", "gradient_norm"} <= set(steps[0])
    for part in ("c0", "depth", "text"):
        assert steps[-1][f"emotion_ce_{part}"] < steps[0][f"emotion_ce_{part}"] - 0.1, part
    assert steps[0]["rehearsal_kl_text"] == pytest.approx(0.0, abs=1e-3), "the base is its own teacher"
    assert steps[-1]["rehearsal_kl_c0"] > 0
    assert steps[-1]["ewc"] > 0
    validations = [row["terms"] for row in log if row["split"] == "validation"]
    assert validations[-1]["emotion_nll"] < validations[0]["emotion_nll"] - 0.1
    assert _the_guides_snippet_works(folder / "best", moshi_folder)


def _the_guides_snippet_works(adapter: Path, converted: Path) -> bool:
    """The guide's steps with transformers and PEFT alone, on the converted checkpoint."""
    base_model = MoshiForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    emotion_model = PeftModel.from_pretrained(base_model, adapter).eval()
    assert AutoTokenizer.from_pretrained(converted)("the key")["input_ids"]
    inputs = base_model.get_unconditional_inputs()
    greedy = {"do_sample": False, "depth_decoder_do_sample": False, "max_new_tokens": 6, "return_audio_codes": True}
    outputs = emotion_model.generate(**inputs, concat_unconditional_inputs=False, **greedy)
    assert outputs.audio_sequences.shape[-1] % 1920 == 0
    with emotion_model.disable_adapter():
        plain = emotion_model.generate(**inputs, concat_unconditional_inputs=False, **greedy)
    assert not torch.equal(outputs.audio_codes, plain.audio_codes), "the adapter does something"
    return True


def test_transformers_generates_what_the_base_says(moshi_folder: Path) -> None:
    """Greedy `generate` of transformers, which hears the same blank frame of the user again and again."""
    model = MoshiForConditionalGeneration.from_pretrained(moshi_folder, dtype=torch.float32).eval()
    found = model.generate(do_sample=False, depth_decoder_do_sample=False, max_new_tokens=9, return_audio_codes=True)
    blank_TK = load_codec(moshi_folder).encode(np.zeros(1920, dtype=np.float32))
    text_T, codes_TK = continue_dialogue(
        load_base(str(moshi_folder)), np.repeat(blank_TK, 9, axis=0), temperature=0, text_temperature=0
    )
    # Its text begins with the start token; its codes end a frame earlier, for the acoustic ones come late.
    assert found.sequences[0].tolist() == [model.config.vocab_size, *text_T.tolist()]
    np.testing.assert_array_equal(found.audio_codes[0].T.numpy(), codes_TK[:-1])


def test_a_forgetting_budget_counts_the_text(config_of: Make, prepared: Prepared) -> None:
    config = config_of(
        forgetting_budget=0.05, ewc_lambda=0.0, num_epochs=2, adapted_parts="backbone", target_modules=("attention",)
    )
    folder = train(config, "happy", prepared)
    rows = [row["terms"] for row in read_log(folder / "training_log.jsonl") if row["split"] == "train"]
    assert rows[-1]["rehearsal_kl_text"] > 0
    assert read_json(folder / "best" / "affetto.json")["recommended_intensity"] > 0


@pytest.mark.parametrize("curvature", ["kfac", "full"])
def test_other_curvatures_see_every_matrix_of_a_stack(config_of: Make, prepared: Prepared, curvature: str) -> None:
    folder = train(config_of(ewc_curvature=curvature, num_epochs=1), "happy", prepared)
    rows = [row["terms"] for row in read_log(folder / "training_log.jsonl") if row["split"] == "train"]
    assert all(np.isfinite(row["ewc"]) for row in rows)
    assert rows[-1]["ewc"] > 0


def test_stopped_and_resumed_is_never_having_stopped(
    config_of: Make, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 29 on Moshi: half a run, then the rest, gives the same weights."""
    whole = train(config_of("whole", num_epochs=2, target_modules=("q_proj",)), "happy", prepared)
    real, seen = loop.accumulate_together, []

    def stopping(*arguments: Any) -> Any:
        seen.append(None)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(loop, "accumulate_together", stopping)
    with pytest.raises(Interrupted):
        train(config_of("parts", num_epochs=2, target_modules=("q_proj",)), "happy", prepared)
    monkeypatch.setattr(loop, "accumulate_together", real)
    parts = train(config_of("parts", num_epochs=2, target_modules=("q_proj",)), "happy", prepared, resume=True)
    first, second = (load_file(folder / "best" / "adapter_model.safetensors") for folder in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
