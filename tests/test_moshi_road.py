"""The main road on a tiny Moshi: sound files in; words aligned, a dialogue's user heard, an adapter that PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from peft import PeftModel
from transformers import MoshiForConditionalGeneration

from affetto.audio.manifest import write_manifest
from affetto.config import Config, load_config
from affetto.evaluate.results import read_results
from affetto.miniature.build import ASSETS
from affetto.miniature.espeak import engine
from affetto.pipeline import prepare_clips
from affetto.run import run
from affetto.training.log import read_log
from affetto.types import SPLITS, Clip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ASSETS / "judges" / "words" / "config.json").is_file(), reason="no recogniser is here"),
]
RATE = 24_000
TEXTS = (
    "the silver key", "hello the key", "the key is silver", "is the silver key", "hello silver", "silver is the key",
    "key silver", "the key is the key", "is silver the key", "hello is the key",
)  # fmt: skip
NUMBERS = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}


def said(text: str, voice: str) -> np.ndarray:
    samples = soxr.resample(engine().speak(text, f"en-us+{voice}").samples, engine().sample_rate, RATE)
    return np.asarray(0.1 * samples / np.sqrt((samples**2).mean()))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Happy and general clips of two speakers; of the happy ones 0 is a dialogue, 1 is annotated, 2 hears general 0
    of the other speaker."""
    folder, found = tmp_path_factory.mktemp("moshi-clips"), []
    for emotion, voice, extra in (("happy", "f2", " now"), (None, "m3", " here")):
        for split in SPLITS:
            for number in NUMBERS[split]:
                name = f"{emotion or 'general'}-{number}"
                sound = said(TEXTS[number] + extra, voice)
                if name == "happy-0":
                    user = np.zeros_like(sound)
                    answer = said("hello", "m7")[: len(sound) // 2]
                    user[-len(answer) :] = answer
                    sound = np.stack([sound, user], axis=1)
                soundfile.write(folder / f"{name}.wav", np.clip(sound, -0.9, 0.9), RATE)
                context = ("general-0",) if name == "happy-2" else ()
                found.append(
                    Clip(name, folder / f"{name}.wav", TEXTS[number] + extra, emotion, voice, "small", split,
                         context=context)
                )  # fmt: skip
    alignments = [[word, [0.1 + 0.3 * n, 0.3 + 0.3 * n], "SPEAKER_MAIN"] for n, word in enumerate(["hello", "key"])]
    (folder / "happy-1.json").write_text(json.dumps({"alignments": alignments}))
    write_manifest(folder / "manifest.jsonl", found)
    return folder / "manifest.jsonl"


def config_of(output: Path, moshi_folder: Path, clips: Path) -> Config:
    return load_config(
        None, base=str(moshi_folder), data=(str(clips),), output_dir=output, emotions=("happy",), num_epochs=6,
        batch_size=4, fisher_clips=4, rehearsal_buffer_size=6, validation_clips=2, evaluation_sentences=2,
        evaluation_clips=2, judges={"quality": "none"}, trackers=(), adapter_r=4, learning_rate=5e-3,
        ewc_curvature="rank1", first_codebook_weight=0.9346, ewc_lambda=100.0, distillation_alpha=0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, moshi_folder: Path, clips: Path) -> dict[str, Any]:
    """One run of `affetto run`, and what it told."""
    output = tmp_path_factory.mktemp("moshi-run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFFETTO_CACHE", str(output / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        config = config_of(output, moshi_folder, clips)
        prepared = prepare_clips(config, ["happy"])
        reports = run(config, ["happy"], command="affetto run", skip_datasets=True)
    return {"output": output, "prepared": prepared, "report": reports[0]}


def test_every_clip_has_its_words_and_the_dialogue_its_user(finished: dict[str, Any]) -> None:
    prepared = finished["prepared"]
    assert prepared.problems == ()
    clips = {clip.id: clip for clip in prepared.clips}
    assert len(clips) == 20
    assert [word.start_s for word in prepared.words["happy-1"]] == pytest.approx([0.1, 0.4])
    assert set(prepared.user_keys) == {"happy-0"}
    for name in clips.keys() - {"happy-1"}:
        starts_s = [word.start_s for word in prepared.words[name]]
        assert " ".join(word.text for word in prepared.words[name]) == clips[name].text
        assert starts_s == sorted(starts_s)
        truth = engine().speak(clips[name].text, f"en-us+{clips[name].speaker}").word_starts
        assert next(place for place, _ in truth) == 0
        if len(truth) == len(starts_s):
            assert np.abs(np.subtract(starts_s, [at for _, at in truth])).max() < 0.25, name


def test_the_loss_goes_down_and_the_rest_is_measured(finished: dict[str, Any]) -> None:
    output = finished["output"]
    rows = read_log(output / "emotion_models" / "happy" / "training_log.jsonl")
    held = [row["terms"] for row in rows if row["split"] == "validation"]
    assert held[-1]["emotion_nll"] < held[0]["emotion_nll"]
    steps = [row["terms"] for row in rows if row["split"] == "train"]
    assert steps[-1]["emotion_ce_text"] < steps[0]["emotion_ce_text"]
    assert steps[-1]["ewc"] > 0
    assert steps[-1]["rehearsal_kl_text"] > 0
    retention = read_results(output / "evaluation_results" / "happy_results.json")["retention"]
    assert retention is not None
    assert retention["num_clips"] == 2
    assert len(retention["per_codebook"]["kl"]) == 4
    assert retention["text"]["kl"]["value"] > 0
    assert "of the text" in finished["report"].read_text(encoding="utf-8")


def test_the_guides_snippet(finished: dict[str, Any], moshi_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished["output"])
    base_model = MoshiForConditionalGeneration.from_pretrained(moshi_folder, dtype=torch.float32)
    emotion_model = PeftModel.from_pretrained(base_model, "emotion_models/happy/best").eval()
    inputs = base_model.get_unconditional_inputs()
    greedy = {"do_sample": False, "depth_decoder_do_sample": False, "max_new_tokens": 8, "return_audio_codes": True}
    outputs = emotion_model.generate(**inputs, concat_unconditional_inputs=False, **greedy)
    assert outputs.audio_sequences.shape[-1] > 0
    with emotion_model.disable_adapter():
        plain = emotion_model.generate(**inputs, concat_unconditional_inputs=False, **greedy)
    assert not torch.equal(outputs.audio_codes, plain.audio_codes), "the adapter does something"
