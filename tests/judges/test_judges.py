from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny_judges
from affetto.audio.sound import write_sound
from affetto.errors import ConfigError, JudgeError, MissingDependencyError
from affetto.evaluate.judge_facts import judge_facts
from affetto.judges import choice as judges
from affetto.judges.choice import KNOWN_JUDGES, Source
from affetto.judges.kinds import DIMENSIONS
from affetto.judges.labels import to_affetto
from affetto.types import EMOTIONS
from evaluate_fakes import RATE, PitchJudge, voice


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("hap", "happy"),
        ("Happiness", "happy"),
        ("开心/happy", "happy"),
        ("<HAPPY>", "happy"),
        ("FEA", "fearful"),
        ("Surprise", "surprised"),
        ("disgust", "disgusted"),
        ("<unk>", "other"),
        ("calm", "calm"),
        ("amused", "amused"),
        ("anxious", "anxious"),
        ("S", "s"),
        ("A", "a"),
        ("03", "03"),
        ("LABEL_0", "label_0"),
    ],
)
def test_pitfall_24_labels_are_read_by_name_and_never_guessed(name: str, label: str) -> None:
    assert to_affetto(name) == label


@given(st.sampled_from(EMOTIONS), st.sampled_from([str.upper, str.title, str.lower]), st.sampled_from(["", "x/"]))
def test_affettos_own_names_stay(emotion: str, case: object, prefix: str) -> None:
    assert callable(case)
    assert to_affetto(prefix + case(emotion)) == emotion


def test_pitfall_25_a_judge_without_the_target_is_refused_and_lists_what_it_has() -> None:
    judges.require_label(PitchJudge(), "happy")
    with pytest.raises(JudgeError, match=r"'surprised'.*sad, happy"):
        judges.require_label(PitchJudge(), "surprised")


def test_known_judges_are_pinned_and_licensed() -> None:
    for name, known in KNOWN_JUDGES.items():
        assert known.licence
        assert known.languages or name == "nisqa"
        assert known.sample_rate == (48_000 if name == "nisqa" else 16_000)
        assert known.heard is None or known.heard, f"{name}: not known is None"
        if known.tier == "hub" and known.revision is None:
            assert "not pinned" in (known.note or ""), name
        elif known.tier == "hub":
            assert re.fullmatch("[0-9a-f]{40}", known.revision or ""), name
            assert known.kind != "emotion" or known.labels, name
        assert set((known.labels or {}).values()) <= {*EMOTIONS, "disgusted", "other", *DIMENSIONS}


@pytest.mark.parametrize(
    ("name", "languages"),
    [("openai/whisper-tiny", ("many",)), ("openai/whisper-large-v2", ("many",)), ("openai/whisper-base.en", ("en",))],
)
def test_whispers_are_pinned_and_what_they_heard_is_not_known(name: str, languages: tuple[str, ...]) -> None:
    source = judges.find_source("words", name)
    assert source.known is not None
    assert (source.revision, source.licence) == (source.known.revision, "apache-2.0")
    assert (source.known.languages, source.known.heard) == (languages, None)
    assert "680,000 h" in (source.known.note or "")


def test_iemocap_judges_hear_no_surprise() -> None:
    labels = KNOWN_JUDGES["superb/wav2vec2-base-superb-er"].labels
    assert labels is not None
    assert set(labels.values()) == {"happy", "sad", "angry", "neutral"}


def test_a_known_id_is_pinned_to_the_revision_whose_labels_are_known() -> None:
    name = "superb/wav2vec2-base-superb-er"
    source = judges.find_source("emotion", name)
    assert (source.tier, source.revision, source.licence) == ("hub", KNOWN_JUDGES[name].revision, "apache-2.0")
    other = judges.find_source("emotion", f"{name}@abc")
    assert (other.revision, other.labels) == ("abc", None)
    assert judges.find_source("words", "someone/something").licence is None


def test_labels_that_a_revision_renamed_are_noticed() -> None:
    source = Source("x", "x", "hub", None, labels={"hap": "happy", "neu": "neutral"})
    assert judges.read_labels(["中立/neu", "开心/HAP"], source) == ("neutral", "happy")
    with pytest.raises(JudgeError, match="unuse_0"):
        judges.read_labels(["hap", "unuse_0"], source)


def test_what_cannot_judge_says_why() -> None:
    with pytest.raises(JudgeError, match="judges words, not emotion"):
        judges.find_source("emotion", "openai/whisper-base.en")
    with pytest.raises(JudgeError, match=r"no folder \./not/there to load the emotion judge from"):
        judges.find_source("emotion", "./not/there")
    with pytest.raises(JudgeError, match="no folder"):
        judges.find_source("emotion", Path("not-there"))
    with pytest.raises(JudgeError, match="dnsmos"):
        judges.load_judge("quality", "nosuch")


def test_a_folder_is_never_reported_under_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_judges.bert_emotion(tmp_path / "superb" / "wav2vec2-base-superb-er", ("happy", "sad"))
    judge = judges.load_judge("emotion", "superb/wav2vec2-base-superb-er")
    assert judge.tier == "local"
    assert judge.licence is None
    assert re.fullmatch(r"local/wav2vec2-base-superb-er@[0-9a-f]{12}", judge.id)


def test_other_weights_give_another_name(tmp_path: Path) -> None:
    tiny_judges.bert_emotion(tmp_path / "a" / "judge", ("happy", "sad"))
    tiny_judges.bert_emotion(tmp_path / "b" / "judge", ("happy", "angry"))
    names = {judges.find_source("emotion", tmp_path / side / "judge").id for side in "ab"}
    assert len(names) == 2


@pytest.fixture
def no_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation whose miniature judges are in `tmp_path`, where there are none yet."""
    monkeypatch.setattr(resources, "files", lambda _package: tmp_path)
    return tmp_path


@pytest.mark.usefixtures("no_miniature")
def test_missing_default_judges_are_missing_with_a_reason() -> None:
    with pytest.raises(MissingDependencyError, match="--judge words="):
        judges.default_judge("words")
    chosen = judges.choose_judges({"quality": "none"}, "happy")
    assert (chosen.emotion, chosen.words, chosen.quality, chosen.voice) == (None, None, None, None)
    assert "wavlm-base-plus-sv" in chosen.reason("voice")
    assert "miniature" in chosen.reason("emotion")
    assert "switched off" in chosen.reason("quality")


def test_the_default_emotion_judge_is_the_miniatures(no_miniature: Path) -> None:
    tiny_judges.bert_emotion(no_miniature / "assets" / "judges" / "emotion", EMOTIONS)
    judge = judges.default_judge("emotion")
    assert judge.tier == "miniature"
    assert judge.id.startswith("miniature/emotion@")
    assert judge.labels == EMOTIONS
    facts = judge_facts(judges.Judges(emotion=judge))["emotion"]
    assert facts is not None
    assert (facts["languages"], facts["heard"], facts["licence"]) == (["en"], ["miniature"], "Apache-2.0")
    assert judge.posteriors([np.ones(4000, dtype=np.float32)]).shape == (1, 6)
    others = {"words": "none", "quality": "none"}
    found = judges.choose_judges(others, "grumpy")
    assert found.emotion is None
    assert "'grumpy'" in found.reason("emotion")
    with pytest.raises(JudgeError, match="'grumpy'"):
        judges.choose_judges({**others, "emotion": "miniature"}, "grumpy")
    assert judges.load_judge("emotion", "miniature").id == judge.id


def test_what_would_stop_an_evaluation_is_said_before_the_run(tmp_path: Path) -> None:
    judges.check_choices({}, ["grumpy"])
    judges.check_choices({"emotion": "miniature", "words": "none"}, ["happy", "sad"])
    with pytest.raises(JudgeError, match="'grumpy'"):
        judges.check_choices({"emotion": "miniature"}, ["happy", "grumpy"])
    with pytest.raises(JudgeError, match="can't load"):
        judges.check_choices({"words": str(tmp_path)}, ["happy"])


@pytest.mark.parametrize(
    ("device", "num_gpus", "told"),
    [("tpux", 1, "run on cpu or cuda"), ("cuda:x", 1, "run on cpu or cuda"), ("", 1, "run on cpu or cuda"),
     ("cuda", 0, "torch finds no GPU here; leave the option out"), ("cuda:1", 1, "the last is cuda:0")],
)  # fmt: skip
def test_a_device_that_is_not_here_is_one_clear_line(
    affetto: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str,
    num_gpus: int, told: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    write_sound(tmp_path / "a.wav", voice(120, 0.3), RATE)
    status, out, err = affetto("score", "a.wav", "-e", "happy", "-o", "r.json", "--device", device)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: --device {device}: ")
    assert told in err
    with pytest.raises(ConfigError, match="--device"):
        judges.load_judge("emotion", "miniature", device)


def test_devices_that_are_here_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:0", "cuda:1"):
        judges.check_device(device)
    with pytest.raises(ConfigError, match="the last is cuda:1"):
        judges.check_device("cuda:2")


def test_a_chosen_judge_that_fails_is_an_error_and_not_a_null(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="can't load"):
        judges.choose_judges({"emotion": str(tmp_path)}, "happy")
    with pytest.raises(JudgeError, match="no such kind of judge: mood"):
        judges.choose_judges({"mood": "x"}, "happy")


@pytest.mark.parametrize(("given", "found"), [({}, "128"), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7"}, "7")])
def test_kernels_of_a_thousand_lengths_are_not_kept(given: dict[str, str], found: str) -> None:
    """oneDNN's cache is bounded before torch is there, unless the user has chosen (`benchmarks/thousand_files.py`)."""
    code = "import os, sys, affetto.judges; assert 'torch' not in sys.modules; print(os.environ[sys.argv[1]])"
    command = [sys.executable, "-c", code, "ONEDNN_PRIMITIVE_CACHE_CAPACITY"]
    kept = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    assert subprocess.run(command, env=kept | given, capture_output=True, text=True, check=True).stdout.strip() == found
