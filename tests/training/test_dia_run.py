"""The whole road on a third base, a tiny random Dia: sound files in, an adapter out that PEFT loads, speech."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from peft import PeftModel
from transformers import DiaForConditionalGeneration

from affetto.audio.manifest import write_manifest
from affetto.audio.sound import write_sound
from affetto.config import Config
from affetto.files import read_json
from affetto.model.base import load_base
from affetto.model.batch import Row, collate
from affetto.model.dia import DiaNetwork
from affetto.model.rows import make_rows
from affetto.pipeline import prepare_clips
from affetto.preserve.self_speech import SelfSpeech
from affetto.speak.generation import frame_cap
from affetto.speak.to_file import speak_to_file
from affetto.speak.voice import Voice
from affetto.training.log import read_log
from affetto.training.loop import train
from affetto.types import Clip
from dia_checkpoint import BOOKS, RATE, write_dia

TEXTS = ("the key", "hello there", "a silver key", "no more", "open it", "come in", "who is it", "good day")


@pytest.fixture(scope="module")
def dia_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dia(tmp_path_factory.mktemp("dia") / "base")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Happy clips are one whistle, general ones another, so that an adapter has something to learn."""
    folder, clips = tmp_path_factory.mktemp("clips"), []
    for emotion, pitch in (("happy", 900.0), (None, 200.0)):
        for number, text in enumerate(TEXTS):
            name = f"{emotion or 'general'}-{number}"
            times = np.arange(int((0.6 + 0.01 * number) * RATE)) / RATE
            write_sound(folder / f"{name}.wav", 0.4 * np.sin(2 * np.pi * pitch * times * (1 + times)), RATE)
            split = "train" if number < 5 else "validation" if number < 7 else "test"
            said = f"{text} {(emotion or 'plain')[0]}"
            clips.append(Clip(name, folder / f"{name}.wav", said, emotion, "ab"[number % 2], "made-up", split))
    write_manifest(folder / "manifest.jsonl", clips)
    return folder / "manifest.jsonl"


@pytest.fixture
def config_of(
    dia_folder: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Config]:
    """A short run with every term on."""
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))

    def make(**changes: Any) -> Config:
        values: dict[str, Any] = {
            "emotions": ("happy",), "base": str(dia_folder), "data": (str(manifest),), "output_dir": tmp_path / "run",
            "adapter_r": 4, "fisher_clips": 3, "rehearsal_buffer_size": 3, "num_epochs": 6, "batch_size": 5,
            "learning_rate": 5e-3, "ewc_lambda": 100.0, "replay_ratio": 0.4, "distillation_alpha": 0.5, "trackers": (),
            "validation_clips": 2,
        }  # fmt: skip
        return Config(**(values | changes))

    return make


def test_the_product_road(config_of: Callable[..., Config], dia_folder: Path, tmp_path: Path) -> None:
    """Prepare, Fisher, train with preservation on to a lower loss, PEFT loads the adapter, speak to a wav."""
    config = config_of()
    prepared = prepare_clips(config, ["happy"])
    assert len(prepared.clips) == 2 * len(TEXTS)
    assert {prepared.codes(clip).shape[1] for clip in prepared.clips} == {BOOKS}
    folder = train(config, "happy", prepared)
    log = read_log(folder / "training_log.jsonl")
    steps = [row["terms"] for row in log if row["split"] == "train"]
    for part in ("c0", "depth"):
        assert steps[-1][f"emotion_ce_{part}"] < steps[0][f"emotion_ce_{part}"] - 0.1, part
        assert steps[0][f"rehearsal_kl_{part}"] == pytest.approx(0.0, abs=1e-3), "the base is its own teacher"
        assert steps[-1][f"rehearsal_kl_{part}"] > 0
    assert steps[-1]["ewc"] > 0
    validations = [row["terms"] for row in log if row["split"] == "validation"]
    assert validations[-1]["emotion_nll"] < validations[0]["emotion_nll"] - 0.1

    clip = next(clip for clip in prepared.clips if clip.emotion == "happy")
    base = load_base(str(dia_folder))
    (row,) = make_rows(base, [clip], prepared.codes, prepared.speakers, template=config.prompt_template)
    adapted = PeftModel.from_pretrained(DiaForConditionalGeneration.from_pretrained(dia_folder), folder / "best").eval()
    voice = Voice(base)
    voice.load_adapter("happy", folder / "best")
    with torch.no_grad():
        theirs = DiaNetwork(adapted.base_model.model)(collate([row], BOOKS))
        mine = base.network(collate([Row(row.clip_id, row.turns, (1.0,))], BOOKS))
        plain = base.network(collate([row], BOOKS))
    torch.testing.assert_close(mine.c0_NV, theirs.c0_NV, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine.depth_MJV, theirs.depth_MJV, rtol=1e-4, atol=1e-4)
    assert (mine.c0_NV - plain.c0_NV).abs().max() > 0.1

    spoken = []
    for name, strength in (("happy", 1.0), ("again", 1.0), ("plain", 0.0)):
        speak_to_file(
            "hi", {"happy": strength}, tmp_path / f"{name}.wav", base=str(dia_folder), models=folder.parent,
            intensity=1.0, seed=3,
        )  # fmt: skip
        samples, rate = soundfile.read(tmp_path / f"{name}.wav")
        assert rate == RATE
        assert 0 < len(samples) <= 512 * frame_cap(config.prompt_template.replace("{text}", "hi"), RATE / 512)
        spoken.append(samples)
    np.testing.assert_array_equal(spoken[0], spoken[1])
    assert len(spoken[0]) != len(spoken[2]) or not np.array_equal(spoken[0], spoken[2]), "the adapter does something"


def test_a_forgetting_budget_and_its_intensity(config_of: Callable[..., Config]) -> None:
    config = config_of(forgetting_budget=0.05, ewc_lambda=0.0, num_epochs=2, activation_checkpointing=True)
    folder = train(config, "happy", prepare_clips(config, ["happy"]))
    facts = read_json(folder / "best" / "affetto.json")
    assert facts["base"]["num_codebooks"] == BOOKS
    budget = facts["forgetting_budget"]
    assert (budget["budget"], budget["met"]) == (0.05, True)
    (point,) = [point for point in facts["frontier"] if point["intensity"] == facts["recommended_intensity"]]
    assert 0 < point["kl"] == budget["kl"] <= 0.05


def test_the_base_speaks_general_clips_as_long_as_its_own_frames(
    config_of: Callable[..., Config], dia_folder: Path
) -> None:
    """86 frames a second, and not CSM's 12.5."""
    prepared = prepare_clips(config_of(), ["happy"])
    speech = SelfSpeech(str(dia_folder), prepared.cache)
    utterance = next(speech.candidates("train", {"a": 0}, ()))
    assert utterance.max_frames == frame_cap(utterance.text, RATE / 512)
    assert utterance.max_frames > 86 * 1.5
