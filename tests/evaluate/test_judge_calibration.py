from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner, Result

from affetto.audio.manifest import write_manifest
from affetto.audio.sound import write_sound
from affetto.cli import app
from affetto.commands.options import FILES_FAILED
from affetto.errors import ConfigError, DataError
from affetto.evaluate.judge_calibration import SCHEMA, calibrate_judges, verdict
from affetto.evaluate.judge_calibration_table import calibration_table, failures, said
from affetto.files import read_json
from affetto.judges import choice as judge_module
from affetto.judges.choice import Judges, KnownJudge
from affetto.judges.predictors import QualityPanel
from affetto.metrics.statistics import MIN_PAIRS, Estimate, share
from affetto.types import Clip
from evaluate_fakes import RATE, LevelDimensions, LevelQuality, PitchJudge, PitchVoice, PitchWords, voice

SPEAKERS = ("ann", "bob", "cy", "dee", "eli", "fay", "gus")


class KnownQuality(LevelQuality):
    id, tier = "fake/known", "hub"
    known = KnownJudge("quality", "hub", "mit", RATE, None, heard=("Elsewhere",))

    def score(self, sounds: Sequence[NDArray[np.float32]]) -> list[dict[str, float]]:
        return [{"mos_known": 3.0} for _ in sounds]


def _corpus(folder: Path, pitches: dict[str | None, float], num_clips: int = MIN_PAIRS) -> Path:
    """Clips whose pitch tells their emotion to the fakes, one that can't be read, and a manifest."""
    clips = []
    for emotion, hz in pitches.items():
        for index in range(num_clips):
            path = folder / f"{emotion}{index}.wav"
            write_sound(path, voice(hz + index % 3, 0.4, 0.05 if emotion == "sad" else 0.1), RATE)
            clips.append(Clip(f"{emotion}{index}", path, "twelve", emotion, SPEAKERS[index % len(SPEAKERS)], "made-up"))
    (folder / "broken.wav").write_bytes(b"no sound")
    clips.append(Clip("broken", folder / "broken.wav", "twelve", "happy", "ann", "made-up"))
    write_manifest(folder / "manifest.jsonl", clips)
    return folder


PITCHES: dict[str | None, float] = {"happy": 260.0, "sad": 110.0, "calm": 115.0, None: 120.0, "neutral": 150.0}
JUDGES = Judges(PitchJudge(), PitchWords(), LevelQuality(), dimensions=LevelDimensions())


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("corpus")
    return calibrate_judges(_corpus(folder, PITCHES), JUDGES, folder / "out.json", command="x")


def test_recall_is_counted_per_class_with_wilsons_interval_over_speakers(document: dict[str, Any]) -> None:
    emotion = document["emotion"]
    assert emotion["chance"] == 1 / 2
    happy, sad = emotion["classes"]["happy"], emotion["classes"]["sad"]
    assert (happy["recall"]["value"], happy["recall"]["n"], happy["heard_as"]) == (1.0, 20, {"sad": 0, "happy": 20})
    # All right in all of them: 20 recordings of seven speakers tell as much as seven.
    theirs = stats.binomtest(len(SPEAKERS), len(SPEAKERS)).proportion_ci(method="wilson")
    assert happy["recall"]["low"] == pytest.approx(theirs.low)
    assert (happy["heard"], happy["false_alarms"]) == ("yes", 0.0)
    assert sad["recall"]["value"] == 1.0
    assert document["num_failed"] == 1
    assert document["num_clips"] == 101


def test_a_judge_that_says_one_thing_of_everything_hears_nothing() -> None:
    recalled = share([True] * 50)
    assert verdict(recalled, 0.1, 0.25) == ("yes", None)
    answer, reason = verdict(recalled, 0.97, 0.25)
    assert (answer, "others" in str(reason)) == ("no", True)
    assert verdict(recalled, 0.79, 0.25)[0] == "no", "above its false alarms, but these are most of the others"
    doubtful = share([True] * 26 + [False] * 24)
    assert doubtful.low is not None
    assert doubtful.low < 0.45 < (doubtful.value or 0)
    assert verdict(doubtful, 0.45, 0.25)[0] == "no", "its interval reaches down to them"
    answer, reason = verdict(share([True] * 15 + [False] * 35), 0.1, 0.25)
    assert (answer, "chance (25%)" in str(reason)) == ("no", True)
    assert verdict(Estimate(None, None, None, 0, "nothing to count"), None, 0.5) == (None, "nothing to count")


def test_a_few_recordings_decide_nothing() -> None:
    few, enough = share([True] * (MIN_PAIRS - 1)), share([True] * MIN_PAIRS)
    assert verdict(few, 0.0, 0.25) == (None, "19 recordings are too few for a verdict (at least 20)")
    assert verdict(share([False] * (MIN_PAIRS - 1)), 0.0, 0.25)[0] is None, "nor against the judge"
    assert verdict(enough, 0.0, 0.25) == ("yes", None)


def test_classes_that_the_judge_lacks_are_listed_and_not_mapped(document: dict[str, Any]) -> None:
    assert document["emotion"]["lacking"] == {"calm": 20, "neutral": 20}
    assert "calm" not in document["emotion"]["classes"]


def test_words_are_scored_per_corpus(document: dict[str, Any]) -> None:
    metric = document["words"]["made-up"]["wer"]
    wrong = [row for row in document["files"] if row["values"]["num_words"] and row["values"]["word_edits"]]
    assert metric["n"] == 100
    assert metric["value"] == pytest.approx(sum(row["values"]["word_edits"] for row in wrong) / 100)
    assert 0 < metric["value"] < 2
    assert metric["low"] is not None


def test_recordings_without_texts_say_that_words_cannot_be_scored(tmp_path: Path) -> None:
    write_sound(tmp_path / "happy" / "a.wav", voice(260, 0.4), RATE)
    judges = Judges(PitchJudge(), PitchWords(), None)
    untold = calibrate_judges(tmp_path, judges)
    (corpus,) = untold["words"]
    for name in ("wer", "cer"):
        metric = untold["words"][corpus][name]
        assert (metric["value"], metric["reason"]) == (None, "these recordings have no texts")
    console = Console(file=io.StringIO(), width=200)
    console.print(calibration_table(untold))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "these recordings have no texts" in shown
    assert "judges on 1 real recording\n" in "\n".join(line.rstrip() + "\n" for line in shown.splitlines())
    (tmp_path / "happy" / "a.txt").write_text("...")
    assert calibrate_judges(tmp_path, judges)["words"][corpus]["wer"]["reason"] == (
        "no recording with a text could be judged"
    )


def test_words_and_quality_have_intervals_over_speakers_though_all_say_one_text(document: dict[str, Any]) -> None:
    for metric in (document["words"]["made-up"]["wer"], document["quality"]["made-up"]["mos_overall"]):
        assert metric["low"] <= metric["value"] <= metric["high"], metric


def test_speakers_are_named_by_their_other_texts(tmp_path: Path) -> None:
    """Three voices half an octave apart, but one clip of a speaker in another's pitch."""
    hz, clips = {"ann": 100.0, "bob": 141.0, "cy": 200.0}, []
    for speaker, pitch in hz.items():
        for index in range(7):
            path = tmp_path / f"{speaker}{index}.wav"
            write_sound(path, voice(200.0 if (speaker, index) == ("ann", 3) else pitch + index, 0.6), RATE)
            clips.append(Clip(path.stem, path, f"text {index}", None, speaker, "made-up"))
    write_manifest(tmp_path / "manifest.jsonl", clips)
    document = calibrate_judges(tmp_path, Judges(voice=PitchVoice()))
    found = document["voice"]["made-up"]
    assert (found["num_speakers"], found["chance"], found["told"]) == (3, 1 / 3, "yes")
    assert (found["named"]["value"], found["named"]["n"]) == (20 / 21, 21)
    assert found["own"]["value"] > found["others"]["value"] + 0.3
    assert 0 < found["equal_error_rate"]["value"] < 0.25
    assert found["equal_error_rate"]["low"] is None
    out = io.StringIO()
    Console(file=out, width=160).print(calibration_table(document))
    assert "made-up named" in out.getvalue()
    assert "can't tell" not in " ".join(said(document))


def test_voices_that_are_one_cannot_be_told_apart(tmp_path: Path) -> None:
    clips = []
    for index in range(21):
        write_sound(tmp_path / f"{index}.wav", voice(120.0 + index // 3, 0.6), RATE)
        clips.append(Clip(str(index), tmp_path / f"{index}.wav", f"text {index // 3}", None, SPEAKERS[index % 3], "m"))
    write_manifest(tmp_path / "manifest.jsonl", clips)
    document = calibrate_judges(tmp_path, Judges(voice=PitchVoice()))
    assert document["voice"]["m"]["told"] == "no"
    assert "can't tell the speakers of m apart" in " ".join(said(document))
    write_manifest(tmp_path / "manifest.jsonl", clips[:-3])
    found = calibrate_judges(tmp_path, Judges(voice=PitchVoice()))["voice"]["m"]
    assert (found["named"]["n"], found["told"]) == (18, None)
    assert found["reason"] == "18 recordings are too few for a verdict (at least 20)"


def test_one_speaker_gives_no_voices_and_says_why(tmp_path: Path) -> None:
    for index in range(3):
        write_sound(tmp_path / f"{index}.wav", voice(120.0 + index, 0.6), RATE)
    clips = [Clip(str(index), tmp_path / f"{index}.wav", f"t{index}", None, "ann", "m") for index in range(3)]
    write_manifest(tmp_path / "manifest.jsonl", clips)
    found = calibrate_judges(tmp_path, Judges(voice=PitchVoice()))["voice"]["m"]
    assert found["named"]["value"] is None
    assert "fewer than two speakers" in found["named"]["reason"]


def test_dimensions_are_held_against_the_speakers_own_neutral(document: dict[str, Any]) -> None:
    sad = document["dimensions"]["sad"]
    assert sad["arousal"]["expected"] == "lower"
    assert sad["arousal"]["difference"] == pytest.approx(-0.05, abs=1e-3)
    assert set(document["dimensions"]["happy"]) == {"arousal", "dominance", "valence"}
    assert "neutral" not in document["dimensions"]


def test_the_table_and_the_sentences_say_what_cannot_be_heard(document: dict[str, Any]) -> None:
    out = io.StringIO()
    Console(file=out, width=160).print(calibration_table(document))
    text = out.getvalue()
    assert "the judge has no such class" in text
    assert "100%" in text
    assert "made-up wer" in text
    lines = " ".join(said(document))
    assert "fake/pitch (local; licence unknown)" in lines
    assert "word judge gets most words of made-up wrong" in lines
    assert "can't hear" not in lines


def test_a_deaf_and_a_flattered_judge_are_told(tmp_path: Path) -> None:
    turned = _corpus(tmp_path, {"happy": 110.0, "sad": 112.0})
    judge = PitchJudge()
    judge.known = KnownJudge("emotion", "hub", "mit", RATE, None, heard=("Made-Up",), note="mind the gap")  # type: ignore[attr-defined]
    document = calibrate_judges(turned, Judges(judge))
    assert {name: found["heard"] for name, found in document["emotion"]["classes"].items()} == {
        "happy": "no", "sad": "no",
    }  # fmt: skip
    lines = " ".join(said(document))
    assert "can't hear happy, sad" in lines
    assert "trained on Made-Up" in lines
    shouted = {**document, "files": [{**file, "corpus": "MADE-UP"} for file in document["files"]]}
    assert "trained on Made-Up" in " ".join(said(shouted)), "a folder's own name may be in capitals"
    assert "mind the gap" in lines
    assert "training data is unknown" not in lines
    assert document["words"] is document["quality"] is None


def test_what_nobody_said_of_a_judge_is_called_not_known(tmp_path: Path) -> None:
    """Neither of a judge that isn't in the registry, nor of one whose entry doesn't know."""
    judge, quality = PitchJudge(), QualityPanel([LevelQuality(), KnownQuality()])
    judge.known = KnownJudge("emotion", "hub", "mit", RATE, None)  # type: ignore[attr-defined]
    document = calibrate_judges(_corpus(tmp_path, {"happy": 260.0}, 3), Judges(judge, quality=quality))
    assert "heard" not in document["judges"]["emotion"]
    panel = document["judges"]["quality"]
    assert (panel["tier"], [one["tier"] for one in panel["members"]]) == ("mixed", ["local", "hub"])
    lines = said(document)
    told = {line.split(":")[0]: follows for line, follows in zip(lines, [*lines[1:], ""], strict=True)}
    assert "training data is unknown" in told["emotion"]
    assert [line.split(" ")[1] for line in lines if line.startswith("quality")] == ["fake/level", "fake/known"]
    assert sum("training data is unknown" in line for line in lines) == 2, "the emotion judge's and the level's"


def test_some_of_each_class_will_do(tmp_path: Path) -> None:
    document = calibrate_judges(_corpus(tmp_path, PITCHES), Judges(PitchJudge()), most=3)
    assert {name: found["recall"]["n"] for name, found in document["emotion"]["classes"].items()} == {
        "happy": 3, "sad": 3,
    }  # fmt: skip


def test_recordings_of_nothing_known_are_refused(tmp_path: Path) -> None:
    write_sound(tmp_path / "x.wav", voice(120, 0.4), RATE)
    write_manifest(tmp_path / "manifest.jsonl", [Clip("x", tmp_path / "x.wav", None, None, "a", "c")])
    with pytest.raises(DataError, match="has an emotion or a text"):
        calibrate_judges(tmp_path, JUDGES)


@pytest.fixture
def calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command over a corpus with one broken file; the judges are the fakes where the voice judge is off."""

    def fakes(choices: dict[str, str], device: str) -> Judges:
        assert choices == {"voice": "none"}
        assert device == ("cuda" if torch.cuda.is_available() else "cpu")
        return JUDGES

    monkeypatch.setattr(judge_module, "all_judges", fakes)
    source = _corpus(tmp_path / "corpus", {"happy": 260.0}, 2)
    return lambda *more: CliRunner().invoke(
        app, ["evaluate", "--calibrate-judges", str(source), *map(str, more)], catch_exceptions=False
    )


def test_the_command_prints_and_writes_and_its_status_says_what_failed(
    calibrate: Callable[..., Result], tmp_path: Path
) -> None:
    options = ["--judge", "voice=none", "--output", tmp_path]
    result = calibrate(*options)
    assert "fake/pitch" in result.stdout
    assert read_json(tmp_path / "judge_calibration.json")["schema"] == SCHEMA
    assert "failed: 1 of 3 recordings could not be judged:\n  broken: unreadable: " in result.stderr
    assert result.exit_code == FILES_FAILED
    assert calibrate(*options, "--allow-failures").exit_code == 0
    manifest = tmp_path / "corpus" / "manifest.jsonl"
    lines = manifest.read_text("utf-8").splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]), "utf-8")
    result = calibrate(*options)
    assert (result.exit_code, "failed" in result.stderr) == (0, False)
    manifest.write_text("".join([*lines[:-1], "{}\n"]), "utf-8")
    result = calibrate(*options)
    assert result.exit_code == FILES_FAILED
    assert "2 problems left recordings out before anything was judged:\n  corpus/manifest.jsonl:3: " in result.stderr


def test_of_many_failures_the_first_are_named() -> None:
    files = [{"file": f"{index}.wav", "error": "silent"} for index in range(7)]
    document = {"files": [*files, {"file": "a", "error": None}], "num_clips": 8, "left_out": []}
    lines = failures(document)
    assert lines[0] == "failed: 7 of 8 recordings could not be judged:"
    assert lines[1:6] == [f"  {index}.wav: silent" for index in range(5)]
    assert lines[6:] == ["  and 2 more in judge_calibration.json"]


def test_the_configurations_judges_and_folder_count(calibrate: Callable[..., Result], tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(f"judges: {{voice: none}}\noutput_dir: {tmp_path / 'out'}\n")
    assert calibrate("--config", config, "--allow-failures").exit_code == 0
    assert (tmp_path / "out" / "judge_calibration.json").is_file()


@pytest.mark.parametrize(
    "options",
    [["--emotion", "happy"], ["--versa", "x.jsonl"], ["--resume"], ["--skip-bad-clips"], ["--intensity", "0"],
     ["--data", "x"], ["--base", "x"], ["--general", "self"]],
)  # fmt: skip
def test_options_without_a_meaning_there_are_refused(calibrate: Callable[..., Result], options: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"takes --judge, .*: leave out {options[0]}$"):
        calibrate("--judge", "voice=none", *options)
