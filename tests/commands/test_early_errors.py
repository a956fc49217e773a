"""What can be known before the work begins is told before it, and what failed at its end is in the exit status."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import MimiConfig

from affetto import pipeline
from affetto import run as road
from affetto.audio.sound import write_sound
from affetto.commands.options import FILES_FAILED
from affetto.config import Config
from affetto.errors import DataError
from affetto.evaluate.results import write_results
from affetto.miniature import card
from evaluate_fakes import voice
from result_samples import result

Called = tuple[int, str, str]
Affetto = Callable[..., Called]


@pytest.fixture
def nothing_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("clips were prepared before")

    monkeypatch.setattr(pipeline, "prepare_clips", fail)
    monkeypatch.setattr(road, "prepare_clips", fail)


@pytest.mark.parametrize("verb", ["train", "run"])
@pytest.mark.parametrize(
    ("setting", "told"), [("trackers: wandb", "'wandb' is not installed"), ("trackers: [x]", "accelerate knows no 'x'")]
)
def test_a_tracker_that_cannot_be_had_is_told_before_clips_are_prepared(
    affetto: Affetto, tmp_path: Path, nothing_is_prepared: None, verb: str, setting: str, told: str  # noqa: ARG001
) -> None:  # fmt: skip
    (tmp_path / "settings.yaml").write_text(setting)
    status, _, err = affetto(verb, "--config", "settings.yaml", "--emotion", "happy")
    assert status == 1
    assert told in err


@pytest.mark.parametrize("verb", [("evaluate",), ("predict-forgetting", "adapter")])
@pytest.mark.parametrize("intensity", ["-1", "nan", "inf"])
def test_an_intensity_that_cannot_be_is_told_before_clips_are_prepared(
    affetto: Affetto, tmp_path: Path, nothing_is_prepared: None, verb: tuple[str, ...], intensity: str  # noqa: ARG001
) -> None:  # fmt: skip
    for folder in (Config().model_of("happy") / "best", Path("adapter")):
        (tmp_path / folder).mkdir(parents=True)
    status, out, err = affetto(*verb, "--intensity", intensity)
    assert (status, out) == (1, "")
    assert "it must be a finite number, 0 (the base) or more" in err


@pytest.mark.parametrize("verb", ["prepare", "train", "run"])
def test_an_output_folder_that_cannot_be_made_is_told_before_clips_are_prepared(
    affetto: Affetto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(pipeline, "find_sources", lambda *_, **__: pytest.fail("clips were looked for before"))
    (tmp_path / "file").write_text("x")
    status, _, err = affetto(verb, "--output", "file/out", "--emotion", "happy")
    assert status == 1
    assert err.startswith("error: can't write file/out (Not a directory); name another place")


def test_a_cache_that_cannot_be_made_is_told(affetto: Affetto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "file"))
    for verb in (("prepare", "--emotion", "happy"), ("speak", "hello")):
        status, _, err = affetto(*verb)
        assert status == 1
        assert "set AFFETTO_CACHE to another place" in err
        assert "Traceback" not in err


def test_a_name_that_is_too_long_is_told(affetto: Affetto, tmp_path: Path) -> None:
    (tmp_path / "emotion_models").mkdir()
    status, _, err = affetto("speak", "happy", "--emotion", "happy" * 60)
    assert status == 1
    assert err.startswith("error: ")
    assert "File name too long" in err


@pytest.mark.parametrize("verb", ["calibrate", "ablate"])
def test_the_laboratory_has_no_expressive_base(
    affetto: Affetto, tmp_path: Path, nothing_is_prepared: None, verb: str  # noqa: ARG001
) -> None:  # fmt: skip
    (tmp_path / "settings.yaml").write_text("expressive_base: true")
    status, _, err = affetto(verb, "--config", "settings.yaml")
    assert status == 1
    assert "leave expressive_base off for this command" in err


@pytest.mark.parametrize("option", ["--seconds", "--tflops"])
def test_a_plan_is_of_finite_numbers(affetto: Affetto, option: str) -> None:
    status, _, err = affetto("plan", option, "inf")
    assert (status, err) == (1, f"error: {option} inf: it must be a finite number\n")


@pytest.mark.parametrize(
    "verb",
    [
        ("train", "--output"), ("train", "--base"), ("train", "--data"), ("plan", "--base"), ("doctor",),
        ("speak", "hello", "-e", "happy", "--models"), ("data", "stats"),
    ],
)  # fmt: skip
def test_a_home_folder_that_nobody_has_is_told(affetto: Affetto, verb: tuple[str, ...]) -> None:
    status, _, err = affetto(*verb, "~nobody-here/x")
    assert status == 1
    assert "error: ~nobody-here/x: ~nobody-here is nobody's home folder here" in err


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        (("doctor",), "holds no run"),
        (("speak", "hello", "-e", "happy", "--models"), "/happy/best. Train it"),
        (("data", "stats"), "no clips found"),
    ],
)
def test_a_home_folder_is_filled_in_where_the_shell_did_not(
    affetto: Affetto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...], told: str
) -> None:
    (tmp_path / "home" / "x").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    status, _, err = affetto(*verb, "~/x")
    assert status == 1
    assert f"{tmp_path / 'home' / 'x'}" in err
    assert told in err


@pytest.mark.parametrize("options", [("--out", "~/made.jsonl"), ("--out=~/made.jsonl",), ("-o", "~/made.jsonl")])
def test_what_is_written_goes_into_the_home_folder_too(
    affetto: Affetto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """Shells leave the second as it is, and who quotes it means the same."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    write_sound(tmp_path / "a.wav", np.full(8000, 0.1, dtype=np.float32), 8000)
    (tmp_path / "a.txt").write_text("the silver key")
    affetto("data", "import", ".", *options)
    assert (home / "made.jsonl").is_file()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.ENOENT, None)])
def test_a_full_disk_is_no_bug(
    affetto: Affetto, monkeypatch: pytest.MonkeyPatch, number: int, status: int | None
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "so it is", "a log")

    monkeypatch.setattr(pipeline, "prepare_clips", fail)
    if status is None:
        with pytest.raises(OSError, match="so it is"):
            affetto("prepare")
    else:
        found, _, err = affetto("prepare")
        assert found == status
        assert "so it is: 'a log'" in err


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        (("calibrate", "nowhere"), "nowhere: no adapter_config.json here"),
        (("predict-forgetting", "nowhere"), "nowhere: no adapter_config.json here"),
        (("calibrate", "other"), "trained on elsewhere/base with weights 123456789abc, but the base given has"),
        (
            ("predict-forgetting", "other"),
            "trained on elsewhere/base with weights 123456789abc, but the base given",
        ),
        (("calibrate", "-e", "hapy"), "unknown emotion 'hapy' (did you mean 'happy'?)"),
        (("calibrate", "-e", "all"), "adapters of one emotion can be calibrated at a time: name one"),
        (("ablate", "-m", "nothing"), "unknown method 'nothing'"),
        (("ablate", "--folder", "file/x"), "can't write file/x (Not a directory)"),
    ],
)
def test_what_is_wrong_in_the_laboratory_is_told_before_clips_are_prepared(
    affetto: Affetto, tiny_base_folder: Path, tmp_path: Path, nothing_is_prepared: None,  # noqa: ARG001
    verb: tuple[str, ...], told: str,
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    facts = {"base": {"id": "elsewhere/base", "hash": "123456789abcdef"}}
    (tmp_path / "other" / "affetto.json").write_text(json.dumps(facts))
    status, _, err = affetto(*verb, "--base", tiny_base_folder)
    assert status == 1
    assert told in err


def test_calibrating_without_general_speech_is_told_before_anything_is_trained(
    affetto: Affetto, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "calibrate", lambda *_, **__: pytest.fail("it was trained before"))
    for name in ("a", "b", "c", "d"):
        path = tmp_path / "mine" / "happy" / f"{name}.wav"
        write_sound(path, voice(150, 0.8), 24_000)
        path.with_suffix(".txt").write_text(f"the words {name}")
    status, _, err = affetto("calibrate", "--base", tiny_base_folder, "--data", "mine", "-e", "happy")
    assert status == 1
    assert "the data lacks it; add LJSpeech" in err


def test_calibrating_an_emotion_without_clips_is_told_before_anything_is_trained(
    affetto: Affetto, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "calibrate", lambda *_, **__: pytest.fail("it was trained before"))
    rows = []
    for name in ("a", "b", "c", "d"):
        write_sound(tmp_path / f"{name}.wav", voice(150, 0.8), 24_000)
        rows.append({"id": name, "audio": f"{name}.wav", "text": f"the words {name}", "emotion": None, "speaker": name})
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = affetto("calibrate", "--base", tiny_base_folder, "--data", "mine.jsonl")
    assert status == 1
    assert "there is nothing to train happy on" in err


@pytest.mark.parametrize(("output", "told"), [("file/card.md", "can't write file"), ("card.txt", "name it card.md")])
def test_a_card_that_cannot_be_written_is_told_before_anything_is_measured(
    affetto: Affetto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, told: str
) -> None:
    monkeypatch.setattr(card, "measure", lambda *_: pytest.fail("it was measured before"))
    (tmp_path / "file").write_text("x")
    status, _, err = affetto("miniature", "measure", "--output", output)
    assert status == 1
    assert told in err


@pytest.mark.parametrize(
    ("verb", "ignored"),
    [
        (("ablate", "--table", "--seeds", "2", "-e", "happy"), "--emotion, --seeds"),
        (("ablate", "--table", "--sentences", "60", "--skip-bad-clips"), "--sentences, --skip-bad-clips"),
        (("report", "--sentences", "8"), "--sentences"),
        (("report", "--title", "x", "--out", "x.html"), "--out, --title"),
        (("evaluate", "--calibrate-judges", "clips", "--resume"), "--resume"),
    ],
)
def test_options_that_would_be_ignored_are_refused(affetto: Affetto, verb: tuple[str, ...], ignored: str) -> None:
    status, _, err = affetto(*verb)
    assert status == 1
    assert err.endswith(f": leave out {ignored}\n")


def test_all_emotions_of_a_report_are_those_that_there_are(
    affetto: Affetto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path, "happy", num_failed=0)
    monkeypatch.setattr(pipeline, "report", lambda _, name: f"page of {name}")
    for emotion in ((), ("--emotion", "all")):
        status, out, _ = affetto("report", "--output", tmp_path, *emotion)
        assert (status, out) == (0, "page of happy\n")
    for verb in ("report", "evaluate", "ablate", "calibrate"):
        assert "every one in one run" not in " ".join(affetto(verb, "--help")[1].split())


def test_preparing_an_emotion_that_no_clip_has_says_so(
    affetto: Affetto, tiny_base_folder: Path, tmp_path: Path
) -> None:
    for name in ("general/a", "general/b", "sad/a"):
        path = tmp_path / "mine" / f"{name}.wav"
        write_sound(path, voice(150, 0.8), 24_000)
        path.with_suffix(".txt").write_text(f"the words {name}")
    options = ("--base", tiny_base_folder, "--data", "mine")
    status, _, err = affetto("prepare", *options, "-e", "happy", "-e", "sad")
    assert status == 1
    assert "clips ready: 2 general, 1 sad" in err
    assert "no clip is labelled 'happy'" in err
    assert "error: there is nothing to train happy on" in err
    status, _, err = affetto("prepare", *options)
    assert status == 0, "the configuration may name more than the data has"
    assert "no clip is labelled 'happy'" in err
    assert "no clip is labelled 'sad'" not in err
    assert affetto("prepare", *options, "-e", "sad", "-e", "base")[0] == 0


def _say_what_is_trained(monkeypatch: pytest.MonkeyPatch, *emotions: str) -> list[str]:
    """Clips of `emotions` and general ones are prepared; training and what follows it note the emotions they get."""
    clips = SimpleNamespace(clips=[SimpleNamespace(emotion=emotion, split="train") for emotion in (None, *emotions)])
    clips.problems = ()
    trained: list[str] = []

    def train(config: Config, wanted: list[str], *_: object, **__: object) -> list[Path]:
        trained.extend(wanted)
        return [config.model_of(emotion) for emotion in wanted]

    monkeypatch.setattr(pipeline, "prepare", lambda *_, **__: clips)
    monkeypatch.setattr("affetto.judges.aligner.with_timed_words", lambda prepared, *_, **__: prepared)
    monkeypatch.setattr(pipeline, "train_emotions", train)
    monkeypatch.setattr(road, "train_emotions", train)
    monkeypatch.setattr(road, "_evaluate_and_report", lambda *_, **__: None)
    monkeypatch.setattr(road, "_say_results", lambda *_: None)
    monkeypatch.setattr(road, "_compare", lambda *_, **__: None)
    return trained


@pytest.mark.parametrize("verb", [("train",), ("run", "--jobs", "1"), ("train", "-e", "all"), ("run", "-e", "all")])
def test_emotions_of_the_configuration_without_clips_are_said_once_and_left_out(
    affetto: Affetto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    trained = _say_what_is_trained(monkeypatch, "sad", "angry")
    settings = "{trackers: [], emotions: [happy, sad, proud, angry], data: [mine], forgetting_budget: 0.01}"
    (tmp_path / "settings.yaml").write_text(settings)
    for emotion in ("sad", "angry"):
        best = tmp_path / "emotion_models" / emotion / "best"
        best.mkdir(parents=True)
        (best / "affetto.json").write_text(json.dumps({"emotion": emotion, "forgetting_budget": None}))
    status, _, err = affetto(*verb, "--config", "settings.yaml")
    assert (status, trained) == (0, ["sad", "angry"]), err
    assert [err.count(f"no clip is labelled '{name}'") for name in ("happy", "sad", "proud", "angry")] == [1, 0, 1, 0]


@pytest.mark.parametrize("verb", ["train", "run"])
def test_a_named_emotion_without_clips_stops_before_others_are_trained(
    affetto: Affetto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    trained = _say_what_is_trained(monkeypatch, "sad")
    (tmp_path / "settings.yaml").write_text("{trackers: [], data: [mine]}")
    status, _, err = affetto(verb, "--config", "settings.yaml", "-e", "sad", "-e", "happy")
    assert (status, trained) == (1, [])
    assert "error: there is nothing to train happy on" in err
    _say_what_is_trained(monkeypatch)
    status, _, err = affetto(verb, "--config", "settings.yaml")
    assert (status, trained) == (1, [])
    assert "error: there is nothing to train happy, sad, angry, fearful, surprised, neutral on" in err


def test_of_emotions_that_nobody_named_the_miniature_may_know_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("affetto.miniature.data.miniature_sources", lambda names, **_: asked.append(names) or [])
    emotions = ["happy", "proud"]
    for are_named in (True, False):
        pipeline.find_sources(Config(emotions=tuple(emotions)), emotions, are_named=are_named)
    assert asked == [["happy", "proud"], ["happy"]]


def test_broken_files_alone_are_shown_in_one_table(affetto: Affetto, tiny_base_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for index in range(20):
        (tmp_path / "mine" / f"{index:02d}.wav").write_bytes(b"")
    status, _, err = affetto("prepare", "--base", tiny_base_folder, "--data", "mine", "--emotion", "happy")
    assert status == 1
    assert "20 empty" in err
    assert all(f" mine-{index:02d} " in err for index in range(20))
    assert "no usable clip in mine: 40 problems (table above)" in err, "of each, the sound and the text"


def finish(output: Path, *emotions: str, num_failed: int) -> None:
    """The results of emotions, of whose systems so many have a file that failed."""
    for emotion in emotions:
        document: Any = result()
        for index, system in enumerate(document["systems"]):
            if index >= num_failed:
                system["files"][0]["error"], system["num_failed"] = None, 0
        write_results(output / "evaluation_results" / f"{emotion}_results.json", document)


def test_files_that_failed_are_told_at_the_end_of_a_run_and_are_its_exit_status(
    affetto: Affetto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clips = [SimpleNamespace(emotion=emotion) for emotion in ("happy", "sad")]
    monkeypatch.setattr(road, "prepare_clips", lambda *_, **__: SimpleNamespace(clips=clips))
    trained = [tmp_path / "emotion_models" / name for name in ("happy", "sad")]
    monkeypatch.setattr(road, "train_emotions", lambda *_, **__: trained)
    monkeypatch.setattr(road, "_evaluate_and_report", lambda *_, **__: None)
    monkeypatch.setattr(road, "_compare", lambda *_, **__: None)
    (tmp_path / "settings.yaml").write_text("trackers: []")
    options = ("--config", "settings.yaml", "--output", tmp_path, "-e", "happy", "-e", "sad", "--jobs", 1)
    finish(tmp_path, "happy", "sad", num_failed=0)
    assert affetto("run", *options)[0] == 0
    finish(tmp_path, "happy", num_failed=2)
    status, _, err = affetto("run", *options)
    assert status == FILES_FAILED
    failed = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert failed == [f"failed: {name}: a.wav: a.wav of {name} is broken" for name in ("base", "happy")]
    (tmp_path / "settings.yaml").write_text("{trackers: [], forgetting_budget: 0.01}")
    budget = {"budget": 0.01, "kl": 0.02, "met": False}
    for folder in trained:
        (folder / "best").mkdir(parents=True)
        facts = {"emotion": folder.name, "recommended_intensity": 0.25, "forgetting_budget": budget}
        (folder / "best" / "affetto.json").write_text(json.dumps(facts))
    status, _, err = affetto("run", *options)
    assert status == 3, "the budget comes first"
    assert "failed: base: a.wav" in err


@pytest.mark.parametrize(("content", "told"), [('{"emotion": "hap', "can't read"), ("{}", "doesn't say what was")])
def test_a_damaged_adapter_is_told_by_its_report(tmp_path: Path, content: str, told: str) -> None:
    finish(tmp_path, "happy", num_failed=0)
    facts = tmp_path / "emotion_models" / "happy" / "best" / "affetto.json"
    facts.parent.mkdir(parents=True)
    facts.write_text(content)
    with pytest.raises(DataError, match=r"affetto\.json.*train it again") as caught:
        pipeline.report(Config(output_dir=tmp_path), "happy")
    assert told in str(caught.value)
    with pytest.raises(DataError, match=r"affetto\.json"):
        pipeline.unmet_budgets(Config(output_dir=tmp_path, forgetting_budget=0.01), ["happy"])


def test_a_codec_alone_is_no_base_and_codes_nothing(
    affetto: Affetto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prepare` coded all clips for it, and `plan` and `speak` refused it then."""
    monkeypatch.setattr(pipeline, "find_sources", lambda *_, **__: pytest.fail("clips were looked for before"))
    monkeypatch.setattr(pipeline, "prepare", lambda *_, **__: pytest.fail("clips were prepared before"))
    MimiConfig().save_pretrained(tmp_path / "mimi")
    status, _, err = affetto("prepare", "--base", "mimi", "--emotion", "happy")
    assert status == 1
    assert err.startswith("error: mimi/config.json: model_type 'mimi' is not supported; supported: csm, moshi, dia.")
    assert affetto("speak", "hello", "--base", "mimi")[::2] == (status, err)
