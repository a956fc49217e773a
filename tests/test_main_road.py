"""The main road end to end on the shipped miniature: clips in, adapter, results, report and speech out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from typer.testing import CliRunner

from affetto import run as run_module
from affetto.cli import app
from affetto.config import Config
from affetto.doctor.diagnose import examine
from affetto.errors import AdapterError, ConfigError, DataError
from affetto.evaluate import journal
from affetto.evaluate.folder import evaluate_folder
from affetto.evaluate.matching import LEAST, MOST
from affetto.evaluate.results import Results, System, read_results
from affetto.evaluate.results_schema import results_schema
from affetto.evaluate.suite import evaluate
from affetto.files import hash_folder, lock_of, one_at_a_time, read_json
from affetto.intensity import recommend_as_acted
from affetto.judges.choice import default_judge
from affetto.metrics.words import score_words, word_error_rate
from affetto.miniature.build import ASSETS
from affetto.pipeline import prepare_clips, report, train_emotions
from affetto.preserve import self_speech
from affetto.report.comparison_page import write_comparison
from affetto.report.systems import read_entries
from affetto.run import run
from affetto.speak.voice import Voice
from affetto.training.validation import INTENSITIES
from schema_check import problems
from small_run import small_config, write_clips

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ASSETS / "base" / "config.json").is_file(), reason="the miniature's weights aren't here"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cached(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small manifest: happy clips of two actors, and general speech."""
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, clips: Path, cache: Path) -> Path:
    """The folder of one finished run."""
    output = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFFETTO_CACHE", str(cache))
        run(small_config(output, clips), ["happy"], command="affetto run")
    return output


def test_everything_that_the_guide_names_is_there(finished: Path) -> None:
    best = finished / "emotion_models" / "happy" / "best"
    for name in ("adapter_config.json", "adapter_model.safetensors", "affetto.json", "README.md"):
        assert (best / name).stat().st_size > 0, name
    assert list((best / "samples").glob("*.wav"))
    assert (finished / "emotion_models" / "happy" / "report.html").stat().st_size > 20_000
    assert (finished / "evaluation_results" / "happy_results.csv").is_file()
    assert len(list((finished / "evaluation" / "test_samples" / "happy").glob("*.wav"))) == 4


def test_results_count_what_was_spoken(finished: Path) -> None:
    results: Results = read_results(finished / "evaluation_results" / "happy_results.json")
    base, happy, real, reseeded = results["systems"]
    assert [system["role"] for system in results["systems"]] == ["base", "adapter", "real", "reseeded"]
    assert (base["num_files"], happy["num_files"], real["num_files"]) == (8, 8, 4)
    for name in ("recall", "wer"):
        assert real["metrics"][name]["value"] is not None, name
    assert [row["speaker"] for row in real["files"]] == ["0", "1", "0", "1"], "spread over the test clips"
    for row in real["files"]:
        frames = row["duration_s"] * 12.5
        assert frames == pytest.approx(round(frames)), "heard through the codec, in whole frames of 80 ms"
        assert soundfile.info(finished / row["file"]).duration == pytest.approx(row["duration_s"], abs=1e-4)
        assert (finished / row["file"]).with_suffix(".txt").read_text(encoding="utf-8").strip() == row["text"]
        assert Path(row["file"]).parent.as_posix() == "evaluation/test_samples/happy_real"
    assert results["retention"] is not None
    assert results["retention"]["num_clips"] == 4
    _assert_only_seeds_differ(base, reseeded)
    assert [(one["system"], one["against"], one["prompt"]) for one in results["comparisons"]] == [
        ("happy", "base", "emotional"), ("happy", "base", "plain"), (reseeded["name"], "base", "plain"),
    ]  # fmt: skip
    assert results["comparisons"][2]["metrics"]["f0_median_st"]["n"] == 4
    assert happy["metrics"]["mos_overall"]["value"] is None
    assert happy["metrics"]["mos_overall"]["reason"]


def _assert_only_seeds_differ(base: System, reseeded: System) -> None:
    asked = [row for row in base["files"] if row["prompt"] == "plain"]
    assert [(row["text"], row["speaker"]) for row in asked] == [
        (row["text"], row["speaker"]) for row in reseeded["files"]
    ]  # fmt: skip
    assert not {row["seed"] for row in asked} & {row["seed"] for row in reseeded["files"]}
    assert [row["values"]["f0_median_st"] for row in asked] != [
        row["values"]["f0_median_st"] for row in reseeded["files"]
    ], "other seeds give other speech"  # fmt: skip
    assert reseeded["num_failed"] == 0


def test_the_recommended_intensity_is_as_strong_as_the_clips(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", write_clips(tmp_path / "clips", times=2))
    config = config.model_copy(update={"matching_sentences": 12})
    prepared = prepare_clips(config, ["happy"])
    (folder,) = train_emotions(config, ["happy"], prepared)
    path = folder / "best" / "affetto.json"
    facts = read_json(path)
    found = facts["matching"]
    assert found["reason"] is None
    assert found["distance"] > 5, "happy clips are far from plain ones"
    assert facts["recommended_intensity"] == found["intensity"]
    assert LEAST <= found["intensity"] <= MOST
    (point,) = (point for point in facts["frontier"] if point["intensity"] == found["intensity"])
    assert point["kl"] > 0
    assert [one["intensity"] for one in facts["frontier"]] == sorted({*INTENSITIES, found["intensity"]})
    voice = Voice.load("miniature")
    voice.load_adapter("happy", folder / "best")
    assert voice.recommended_intensity("happy") == found["intensity"]
    before = path.read_bytes()
    recommend_as_acted(config, "happy", prepared)
    assert path.read_bytes() == before, "measured again it is the same"
    for changes in ({"matching_sentences": 0}, {"forgetting_budget": 0.01}):
        path.write_bytes(b"{}")
        recommend_as_acted(config.model_copy(update=changes), "happy", prepared)
        assert path.read_bytes() == b"{}", "nothing is measured, and nothing written"


def test_with_too_few_clips_the_loss_recommends_and_the_reason_is_told(finished: Path) -> None:
    facts = read_json(finished / "emotion_models" / "happy" / "best" / "affetto.json")
    assert facts["matching"]["intensity"] is None
    assert "at least 8 are needed" in facts["matching"]["reason"]
    assert facts["recommended_intensity"] in INTENSITIES


def test_each_strength_is_what_the_adapter_says_at_it(finished: Path, clips: Path) -> None:
    config = small_config(finished, clips)
    results = read_results(finished / "evaluation_results" / "happy_results.json")
    base, adapter = results["systems"][:2]
    written = results.get("strengths")
    assert written is not None
    assert adapter["intensity"] is not None
    assert [item["intensity"] for item in written] == sorted({*config.evaluation_strengths, adapter["intensity"]})
    for item in written:
        voice, words = Voice.load("miniature"), default_judge("words")
        voice.load_adapter("happy", finished / "emotion_models" / "happy" / "best")
        rows = [row for row in base["files"] if row["prompt"] == "emotional"]
        said = [
            voice.request(
                str(row["text"]), "happy", intensity=item["intensity"], speaker=int(str(row["speaker"])),
                seed=int(row["seed"] or 0), temperature=config.sampling_temperature,
            )
            for row in rows
        ]  # fmt: skip
        sounds = [
            soxr.resample(voice.decode(one), voice.codec.sample_rate, words.sample_rate, quality="HQ").astype("float32")
            for one in voice.generate(said)
        ]
        scores = [score_words(str(row["text"]), text) for row, text in zip(rows, words.transcribe(sounds), strict=True)]
        expected = word_error_rate([score for score in scores if score is not None])
        # Speech that was written as 16 bits may be heard otherwise by a word.
        assert item["metrics"]["wer"]["value"] == pytest.approx(expected, abs=1.01 / 20)
    page = (finished / "emotion_models" / "happy" / "report.html").read_text(encoding="utf-8")
    assert 'id="strengths"' in page
    assert f"at {config.evaluation_strengths[0]:g}" in page
    assert [item["intensity"] for item in results.get("real_strengths", [])] == [0.6, 1.0]
    assert "recordings acted at 0.6" in page
    assert read_json(finished / "emotion_models" / "happy" / "best" / "affetto.json")["data"]["intensities"].keys() == {
        "0.6", "1"
    }  # fmt: skip


def test_the_page_that_compares_plays_the_recordings(finished: Path, tmp_path: Path) -> None:
    def page_of(run: Path) -> Path:
        entries = read_entries([str(run / "evaluation_results" / "happy_results.json")])
        return write_comparison(tmp_path / "page.html", entries)

    text = page_of(finished).read_text(encoding="utf-8")
    assert "not kept as files" not in text
    without = tmp_path / "without"
    shutil.copytree(finished, without)
    shutil.rmtree(without / "evaluation" / "test_samples" / "happy_real")
    assert text.count("<audio") > page_of(without).read_text(encoding="utf-8").count("<audio") > 0


def test_the_guides_evaluation_of_the_samples_keeps_the_runs_results(
    finished: Path, clips: Path, tmp_path: Path
) -> None:
    """The guide writes the folder's evaluation to the very file that the run wrote, and then the report is drawn."""
    copied = tmp_path / "run"
    shutil.copytree(finished, copied)
    path = copied / "evaluation_results" / "happy_results.json"
    folder = copied / "evaluation" / "test_samples" / "happy"
    for _ in range(2):
        evaluate_folder(folder, "happy", path, judges={"quality": "none"})
    before, results = read_results(finished / "evaluation_results" / "happy_results.json"), read_results(path)
    assert results["systems"][:-1] == before["systems"]
    mine = results["systems"][-1]
    assert (mine["name"], mine["role"]) == ("happy (files)", "files")
    assert mine["metrics"]["wer"]["value"] == before["systems"][1]["metrics"]["wer"]["value"], "the same four files"
    assert report(small_config(copied, clips), "happy").is_file()
    with pytest.raises(DataError, match="name another --output"):
        evaluate_folder(folder, "happy", path, judges={"quality": "none", "words": "none"})
    with pytest.raises(DataError, match=r"x\.json"):
        evaluate_folder(folder, "happy", tmp_path / "x.csv")
    assert read_results(path) == results


def test_a_resumed_evaluation_speaks_and_judges_nothing_again_and_writes_the_same(
    finished: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(finished, copied)
    path = copied / "evaluation_results" / "happy_results.json"
    before = path.read_bytes()
    assert problems(read_json(path), results_schema()) == []
    path.unlink()
    config = small_config(copied, clips)
    prepared = prepare_clips(config, ["happy"])
    judged: list[int] = []
    original = journal.score_files
    monkeypatch.setattr(
        journal, "score_files", lambda items, *rest: judged.append(len(items)) or original(items, *rest)
    )
    with monkeypatch.context() as patch:
        patch.setattr(Voice, "generate", lambda *_, **__: pytest.fail("it was spoken before"))
        evaluate(config, "happy", prepared, command="affetto run", resume=True)
    assert path.read_bytes() == before
    assert judged == []
    (copied / "evaluation" / "test_samples" / "happy" / "001.wav").unlink()
    evaluate(config, "happy", prepared, command="affetto run", resume=True)
    assert path.read_bytes() == before, "what is gone is spoken again, the same way"


def test_clips_that_were_trained_on_are_never_called_held_out(finished: Path, clips: Path, tmp_path: Path) -> None:
    """Evaluated with other data, in which train and test are exchanged."""
    manifest = tmp_path / "manifest.jsonl"
    text = clips.read_text(encoding="utf-8").replace('"audio": "', f'"audio": "{clips.parent}/')
    for one, other in (('"train"', '"?"'), ('"test"', '"train"'), ('"?"', '"test"')):
        text = text.replace(f'"split": {one}', f'"split": {other}')
    manifest.write_text(text, encoding="utf-8")
    config = small_config(finished, manifest)
    before = (finished / "evaluation_results" / "happy_results.json").read_bytes()
    with pytest.raises(ConfigError, match=r"24 of 26 test clips are among those .*happy/best was trained on"):
        evaluate(config, "happy", prepare_clips(config, ["happy"]))
    assert (finished / "evaluation_results" / "happy_results.json").read_bytes() == before


def test_no_other_process_runs_or_evaluates_in_an_emotions_folder(finished: Path, clips: Path) -> None:
    before = hash_folder(finished, ["**/*"])
    told = "another process is working in .*emotion_models/happy; wait until it has ended"
    verb = ["evaluate", "--emotion", "happy", "--data", str(clips), "--output", str(finished)]
    with one_at_a_time(lock_of(finished / "emotion_models" / "happy")):
        with pytest.raises(DataError, match=told):
            run(small_config(finished, clips), ["happy"], command="affetto run", resume=True)
        with pytest.raises(DataError, match=told):
            CliRunner().invoke(app, verb, catch_exceptions=False)
    assert hash_folder(finished, ["**/*"]) == before


def test_the_command_that_speaks_runs_where_only_the_requirements_are_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "executable", str(python))
    command = run_module._speak_command(Config(), "happy")
    assert command.startswith("PYTHONPATH=")
    heard = subprocess.run(f"{command} --help", shell=True, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "Speak a sentence" in heard.stdout


def test_an_adapter_that_peft_alone_wrote_is_evaluated_at_1(finished: Path, clips: Path, tmp_path: Path) -> None:
    best = tmp_path / "emotion_models" / "happy" / "best"
    best.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(finished / "emotion_models" / "happy" / "best" / name, best)
    config = small_config(tmp_path, clips).model_copy(update={"evaluation_strengths": ()})
    results = evaluate(config, "happy", prepare_clips(config, ["happy"]))
    assert results["systems"][1]["intensity"] == 1.0
    assert [str(best) in note for note in results.get("notes", [])] == [True] * 3
    assert "notes" not in read_results(finished / "evaluation_results" / "happy_results.json")


def test_a_report_without_base_and_adapter_says_so_and_touches_nothing(
    finished: Path, clips: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(finished, copied)
    path = copied / "evaluation_results" / "happy_results.json"
    path.unlink()
    evaluate_folder(copied / "evaluation" / "test_samples" / "happy", "happy", path, judges={"quality": "none"})
    samples = sorted((copied / "emotion_models" / "happy" / "best" / "samples").iterdir())
    with pytest.raises(DataError, match="affetto evaluate --emotion happy"):
        report(small_config(copied, clips), "happy")
    assert sorted((copied / "emotion_models" / "happy" / "best" / "samples").iterdir()) == samples


@pytest.mark.parametrize("name", ["emotion_models/happy/best/affetto.json", "calibration.json"])
def test_a_report_of_damaged_files_names_them(finished: Path, clips: Path, tmp_path: Path, name: str) -> None:
    copied = tmp_path / "run"
    shutil.copytree(finished, copied)
    (copied / name).write_text('{"emotion": "happy"}')
    with pytest.raises(DataError, match=name):
        report(small_config(copied, clips), "happy")


def test_an_emotion_of_ones_own_gets_its_report(tmp_path: Path, clips: Path) -> None:
    """No judge knows it: its recall is null with the reason, and everything else is measured."""
    folder = tmp_path / "proud"
    shutil.copytree(clips.parent, folder)
    manifest = folder / "manifest.jsonl"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"happy"', '"proud"'), encoding="utf-8")
    config = small_config(tmp_path, manifest).model_copy(update={"emotions": ("happy", "proud")})
    (page,) = run(config, ["proud"], command="affetto run")
    assert page.stat().st_size > 20_000
    adapter = read_results(tmp_path / "evaluation_results" / "proud_results.json")["systems"][1]
    assert adapter["metrics"]["recall"]["value"] is None
    assert "'proud'" in str(adapter["metrics"]["recall"]["reason"])
    assert adapter["metrics"]["wer"]["value"] is not None


def test_without_general_clips_the_base_speaks_its_own(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, measured and reported on it; a second run speaks none of it again."""
    folder = tmp_path / "acted"
    shutil.copytree(clips.parent, folder)
    manifest = folder / "manifest.jsonl"
    acted = [line for line in manifest.read_text(encoding="utf-8").splitlines() if '"happy"' in line]
    manifest.write_text("\n".join(acted) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="--general self"):
        run(small_config(tmp_path, manifest), ["happy"], command="affetto run")
    config = small_config(tmp_path, manifest).model_copy(update={"general": "self"})
    (page,) = run(config, ["happy"], command="affetto run")
    facts = read_json(tmp_path / "emotion_models" / "happy" / "best" / "affetto.json")
    assert (facts["data"]["general"], facts["data"]["rehearsed_clips"], facts["data"]["fisher_clips"]) == ("self", 8, 4)
    assert "beside 8 general ones that the base spoke itself" in page.read_text(encoding="utf-8")
    retention = read_results(tmp_path / "evaluation_results" / "happy_results.json")["retention"]
    assert retention is not None
    assert retention["num_clips"] == 4
    value = retention["kl"]["value"]
    assert value is not None
    assert value > 0
    monkeypatch.setattr(self_speech, "generate", lambda *_, **__: pytest.fail("spoken again"))
    assert len(prepare_clips(config, ["happy"]).select(None, "train")) == 12


def test_facts_say_where_the_adapter_comes_from(finished: Path) -> None:
    facts = read_json(finished / "emotion_models" / "happy" / "best" / "affetto.json")
    assert facts["emotion"] == "happy"
    assert len(facts["base"]["hash"]) == 64
    assert facts["recommended_intensity"] in [point["intensity"] for point in facts["frontier"]]
    assert facts["data"]["emotional_clips"] == 12


def test_the_doctor_reads_the_whole_run(finished: Path) -> None:
    """Four sentences prove nothing, and twelve clips are few."""
    [diagnosis] = examine(finished)
    assert diagnosis.missing == ()
    checks = {check.name: check for symptom in diagnosis.symptoms for check in symptom.checks}
    assert [number.value for number in checks["few emotional clips"].numbers] == [12]
    assert checks["few emotional clips"].answer == "shown"
    told = {
        name: checks[name].reason for name in ("heard less often than real recordings", "words lost on plain prompts")
    }
    assert all(reason is not None and reason.startswith("4 ") for reason in told.values()), told
    quality = checks["quality lost on plain prompts"]
    assert (quality.answer, quality.reason) == ("unknown", "the quality judge was switched off")
    assert checks["files that couldn't be judged"].numbers[0].n == 24


def test_the_adapter_speaks_and_silence_is_the_base(finished: Path) -> None:
    voice = Voice.load("miniature")
    plain, rate = voice.speak("I found the key", seed=3)
    voice.load_adapter("happy", finished / "emotion_models" / "happy" / "best")
    off, _ = voice.speak("I found the key", emotion="happy", intensity=0.0, seed=3)
    loud, _ = voice.speak("I found the key", emotion="happy", intensity=3.0, seed=3)
    assert rate == 24_000
    assert np.array_equal(plain, off)
    assert plain.shape != loud.shape or not np.array_equal(plain, loud)


def test_an_unknown_adapter_is_an_error_that_says_how_to_train_it(finished: Path) -> None:
    from affetto.speak.to_file import speak_to_file

    with pytest.raises(AdapterError, match="affetto train --emotion sad"):
        speak_to_file("Hello", {"sad": 1.0}, finished / "x.wav", models=finished / "emotion_models")
    assert not (finished / "x.wav").exists()


def test_broken_clips_stop_the_run_and_lose_nothing(tmp_path: Path, clips: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(clips.parent, folder)
    first, second = sorted(folder.glob("happy-train-*.wav"))[:2]
    first.write_bytes(b"")
    soundfile.write(second, np.zeros(24_000), 24_000)
    config = small_config(tmp_path, folder / "manifest.jsonl")
    with pytest.raises(DataError, match="2 clips"):
        prepare_clips(config, ["happy"])
    prepared = prepare_clips(config, ["happy"], skip_bad_clips=True)
    assert {problem.kind for problem in prepared.problems} == {"empty", "silent"}
    assert len(prepared.select("happy", "train")) == 10


def test_two_emotions_at_a_time_become_what_each_is_alone(tmp_path: Path) -> None:
    data = write_clips(tmp_path / "clips", "happy", "sad")
    configs = {
        jobs: small_config(tmp_path / f"{jobs}", data).model_copy(update={"emotions": ("happy", "sad")})
        for jobs in (1, 2)
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # As each of two processes has on two processors.
    try:
        reports = [run(config, ["happy", "sad"], command="x", jobs=jobs) for jobs, config in configs.items()]
    finally:
        torch.set_num_threads(before)
    assert [[path.parent.name for path in found] for found in reports] == [["happy", "sad"]] * 2
    alone, beside = (config.output_dir for config in configs.values())
    for emotion in ("happy", "sad"):
        weights = [
            folder / "emotion_models" / emotion / "best" / "adapter_model.safetensors" for folder in (alone, beside)
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        name = f"evaluation_results/{emotion}_results.json"
        assert read_results(alone / name) == read_results(beside / name)
        assert (beside / "emotion_models" / emotion / "report.html").is_file()
    assert (beside / "evaluation_results" / "comparison.html").is_file()


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real speech of shared/data isn't beside this checkout")
def test_real_recordings_run_to_the_end(tmp_path: Path) -> None:
    """RAVDESS and LJSpeech as published: the miniature can't speak like people, but nothing breaks."""
    data = tmp_path / "data"
    # The published set has a copy of one recording under another actor's name.
    for actor, names in (("Actor_01", "03-01-03-*"), ("Actor_02", "03-01-03-*"), ("Actor_05", "03-01-05-01-01-01-*")):
        (data / "RAVDESS" / actor).mkdir(parents=True)
        for sound in sorted((REAL_DATA / "RAVDESS" / actor).glob(f"{names}.flac")):
            shutil.copy(sound, data / "RAVDESS" / actor)
    (data / "LJSpeech-1.1" / "wavs").mkdir(parents=True)
    sounds = sorted((REAL_DATA / "LJSpeech-1.1" / "wavs").glob("*.flac"))[:12]
    for sound in sounds:
        shutil.copy(sound, data / "LJSpeech-1.1" / "wavs")
    lines = (REAL_DATA / "LJSpeech-1.1" / "metadata.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.partition("|")[0] in {sound.stem for sound in sounds}]
    (data / "LJSpeech-1.1" / "metadata.csv").write_text("".join(kept), encoding="utf-8")
    config = small_config(tmp_path, data)
    run(config, ["happy"], command="affetto run")
    results = read_results(tmp_path / "evaluation_results" / "happy_results.json")
    assert results["systems"][1]["num_failed"] == 0
    assert results["retention"] is not None
