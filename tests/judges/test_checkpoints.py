"""Emotion judges in FunASR's and SpeechBrain's layouts: what they hear, and what is refused."""

from __future__ import annotations

import argparse
import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Wav2Vec2Model

import checkpoint_samples as samples
from affetto.audio.sound import write_sound
from affetto.errors import JudgeError
from affetto.evaluate.folder import evaluate_folder
from affetto.evaluate.judge_facts import judge_facts
from affetto.judges.checkpoints import fewest_samples, read_state
from affetto.judges.choice import KNOWN_JUDGES, Judges, choose_judges, find_source, load_judge, weights_hash
from affetto.judges.emotion2vec import read_convolutions, read_shape
from affetto.judges.emotion2vec_network import alibi_slopes
from evaluate_fakes import RATE, voice

FUNASR = (
    ([0.485691, 0.003684, 0.224039, 0.205227, 0.081359], [-0.208734, 0.041226, 0.497413, -0.259381]),
    ([0.71847, 0.012036, 0.148202, 0.097635, 0.023658], [-0.296676, 0.142588, 0.303463, -0.226424]),
)
"""What FunASR 1.4.16's own class says of `samples.sounds()` with the same weights: posteriors without `unuse_0`, and
the first four numbers of the utterance's vector at length 1 (benchmarks/parity/judges.py compares more)."""


def test_emotion2vec_hears_what_funasr_hears(tmp_path: Path) -> None:
    folder = samples.emotion2vec(tmp_path / "e2v")
    judge, embedder = load_judge("emotion", folder), load_judge("embedding", folder)
    assert judge.labels == ("angry", "happy", "neutral", "sad", "other")
    vectors = embedder.embed(samples.sounds())
    for (posteriors, start), ours, vector in zip(FUNASR, judge.posteriors(samples.sounds()), vectors, strict=True):
        np.testing.assert_allclose(ours, posteriors, atol=2e-6)
        assert vector is not None
        np.testing.assert_allclose(vector[:4], start, atol=2e-6)
        assert np.linalg.norm(vector) == pytest.approx(1)
    assert np.abs(np.subtract(FUNASR[0][0], FUNASR[1][0])).max() > 0.01, "the sounds tell the weights apart"


def test_speechbrains_judge_is_its_layers_written_out(tmp_path: Path) -> None:
    for output_norm in (True, False):
        folder = samples.speechbrain(tmp_path / str(output_norm), output_norm=output_norm)
        judge = load_judge("emotion", folder)
        assert judge.labels == ("neutral", "angry", "happy", "sad"), "by the numbers in the file, not by its order"
        body = Wav2Vec2Model(samples.WAV2VEC2).eval()
        body.load_state_dict(samples.filled(body.state_dict(), 2))
        head = torch.load(folder / "model.ckpt", weights_only=True)["0.w.weight"]
        for sound, ours in zip(samples.sounds(), judge.posteriors(samples.sounds()), strict=True):
            with torch.inference_mode():
                source = torch.from_numpy(sound)
                states = body(F.layer_norm(source, source.shape)[None]).last_hidden_state[0]
                states = F.layer_norm(states, states.shape) if output_norm else states
                expected = (head @ states.mean(dim=0)).softmax(dim=0)
            np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def test_a_folder_of_sounds_is_judged_by_them(tmp_path: Path) -> None:
    """From the command's choice to the results, a sound too short for a frame among them."""
    sounds = tmp_path / "sounds"
    for index, duration_s in enumerate((1.0, 0.6, 0.01)):
        write_sound(sounds / f"{index}.wav", voice(150 + 40 * index, duration_s), RATE)
    judges = {
        "emotion": str(samples.emotion2vec(tmp_path / "e2v")), "embedding": str(samples.speechbrain(tmp_path / "sb")),
        "words": "none", "quality": "none", "voice": "none",
    }  # fmt: skip
    results = evaluate_folder(sounds, "happy", tmp_path / "results.json", judges=judges)
    (system,) = results["systems"]
    emotion = results["judges"]["emotion"]
    assert emotion is not None
    assert (emotion["tier"], emotion["licence"]) == ("local", None), "nothing on disk is what a hub model is"
    assert emotion["id"].startswith("local/e2v@")
    assert system["metrics"]["posterior"]["n"] >= 2
    with pytest.raises(JudgeError, match="can't hear 'fearful'"):
        choose_judges(judges, "fearful")


def test_what_is_too_short_for_a_frame_has_no_vector(tmp_path: Path) -> None:
    for folder in (samples.emotion2vec(tmp_path / "e2v"), samples.speechbrain(tmp_path / "sb")):
        judge = load_judge("embedding", folder)
        least = judge.model.fewest_samples  # type: ignore[attr-defined]
        short, enough = judge.embed([np.ones(least - 1, np.float32), samples.sounds()[0][:least]])
        assert short is None
        assert enough is not None
        np.testing.assert_allclose(load_judge("emotion", folder).posteriors([np.zeros(3, np.float32)]).sum(), 1)
    assert fewest_samples([(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]) == 400


def test_their_names_tell_their_weights(tmp_path: Path) -> None:
    folder = samples.emotion2vec(tmp_path / "e2v")
    before = weights_hash(folder)
    for name in ("model.pt", "tokens.txt", "config.yaml"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept + b" ")
        assert weights_hash(folder) != before, name
        (folder / name).write_bytes(kept)
    other = samples.speechbrain(tmp_path / "sb")
    before = weights_hash(other)
    (other / "wav2vec2.ckpt").write_bytes(b"")
    assert weights_hash(other) != before


def _changed(**audio: Any) -> dict[str, Any]:
    config = copy.deepcopy(samples.EMOTION2VEC)
    config["model_conf"]["modalities"]["audio"] |= audio
    return config


def test_what_is_no_whole_emotion2vec_is_refused(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(JudgeError, match=match):
            load_judge("emotion", folder)

    folder = samples.emotion2vec(tmp_path / "e2v")
    state = torch.load(folder / "model.pt", weights_only=True)["model"]
    torch.save({"model": {name: value for name, value in state.items() if "qkv" not in name}}, folder / "model.pt")
    refused(r"doesn't hold a complete Emotion2vec: .*qkv.* would stay random")
    torch.save({"model": state | {"proj.bias": torch.zeros(9)}}, folder / "model.pt")
    refused("don't fit its configuration")
    torch.save({"model": {name: value for name, value in state.items() if name != "proj.weight"}}, folder / "model.pt")
    refused(r"doesn't classify emotions.*emotion2vec_plus")
    torch.save({"epoch": 3}, folder / "model.pt")
    refused("holds no weights")
    (folder / "model.pt").write_bytes(b"not a checkpoint")
    refused(r"can't read the weights model\.pt")
    torch.save(argparse.Namespace(runs="code"), folder / "model.pt")
    refused(r"can't read the weights model\.pt")
    samples.emotion2vec(folder)
    (folder / "tokens.txt").write_text("happy\nsad\n", encoding="utf-8")
    refused("6 outputs and 2 names")
    (folder / "config.yaml").write_text("model: [", encoding="utf-8")
    refused(r"can't read the config\.yaml")
    with pytest.raises(JudgeError, match="learned_alibi"):
        read_shape(_changed(learned_alibi=True), "x")
    with pytest.raises(JudgeError, match="is a Paraformer checkpoint"):
        read_shape({**samples.EMOTION2VEC, "model": "Paraformer"}, "x")
    with pytest.raises(JudgeError, match="isn't emotion2vec's"):
        read_shape({"model": "Emotion2vec"}, "x")
    for spec in ("__import__('os').getcwd()", "[(512, 10,", "7"):
        with pytest.raises(JudgeError, match="isn't emotion2vec's"):
            read_shape(_changed(feature_encoder_spec=spec), "x")


def test_what_is_no_whole_speechbrain_judge_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sb"

    def refused(match: str) -> None:
        with pytest.raises(JudgeError, match=match):
            load_judge("emotion", folder)
        samples.speechbrain(folder)

    samples.speechbrain(folder)
    (folder / "model.ckpt").unlink()
    refused(r"lacks model\.ckpt")
    torch.save({"0.w.weight": torch.zeros(7, 64)}, folder / "model.ckpt")
    refused("isn't one linear layer to neu, ang, hap, sad")
    torch.save({"model.masked_spec_embed": torch.zeros(64)}, folder / "wav2vec2.ckpt")
    refused(r"isn't a wav2vec 2\.0")
    (folder / "label_encoder.txt").write_text("'neu' => 1\n====\n", encoding="utf-8")
    refused("doesn't name outputs 0, 1")
    (folder / "hyperparams.yaml").write_text("avg_pool: !new:x\n    return_std: True\n", encoding="utf-8")
    refused("pools by more than the mean")
    (folder / "hyperparams.yaml").write_text("a: [", encoding="utf-8")
    refused(r"can't read the hyperparams\.yaml")


def test_a_switch_that_is_not_there_is_off() -> None:
    config = copy.deepcopy(samples.EMOTION2VEC)
    audio = config["model_conf"]["modalities"]["audio"]
    del audio["use_alibi_encoder"], audio["conv_pos_pre_ln"], config["model_conf"]["normalize"]
    shape = read_shape(config, "x")
    assert (shape.alibi_heads, shape.position_norm_first, shape.normalises) == (0, False, False)
    assert (read_shape(samples.EMOTION2VEC, "x").alibi_heads, shape.heads) == (3, 3)


def test_convolutions_are_read_and_nothing_is_run() -> None:
    assert read_convolutions("[(512, 10, 5)] + [(512, 3, 2)] * 2 + [(1,2,2)]") == (
        (512, 10, 5), (512, 3, 2), (512, 3, 2), (1, 2, 2),
    )  # fmt: skip
    for text in ("[(1, 2)]", "print(1)", "[x]"):
        with pytest.raises(ValueError, match=r"list|malformed"):
            read_convolutions(text)


def test_slopes_are_press_and_others() -> None:
    assert alibi_slopes(8) == [2.0**-exponent for exponent in range(1, 9)]
    twelve = alibi_slopes(12)
    assert twelve[:8] == alibi_slopes(8)
    assert twelve[8:] == [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]


def test_hub_checkpoints_are_fetched_at_their_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, tuple[str, ...]]] = []

    def fetch(hub_id: str, revision: str | None, files: tuple[str, ...]) -> Path:
        asked.append((hub_id, revision, files))
        return places[hub_id]

    large = samples.emotion2vec(
        tmp_path / "e2v",
        tokens=("生气/angry", "厌恶/disgusted", "恐惧/fearful", "开心/happy", "中立/neutral", "其他/other", "难过/sad",
                "吃惊/surprised", "<unk>"),
    )  # fmt: skip
    names = {
        "emotion2vec/emotion2vec_plus_large": large,
        "emotion2vec/emotion2vec_plus_base": large,
        "speechbrain/emotion-recognition-wav2vec2-IEMOCAP": samples.speechbrain(tmp_path / "sb"),
    }
    places = dict(names)
    monkeypatch.setattr("affetto.hub._answers", lambda: True)
    monkeypatch.setattr("affetto.judges.checkpoints.fetch_files", fetch)
    for name in names:
        known = KNOWN_JUDGES[name]
        judge = load_judge("emotion", name)
        assert judge.id == f"{name}@{known.revision}"
        assert (judge.tier, judge.licence, judge.sample_rate) == ("hub", known.licence, known.sample_rate)
        assert set(judge.labels) == set((known.labels or {}).values())
        assert asked[-1][:2] == (name, known.revision)
        assert load_judge("embedding", name).labels == judge.labels
    seed = "emotion2vec/emotion2vec_plus_seed"
    assert find_source("emotion", seed).revision is None
    places[seed] = shutil.copytree(large, tmp_path / "snapshots" / ("c0ffee" * 6 + "c0de"))
    judge = load_judge("emotion", seed)
    assert judge.id == f"{seed}@{places[seed].name}", "what nobody pinned is reported by the commit that it was"
    assert (judge.licence, set(judge.labels)) == ("model-license", {*load_judge("emotion", large).labels})
    facts = judge_facts(Judges(emotion=judge))["emotion"]
    assert facts is not None
    assert "heard" not in facts, "an empty list would say that it heard nothing"
    assert "EmoBox" in facts["note"]


def test_weights_are_found_where_toolkits_keep_them(tmp_path: Path) -> None:
    tensor = torch.arange(3.0)
    for number, found in enumerate(({"a": tensor}, {"model": {"a": tensor}}, {"state_dict": {"a": tensor, "b": 1}})):
        torch.save(found, tmp_path / f"{number}.pt")
        assert list(read_state(tmp_path / f"{number}.pt", "x")) == ["a"]
