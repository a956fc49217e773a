"""A whole evaluation with judges of the classes that are on the hub, under hub names; random weights, no network.

The hub's cache is imitated: `models--OWNER--NAME/snapshots/COMMIT`, as huggingface_hub lays it out.
"""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

import tiny_judges
from affetto.audio.sound import read_sound
from affetto.errors import JudgeError, MissingDependencyError
from affetto.evaluate.results import read_results
from affetto.evaluate.results_schema import results_schema
from affetto.evaluate.suite import evaluate
from affetto.files import read_json
from affetto.judges import voices
from affetto.judges.choice import check_choices, load_judge
from affetto.judges.known import KNOWN_JUDGES
from affetto.miniature.build import ASSETS
from affetto.pipeline import prepare_clips, train_emotions
from schema_check import problems
from small_run import small_config, write_clips

EMOTION, WORDS, VOICE = "superb/wav2vec2-base-superb-er", "openai/whisper-base.en", "microsoft/wavlm-base-plus-sv"
DIMENSIONS = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ASSETS / "base" / "config.json").is_file(), reason="the miniature's weights aren't here"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),
]


def _snapshot(hub: Path, name: str) -> Path:
    folder = hub / f"models--{name.replace('/', '--')}" / "snapshots" / str(KNOWN_JUDGES[name].revision)
    folder.parent.mkdir(parents=True)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache with four judges in it; the emotion judge's labels stand in another order than affetto's table."""
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    tiny_judges.group_norm_emotion(_snapshot(hub, EMOTION), ("sad", "hap", "ang", "neu"))
    tiny_judges.whisper_words(_snapshot(hub, WORDS))
    tiny_judges.wavlm_voice(_snapshot(hub, VOICE))
    tiny_judges.dimensions(_snapshot(hub, DIMENSIONS))
    return hub


@pytest.mark.usefixtures("hub")
def test_judges_of_the_hubs_classes_judge_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "clips").mkdir()
    names = {"emotion": EMOTION, "words": WORDS, "voice": VOICE, "dimensions": DIMENSIONS, "embedding": EMOTION}
    config = small_config(tmp_path / "run", write_clips(tmp_path / "clips"))
    config = config.model_copy(update={"judges": {"quality": "none", **names}})
    prepared = prepare_clips(config, ["happy"])
    list(train_emotions(config, ["happy"], prepared))
    results = evaluate(config, "happy", prepared)

    written = tmp_path / "run" / "evaluation_results" / "happy_results.json"
    assert problems(read_json(written), results_schema()) == []
    assert read_results(written) == results
    for kind, name in names.items():
        judge = results["judges"][kind]
        assert judge is not None
        assert (judge["id"], judge["tier"]) == (f"{name}@{KNOWN_JUDGES[name].revision}", "hub")
        assert judge["licence"] == KNOWN_JUDGES[name].licence
    labels = results["judges"]["emotion"]["labels"]  # type: ignore[index]
    assert labels == ["sad", "happy", "angry", "neutral"]
    base, happy, real, reseeded = results["systems"]
    for system in (base, happy, real, {**reseeded, "metrics": reseeded["plain_metrics"]}):
        assert system["num_failed"] == 0
        for name in (
            "recall", "posterior", "wer", "arousal", "speaker_similarity", "similarity_to_reference",
            "emotion_similarity",
        ):  # fmt: skip
            assert system["metrics"][name]["value"] is not None, (system["name"], name)
    for system in (happy, real):
        _assert_heard_by_the_judges(system["files"][:2], tmp_path / "run")
    assert base["metrics"]["similarity_same_prompt"]["value"] is None, "the base against itself would be 1"
    assert happy["metrics"]["similarity_same_prompt"]["value"] is not None
    assert reseeded["plain_metrics"]["similarity_same_prompt"]["n"] == reseeded["num_files"], "what other seeds cost"
    _assert_like_the_recordings(results["systems"], tmp_path / "run")
    before = written.read_bytes()
    evaluate(config, "happy", prepared, resume=True)
    assert written.read_bytes() == before, "similarities are the same when the rows are taken up"


def _assert_heard_by_the_judges(rows: list, run: Path) -> None:
    """What rows say is what the judges say of these files when asked by themselves."""
    emotion, words = load_judge("emotion", EMOTION), load_judge("words", WORDS)
    for row in rows:
        sound = read_sound(run / row["file"], 16_000)
        posteriors = emotion.posteriors([sound])[0]
        assert row["values"]["posterior"] == pytest.approx(posteriors[1], abs=1e-5)
        assert row["values"]["first_choice"] == emotion.labels[int(np.argmax(posteriors))]
        assert row["values"]["heard"] == words.transcribe([sound])[0]


def _assert_like_the_recordings(systems: list, run: Path) -> None:
    """Every file's likeness is the mean of its cosines to the recordings that say something else."""
    judge = load_judge("embedding", EMOTION)

    def vectors(rows: list) -> list:
        return judge.embed([read_sound(run / row["file"], 16_000) for row in rows])

    real = list(zip(systems[2]["files"], vectors(systems[2]["files"]), strict=True))
    for system in systems:
        for row, vector in zip(system["files"], vectors(system["files"]), strict=True):
            others = [(other, each) for other, each in real if other["text"] != row["text"]]
            own = [pair for pair in others if pair[0]["speaker"] == row["speaker"]] or others
            by_text: dict[str, list[float]] = {}
            for other, each in own:
                by_text.setdefault(other["text"], []).append(float(vector @ each))
            wanted = np.mean([np.mean(cosines) for cosines in by_text.values()])
            assert row["values"]["emotion_similarity"] == pytest.approx(wanted, abs=1e-5), row["file"]


def test_a_revision_with_other_labels_is_refused(hub: Path) -> None:
    path = _commit(hub, EMOTION) / "config.json"
    config = json.loads(path.read_text())
    config["id2label"] = {"0": "sad", "1": "joy", "2": "ang", "3": "neu"}
    path.write_text(json.dumps(config))
    with pytest.raises(JudgeError, match="its revision differs"):
        load_judge("emotion", EMOTION)


@pytest.mark.usefixtures("hub")
def test_a_judge_that_was_never_fetched_says_so() -> None:
    with pytest.raises(JudgeError, match="openai/whisper-small"):
        load_judge("words", "openai/whisper-small")


def test_ecapa_without_speechbrain_stops_a_run_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match="pip install speechbrain"):
        check_choices({"voice": "speechbrain/spkrec-ecapa-voxceleb"}, ["happy"])


def _commit(hub: Path, name: str) -> Path:
    return next((hub / f"models--{name.replace('/', '--')}" / "snapshots").iterdir())
