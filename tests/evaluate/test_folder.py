from __future__ import annotations

import csv
import errno
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import tiny_judges
from affetto import evaluate
from affetto.cli import app
from affetto.errors import ConfigError, DataError, JudgeError
from affetto.evaluate.folder import Beside, evaluate_folder
from affetto.evaluate.folder_files import find_sounds, read_metadata
from affetto.evaluate.folder_lines import folder_lines
from affetto.evaluate.results import read_results
from affetto.files import lock_of, one_at_a_time, read_json, write_json
from evaluate_fakes import RATE, fake_judges, voice
from result_samples import result

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluation_metrics.py"
OFF = "--judge emotion=none --judge words=none --judge quality=none"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three voices that say their pitch over ten, two of them with a text beside them."""
    place = tmp_path / "test_samples" / "happy"
    place.mkdir(parents=True)
    for f0, name in ((120, "low.wav"), (240, "high.WAV"), (180, "middle.flac")):
        soundfile.write(place / name, voice(f0), RATE, format="FLAC" if name.endswith("flac") else "WAV")
    (place / "low.txt").write_text("Twelve.\n")
    (place / "high.txt").write_text("\ufefftwenty\nthree")
    (place / "notes.md").write_text("not a sound")
    return place


def test_every_sound_in_the_folder_is_scored_with_the_text_beside_it(folder: Path, tmp_path: Path) -> None:
    results = evaluate_folder(folder, "happy", tmp_path / "out" / "r.json", judges=fake_judges())
    system = results["systems"][0]
    assert (system["name"], system["role"], system["num_files"], system["num_failed"]) == ("happy", "files", 3, 0)
    by_name = {row["file"]: row for row in system["files"]}
    assert {name: row["text"] for name, row in by_name.items()} == {
        "high.WAV": "twenty three", "low.wav": "Twelve.", "middle.flac": None,
    }  # fmt: skip
    assert by_name["low.wav"]["values"]["word_edits"] == 0
    assert by_name["high.WAV"]["values"]["word_edits"] == 1
    assert system["metrics"]["wer"]["value"] == pytest.approx(1 / 3)
    assert system["metrics"]["wer"]["n"] == 2
    assert read_results(tmp_path / "out" / "r.json") == results


def test_pitfall_28_a_second_run_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        evaluate_folder(folder, "happy", tmp_path / f"{name}.json", judges=fake_judges())
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_judges_can_be_named_by_folder(folder: Path, tmp_path: Path) -> None:
    choices = {
        "emotion": str(tiny_judges.bert_emotion(tmp_path / "e", ("hap", "sad", "neu"))),
        "words": str(tiny_judges.bert_words(tmp_path / "w")),
        "quality": "none",
    }
    results = evaluate_folder(folder, "happy", tmp_path / "r.json", judges=choices)
    emotion = results["judges"]["emotion"]
    assert emotion is not None
    assert (emotion["tier"], emotion["labels"]) == ("local", ["happy", "sad", "neutral"])
    metrics = results["systems"][0]["metrics"]
    assert metrics["posterior"]["n"] == 3
    assert metrics["mos_overall"]["value"] is None
    with pytest.raises(JudgeError, match="surprised"):
        evaluate_folder(folder, "surprised", tmp_path / "r.json", judges=choices)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "file,text,speaker\nhappy/low.wav,Twelve,anna\nhigh,Twenty four,ben\nelsewhere.wav,x,y\n"),
        ("m.csv", "\ufeffspeaker|audio|transcript\nanna|low.wav|Twelve\nben|high.WAV|Twenty four\n"),
        ("m.jsonl", '{"audio": "a/low.wav", "text": "Twelve", "speaker": "anna"}\n\n'
                    '{"file": "high.WAV", "text": "Twenty four", "speaker": "ben"}\n'),
        ("m.csv", "\ufeffFile,Text,Speaker\r\nlow.wav,Twelve,anna\r\nhigh.WAV,Twenty four,ben\r\n"),
        ("m.tsv", 'wav_path\ttranscription\tspk\nC:\\x\\low.wav\tTwelve\tanna\nwavs/high.WAV\t"Twenty\nfour"\tben\n'),
    ],
)  # fmt: skip
def test_texts_come_from_metadata(folder: Path, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    results = evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges(), metadata=tmp_path / name)
    rows = {
        row["file"]: (" ".join(row["text"].split()) if row["text"] else None, row["speaker"])
        for row in results["systems"][0]["files"]
    }
    assert rows == {"high.WAV": ("Twenty four", "ben"), "low.wav": ("Twelve", "anna"), "middle.flac": (None, None)}
    assert results["systems"][0]["metrics"]["wer"]["value"] == 0.0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "name,text\nlow.wav,Twelve\n", "m.csv: no column names the sound; columns are name, text"),
        ("m.csv", "low.wav|Twelve\nhigh.WAV|x\n", "m.csv: no column names the sound; columns are low.wav|Twelve"),
        ("m.csv", "file,text\nlow.wav,Twelve, they say\n", "m.csv:2: need 2 cells, got 3; quote texts that contain"),
        ("m.csv", 'file,text\nlow.wav,"Twelve\nhigh.WAV,x\n', "not CSV"),
        ("m.csv", "file,txt\nlow.wav,Twelve\n", "did you mean 'text'?"),
        ("m.csv", "file,text\n,Twelve\n", "m.csv:2: names no sound file"),
        ("m.csv", "file,text\n", "no rows"),
        ("m.csv", "file,text\nother.wav,Twelve\n", "names none of the 3 files"),
        ("m.csv", "file,text\nlow.wav,one\nlow.wav,two\n", "m.csv:3: low.wav was given before"),
        ("m.csv", "file,text\na/low.wav,one\nb/low.wav,two\n", "2 different rows for low.wav"),
        ("m.csv", "", "no rows"),
        ("m.jsonl", "{'file': 1}\n", "m.jsonl:1: not JSON"),
        ("m.jsonl", "[1]\n", "m.jsonl:1: expected an object"),
    ],
)
def test_wrong_metadata_says_where(folder: Path, tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(message)):
        evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges(), metadata=tmp_path / name)
    assert not (tmp_path / "r.json").exists()


def test_a_folders_own_metadata_is_found(folder: Path, tmp_path: Path) -> None:
    (folder / "metadata.csv").write_text("file,text\nmiddle.flac,eighteen\n")
    results = evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges())
    texts = {row["file"]: row["text"] for row in results["systems"][0]["files"]}
    assert texts == {"high.WAV": "twenty three", "low.wav": "Twelve.", "middle.flac": "eighteen"}


def test_a_text_that_cannot_be_read_fails_its_file_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "low.txt").write_bytes(b"caf\xe9")
    system = evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges())["systems"][0]
    errors = {row["file"]: row["error"] for row in system["files"]}
    assert (errors["high.WAV"], errors["middle.flac"], system["num_failed"]) == (None, None, 1)
    assert "low.txt is not UTF-8" in str(errors["low.wav"])


@pytest.mark.parametrize("emotion", ["", "  "])
def test_an_emotion_without_a_name_is_an_error(folder: Path, tmp_path: Path, emotion: str) -> None:
    with pytest.raises(ConfigError, match=r"no emotion is given .*such as --emotion happy"):
        evaluate_folder(folder, emotion, tmp_path / "results.json", judges=fake_judges())
    assert not (tmp_path / "results.json").exists()


def test_missing_metadata_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't read the table"):
        read_metadata(tmp_path / "none.csv")


def test_pitfall_30_a_folder_without_sounds_is_an_error_that_says_where_some_are(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no sound files.*there are some in .*happy"):
        find_sounds(folder.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no sound files"):
        find_sounds(tmp_path / "empty")
    with pytest.raises(DataError, match="no folder or file"):
        find_sounds(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def script() -> Callable[[list[str]], int]:
    main = runpy.run_path(str(SCRIPT))["main"]
    assert callable(main)
    return main


def _guide(folder: Path, output: Path) -> list[str]:
    return shlex.split(f"--eval-dir {folder} --emotion happy --output {output} --batch {OFF}")


def test_the_guides_command_works(script: Callable[[list[str]], int], folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation_results" / "happy_results.json"
    assert script(_guide(folder, output)) == 0
    results = read_results(output)
    assert results["emotion"] == "happy"
    assert results["command"].startswith("python scripts/evaluation_metrics.py --eval-dir")
    with output.with_suffix(".csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 4


def test_pitfall_26_broken_files_fail_the_run_unless_allowed(
    script: Callable[[list[str]], int], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.wav").write_bytes(b"junk")
    (folder / "phone.m4a").write_bytes(b"a format that can't be decoded")
    arguments = _guide(folder, tmp_path / "r.json")
    assert script(arguments) == 1
    shown = capsys.readouterr()
    assert "failed: broken.wav" in shown.err
    assert "5 files, 2 failed" in shown.out
    assert json.loads((tmp_path / "r.json").read_text())["systems"][0]["num_failed"] == 2
    assert script([*arguments, "--allow-failed"]) == 0
    assert script([*arguments, "--allow-failures"]) == 0


def test_resumed_or_not_the_script_writes_the_same_bytes(
    script: Callable[[list[str]], int], folder: Path, tmp_path: Path
) -> None:
    arguments = [*_guide(folder, tmp_path / "r.json"), "--versa", str(tmp_path / "scores.jsonl")]
    written = []
    for more in ([], ["--resume"], ["--resume"]):
        assert script([*arguments, *more]) == 0
        written.append([(tmp_path / name).read_bytes() for name in ("r.json", "r.csv", "scores.jsonl")])
    assert written[0] == written[1] == written[2]
    keys = [json.loads(line)["key"] for line in written[0][2].splitlines()]
    assert keys == ["high.WAV", "low.wav", "middle.flac"]


def test_one_file_goes_without_batch_and_a_folder_with_it(
    script: Callable[[list[str]], int], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = shlex.split(f"--emotion happy --output {tmp_path / 'r.json'} {OFF}")
    assert script(["--eval-dir", str(folder / "low.wav"), *common]) == 0
    assert [row["file"] for row in read_results(tmp_path / "r.json")["systems"][0]["files"]] == ["low.wav"]
    assert script(["--eval-dir", str(folder), *common]) == 2
    assert "add --batch" in capsys.readouterr().err
    assert script(["--eval-dir", str(folder / "low.wav"), "--batch", *common]) == 2
    assert script(["--eval-dir", str(tmp_path / "nowhere"), *common]) == 2


def test_help_explains_texts_judges_and_exit_status(
    script: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        script(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for word in ("--eval-dir", "--batch", "hello.txt", "--judge", "Exit status", "example:"):
        assert word in shown


def test_a_judge_must_be_kind_and_name(script: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    guide = shlex.split("--eval-dir x --emotion happy --output y.json --batch")
    assert script([*guide, "--judge", "whisper"]) == 2
    assert "--judge whisper: write it as KIND=NAME" in capsys.readouterr().err
    assert script([*guide, "--judge", "words=none", "--judge", "words=a/b"]) == 2
    assert "--judge words=none and --judge words=a/b contradict each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "the disk is full"), 2), (OSError(errno.EIO, "a bug"), None)],
)
def test_ctrl_c_and_a_full_disk_end_the_script_as_they_do_the_command(
    script: Callable[[list[str]], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int | None,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setitem(script.__globals__, "evaluate_folder", fail)
    (tmp_path / "x").mkdir()
    if status is None:
        with pytest.raises(OSError, match="a bug"):
            script(_guide(tmp_path / "x", tmp_path / "y.json"))
        return
    assert script(_guide(tmp_path / "x", tmp_path / "y.json")) == status
    assert ("the disk is full" in capsys.readouterr().err) == (status == 2)


def test_who_reads_along_may_stop(folder: Path, tmp_path: Path) -> None:
    guide = shlex.join([sys.executable, str(SCRIPT), *_guide(folder, tmp_path / "r.json")])
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{guide} | true"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr


def test_a_full_disk_at_standard_output_is_an_error_in_one_line(folder: Path, tmp_path: Path) -> None:
    guide = [sys.executable, str(SCRIPT), *_guide(folder, tmp_path / "r.json")]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(guide, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "error: [Errno 28] No space left on device"
    assert "Traceback" not in ended.stderr


def test_who_reads_along_with_the_verb_may_stop(folder: Path, tmp_path: Path) -> None:
    off = OFF.replace("quality=none", "quality=none --judge voice=none")
    verb = f"{sys.executable} -m affetto score {folder} -e happy -o {tmp_path / 'r.json'} {off}"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", f"{verb} | true"], capture_output=True, check=False)
    assert ended.returncode == 0, "all is written, and told to whom it was of use"


def test_loudness_of_the_file_on_disk_is_what_is_measured(folder: Path, tmp_path: Path) -> None:
    results = evaluate_folder(folder / "low.wav", "happy", tmp_path / "r.json", judges=fake_judges())
    assert results["systems"][0]["metrics"]["level_db"]["value"] == pytest.approx(20 * np.log10(0.1), abs=0.1)


@pytest.mark.parametrize(("content", "told"), [("file,text\nlow.wav,Caf\xe9\n", "save it as UTF-8")])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_says_what_to_do(
    folder: Path, tmp_path: Path, content: str, told: str, encoding: str
) -> None:
    (tmp_path / "m.csv").write_bytes(content.encode(encoding))
    with pytest.raises(DataError, match=told):
        evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges(), metadata=tmp_path / "m.csv")


def test_a_strangers_folder(tmp_path: Path) -> None:
    """Odd names, rates and formats are judged; what can't be is a failed row, and only what is no sound is left out."""
    folder = tmp_path / "出力 (final) [v2]"
    folder.mkdir()
    sound, slow = voice(120, 0.8), voice(120, 0.8, rate=8_000)
    soundfile.write(folder / "-häppy 1.wav", slow, 8_000)
    soundfile.write(folder / "日本語.flac", sound, RATE)
    soundfile.write(folder / "a.mp3", slow, 8_000, format="MP3", subtype="MPEG_LAYER_III")
    soundfile.write(folder / "b.OGG", sound, RATE, format="OGG", subtype="VORBIS")
    (folder / "zero.wav").write_bytes(b"")
    (folder / "torn.flac").write_bytes((folder / "日本語.flac").read_bytes()[:60])
    (folder / "to.wav").symlink_to("-häppy 1.wav")
    (folder / "dangling.wav").symlink_to("nowhere.wav")
    (folder / "._a.mp3").write_bytes(b"\0\5\x16\7")
    (folder / "folder.wav").mkdir()
    (folder / "metadata.csv").write_bytes("\ufefffile,text\r\n-häppy 1.wav,Twelve.\r\n".encode())
    system = evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges())["systems"][0]
    errors = {row["file"]: row["error"] for row in system["files"]}
    assert {name for name, error in errors.items() if error is None} == {
        "-häppy 1.wav", "日本語.flac", "a.mp3", "b.OGG", "to.wav",
    }  # fmt: skip
    assert {name: error.partition(":")[0] for name, error in errors.items() if error} == {
        "zero.wav": "empty", "torn.flac": "unreadable", "dangling.wav": "missing-file"
    }  # fmt: skip
    assert next(row["text"] for row in system["files"] if row["file"] == "-häppy 1.wav") == "Twelve."


def test_a_folder_with_one_file_has_its_numbers_and_says_why_there_is_no_interval(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "only.wav", voice(200, 0.8), RATE)
    system = evaluate_folder(tmp_path, "happy", tmp_path / "r.json", judges=fake_judges())["systems"][0]
    metric = system["metrics"]["posterior"]
    assert (metric["n"], metric["low"], metric["high"]) == (1, None, None)
    assert metric["value"] is not None
    assert metric["reason"]


@pytest.mark.parametrize("name", ["base", "real"])
def test_a_folder_called_as_what_it_could_be_held_against_is_scored_as_itself(
    folder: Path, run_output: Path, tmp_path: Path, name: str
) -> None:
    place = folder.rename(folder.with_name(name))
    results = evaluate_folder(place, "happy", tmp_path / "r.json", judges=fake_judges())
    (system,) = results["systems"]
    assert (system["name"], system["role"]) == (f"{name} (files)", "files")
    assert f"3 files, 0 failed; written to {tmp_path / 'r.json'}" in list(folder_lines(results, tmp_path / "r.json"))
    evaluate_folder(place, "happy", run_output, judges=QUIET)
    joined = read_results(run_output)["systems"][-1]
    assert (joined["name"], joined["role"]) == (f"{name} (files)", "files")


def test_brackets_in_a_folders_name_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x[v2]").mkdir()
    soundfile.write(tmp_path / "x[v2]" / "a.wav", voice(200, 0.8), RATE)
    evaluate_folder(tmp_path / "x[v2]", "happy", tmp_path / "r.json", judges=fake_judges())
    assert "Judging x[v2]" in capsys.readouterr().err


def test_a_folder_has_no_recordings_to_be_like(folder: Path, tmp_path: Path) -> None:
    """As for voices: the judge is named, and the value is null with the reason. Nothing is asked for by default."""
    choices = {"emotion": "none", "words": "none", "quality": "none"}
    named = {**choices, "embedding": str(tiny_judges.whisper_emotion(tmp_path / "e", ("hap", "sad")))}
    results = evaluate_folder(folder, "happy", tmp_path / "r.json", judges=named)
    judge = results["judges"]["embedding"]
    assert judge is not None
    assert (judge["tier"], judge["labels"], judge["ceiling"]) == ("local", ["happy", "sad"], None)
    metric = results["systems"][0]["metrics"]["emotion_similarity"]
    assert (metric["value"], metric["n"]) == (None, 0)
    assert "no real recordings" in str(metric["reason"])
    default = evaluate_folder(folder, "happy", tmp_path / "d.json", judges=choices)
    assert default["judges"]["embedding"] is None
    assert "only on request" in str(default["systems"][0]["metrics"]["emotion_similarity"]["reason"])
    assert {row["values"]["emotion_similarity"] for row in default["systems"][0]["files"]} == {None}
    with pytest.raises(JudgeError, match="can't hear 'angry'"):
        evaluate_folder(folder, "angry", tmp_path / "r.json", judges=named)


def test_an_emotion_that_the_default_judge_cannot_hear_is_told_and_all_else_scored(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off = {"words": "none", "quality": "none", "voice": "none"}
    results = evaluate_folder(folder, "proud", tmp_path / "r.json", judges=off)
    assert results["systems"][0]["metrics"]["recall"]["value"] is None
    assert "recall and posterior are left out:" in (told := capsys.readouterr().err)
    assert "can't hear 'proud'" in told
    evaluate_folder(folder, "hapy", tmp_path / "r.json", judges={**off, "emotion": "none"})
    assert "left out" not in capsys.readouterr().err, "as was asked for"


@pytest.mark.parametrize("emotion", ["hapy", "Happy", "happy sad", "surprise"])
def test_an_emotion_that_may_be_misspelt_is_an_error_before_anything_is_scored(
    folder: Path, tmp_path: Path, emotion: str
) -> None:
    off = {"words": "none", "quality": "none", "voice": "none"}
    with pytest.raises(ConfigError, match=rf"{emotion}' \(did you mean .*--judge emotion=none"):
        evaluate_folder(folder, emotion, tmp_path / "r.json", judges=off)
    assert not (tmp_path / "r.json").exists()
    results = evaluate_folder(folder, emotion, tmp_path / "r.json", judges={**off, "emotion": "none"})
    assert results["emotion"] == emotion, "as the user's own"


def test_an_emotion_of_a_run_is_the_users_own(folder: Path, run_output: Path) -> None:
    write_json(run_output, read_json(run_output) | {"emotion": "hapless"})
    quiet = {kind: name for kind, name in QUIET.items() if kind != "emotion"}
    assert evaluate_folder(folder, "hapless", run_output, judges=quiet)["emotion"] == "hapless"


def test_a_run_of_an_affetto_that_knew_fewer_kinds_of_judges_takes_a_folder_in(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run.json"
    off = {"emotion": "none", "words": "none", "quality": "none", "voice": "none"}
    run = result() | {"judges": {"emotion": None, "words": None, "quality": None}}
    write_json(output, run)
    results = evaluate_folder(folder, "happy", output, judges=off)
    assert [system["name"] for system in results["systems"]] == ["base", "happy", "real", "happy (files)"]
    with pytest.raises(DataError, match="made with other judges"):
        evaluate_folder(
            folder, "happy", output,
            judges={**off, "embedding": str(tiny_judges.whisper_emotion(tmp_path / "e", ("hap", "sad")))},
        )  # fmt: skip


QUIET = dict.fromkeys(("emotion", "words", "quality", "voice"), "none")


@pytest.fixture
def run_output(tmp_path: Path) -> Path:
    """A run's results, which no judge had a part in, and its rows."""
    output = tmp_path / "evaluation_results" / "run.json"
    write_json(output, result() | {"judges": {"emotion": None, "words": None, "quality": None}})
    output.with_suffix(".rows.jsonl").write_text('{"key": "of the run"}\n')
    return output


def _names(output: Path) -> list[str]:
    return [system["name"] for system in read_results(output)["systems"]]


def test_folders_of_one_name_are_told_apart_by_their_path(folder: Path, run_output: Path, tmp_path: Path) -> None:
    other = tmp_path / "alt" / "happy"
    shutil.copytree(folder, other)
    for added in (folder, other, folder, other / "low.wav", folder / "low.wav"):
        evaluate_folder(added, "happy", run_output, judges=QUIET)
    assert _names(run_output) == [
        "base", "happy", "real", "../alt/happy (files)", "happy (files)", "low (files)",
        "../test_samples/happy/low.wav (files)",
    ]  # fmt: skip
    evaluate_folder(other, "happy", run_output, judges=QUIET)
    assert sorted(_names(run_output)[3:-1]) == [
        "../test_samples/happy/low.wav (files)", "happy (files)", "low (files)"
    ]  # fmt: skip
    assert _names(run_output)[-1] == "../alt/happy (files)", "in place of itself alone"


def test_a_folder_that_joins_a_run_leaves_the_runs_rows(folder: Path, run_output: Path) -> None:
    rows = run_output.with_suffix(".rows.jsonl")
    evaluate_folder(folder, "happy", run_output, judges=QUIET)
    assert rows.read_text() == '{"key": "of the run"}\n'
    (own,) = set(run_output.parent.glob("*.rows.jsonl")) - {rows}
    assert len(own.read_text().splitlines()) == 3
    before = own.read_bytes()
    evaluate_folder(folder, "happy", run_output, judges=QUIET, resume=True)
    assert own.read_bytes() == before


def test_what_joined_a_run_meanwhile_stays(
    folder: Path, run_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another evaluation ends while this one judges; and of two that write at once one waits."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    judge, write = evaluate.folder._scored, evaluate.folder.write_results

    def judge_while_another_joins(*arguments: Any) -> Any:
        monkeypatch.setattr(evaluate.folder, "_scored", judge)
        evaluate_folder(other, "happy", run_output, judges=QUIET)
        return judge(*arguments)

    def write_alone(path: Path, results: Any) -> None:
        with one_at_a_time(lock_of(path), do_wait=False) as is_free:
            assert not is_free
        write(path, results)

    monkeypatch.setattr(evaluate.folder, "_scored", judge_while_another_joins)
    monkeypatch.setattr(evaluate.folder, "write_results", write_alone)
    evaluate_folder(folder, "happy", run_output, judges=QUIET)
    assert _names(run_output)[3:] == ["other (files)", "happy (files)"]


@pytest.fixture
def beside(tmp_path: Path) -> Beside:
    """A base that says the same lower, recordings of the emotion, and neutral speech of other words."""
    said = {"base": {"low": 100, "high": 200, "middle": 150}, "real": {"a": 260, "b": 280}, "neutral": {"n": 110}}
    said["neutral"]["m"] = 130
    for name, pitches in said.items():
        (tmp_path / name).mkdir()
        for stem, f0 in pitches.items():
            soundfile.write(tmp_path / name / f"{stem}.wav", voice(f0), RATE)
    (tmp_path / "base" / "low.txt").write_text("Twelve.")
    (tmp_path / "base" / "high.txt").write_text("twenty three")
    return Beside(tmp_path / "base", tmp_path / "real", tmp_path / "neutral")


def test_a_folder_is_held_against_a_base_recordings_and_neutral_speech(
    folder: Path, beside: Beside, tmp_path: Path
) -> None:
    results = evaluate_folder(folder, "happy", tmp_path / "out" / "r.json", judges=fake_judges(), beside=beside)
    assert [(system["name"], system["role"], system["num_files"]) for system in results["systems"]] == [
        ("happy", "files", 3), ("base", "base", 3), ("real", "real", 2), ("neutral", "files", 2)
    ]  # fmt: skip
    assert [system["folder"] for system in results["systems"]] == [
        "../test_samples/happy", "../base", "../real", "../neutral"
    ]  # fmt: skip
    emotion = results["judges"]["emotion"]
    assert emotion is not None
    assert emotion["ceiling"] == results["systems"][2]["metrics"]["recall"], "what the judge hears in recordings"
    paired, neutral = results["comparisons"]
    assert (paired["system"], paired["against"], paired["prompt"]) == ("happy", "base", None)
    pitch = paired["metrics"]["f0_median_st"]
    # Two are paired by their texts, the third by its name; all are 12 log2(1.2) semitones higher.
    assert pitch["n"] == 3
    assert pitch["difference"] == pytest.approx(12 * np.log2(1.2), abs=0.1)
    assert pitch["expected"] == "higher"
    assert neutral["against"].startswith("neutral")
    mean = np.mean([12 * np.log2(f0) for f0 in (120, 240, 180)]) - np.mean([12 * np.log2(f0) for f0 in (110, 130)])
    assert neutral["metrics"]["f0_median_st"]["difference"] == pytest.approx(mean, abs=0.1)
    again = evaluate_folder(folder, "happy", tmp_path / "out" / "r.json", judges=fake_judges(), beside=beside)
    assert again == results
    assert read_results(tmp_path / "out" / "r.json") == results


def test_voices_are_held_against_the_base_and_the_recordings(folder: Path, beside: Beside, tmp_path: Path) -> None:
    alone = evaluate_folder(folder, "happy", tmp_path / "alone.json", judges=fake_judges())
    assert {row["values"]["speaker_similarity"] for row in alone["systems"][0]["files"]} == {None}
    found = evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges(), beside=beside)
    for row in found["systems"][0]["files"]:
        for name in ("speaker_similarity", "similarity_to_reference", "voice_consistency"):
            assert isinstance(row["values"][name], float), name
    assert found["systems"][0]["metrics"]["similarity_same_prompt"]["n"] == 2, "of files whose text is known"


def test_takes_of_one_text_are_paired_in_the_order_of_their_names(
    folder: Path, beside: Beside, tmp_path: Path
) -> None:  # fmt: skip
    assert beside.base is not None
    for place, f0 in ((folder, 260), (beside.base, 130)):
        soundfile.write(place / "twice.wav", voice(f0), RATE)
        (place / "twice.txt").write_text("Twelve.")
    results = evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges(), beside=beside)
    pitch = results["comparisons"][0]["metrics"]["f0_median_st"]
    # Three are 12 log2(1.2) semitones higher than the base, the second take an octave.
    assert (pitch["n"], pitch["difference"]) == (4, pytest.approx(3 * np.log2(1.2) * 3 + 3, abs=0.1))
    (beside.base / "twice.wav").unlink()
    fewer = evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges(), beside=beside)
    assert fewer["comparisons"][0]["metrics"]["f0_median_st"]["n"] == 3, "a take that the base lacks has no pair"


def test_a_run_has_a_base_of_its_own(folder: Path, beside: Beside, tmp_path: Path) -> None:
    off = dict.fromkeys(("emotion", "words", "quality", "voice"), "none")
    write_json(tmp_path / "run.json", result() | {"judges": dict.fromkeys(("emotion", "words", "quality"))})
    with pytest.raises(DataError, match=r"holds the results of a run, which has a base of its own"):
        evaluate_folder(folder, "happy", tmp_path / "run.json", judges=off, beside=Beside(neutral=beside.neutral))


def test_results_that_cant_be_read_are_not_written_over(folder: Path, tmp_path: Path) -> None:
    """A newer affetto's, say, or those that somebody edited."""
    off = dict.fromkeys(("emotion", "words", "quality", "voice"), "none")
    path = tmp_path / "run.json"
    path.write_text('{"schema": "affetto.results/99", "systems": []}')
    with pytest.raises(DataError, match=r"would be lost: move it away, or name another --output"):
        evaluate_folder(folder, "happy", path, judges=off)
    assert "affetto.results/99" in path.read_text()
    path.write_text("")
    evaluate_folder(folder, "happy", path, judges=off)
    assert path.stat().st_size


def test_the_verb_writes_what_the_script_does_and_ends_with_status_4(
    folder: Path, beside: Beside, tmp_path: Path
) -> None:
    (folder / "torn.wav").write_bytes(b"RIFF")
    off = ["--judge", "emotion=none", "--judge", "words=none", "--judge", "quality=none", "--judge", "voice=none"]
    main = runpy.run_path(str(SCRIPT))["main"]
    script = ["--eval-dir", str(folder), "--emotion", "happy", "--batch", "--base-dir", str(beside.base), *off]
    assert main([*script, "--output", str(tmp_path / "script.json")]) == 1
    verb = ["score", str(folder), "--emotion", "happy", "--base", str(beside.base), *off]
    called = CliRunner().invoke(app, [*verb, "--output", str(tmp_path / "verb.json")])
    assert called.exit_code == 4, called.output
    assert "failed: torn.wav" in called.output
    assert "less base:" in called.output
    one, other = (read_results(tmp_path / f"{name}.json") for name in ("script", "verb"))
    assert {**one, "command": ""} == {**other, "command": ""}
    again = CliRunner().invoke(app, [*verb, "--output", str(tmp_path / "verb.json"), "--resume", "--allow-failures"])
    assert again.exit_code == 0, again.output
    assert read_results(tmp_path / "verb.json")["systems"] == other["systems"]


def test_the_script_tells_differences_and_that_the_miniature_knows_nobody(
    folder: Path, beside: Beside, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    options = f"--eval-dir {folder} --emotion happy --output {tmp_path / 'r.json'} --batch"
    options += " --judge words=none --judge quality=none"
    status = main(shlex.split(f"{options} --base-dir {beside.base} --neutral-dir {beside.neutral}"))
    told = capsys.readouterr().out
    assert status == 0
    assert "less base:" in told
    assert "less neutral speech of the same speakers:" in told
    assert re.search(r"f0_median_st\s+\+3\.1\d\d .*higher was expected: too few to say", told)
    assert "note: emotion: the miniature's own judges are made for its synthetic voices" in told
    assert main(shlex.split(f"{options} --judge emotion=none")) == 0
    assert "note:" not in capsys.readouterr().out


def test_names_that_are_no_utf_8_are_scored_and_written_escaped(tmp_path: Path) -> None:
    """Of old archives: writing the first such name down ended the whole folder's evaluation."""
    folder = tmp_path / os.fsdecode(b"f\xfcr")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system knows UTF-8 names alone")
    soundfile.write(tmp_path / "good.wav", voice(120), RATE)
    sound = (tmp_path / "good.wav").read_bytes()
    for name, content in (
        ("caf\udce9.wav", sound), ("bad\udce9.wav", sound), ("good.wav", sound), ("torn\udce9.wav", b"junk"),
        ("caf\udce9.txt", b"Twelve."), ("bad\udce9.txt", b"caf\xe9"),
    ):  # fmt: skip
        (folder / name).write_bytes(content)
    results = evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges())
    assert read_results(tmp_path / "r.json") == results
    system = results["systems"][0]
    assert (system["name"], system["folder"], system["num_failed"]) == (r"f\xfcr", r"f\xfcr", 2)
    rows = {row["file"]: row for row in system["files"]}
    assert set(rows) == {r"caf\xe9.wav", r"bad\xe9.wav", r"torn\xe9.wav", "good.wav"}
    assert (rows[r"caf\xe9.wav"]["text"], rows[r"caf\xe9.wav"]["values"]["heard"]) == ("Twelve.", "twelve")
    assert r"bad\xe9.txt is not UTF-8" in str(rows[r"bad\xe9.wav"]["error"])
    assert str(rows[r"torn\xe9.wav"]["error"]).startswith("unreadable")


def test_rows_without_a_file_and_files_without_a_row_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.csv").write_text("file,text\nhappy/low.wav,Twelve\ngone.wav,x\nlost,y\n")
    evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges(), metadata=tmp_path / "m.csv")
    told = capsys.readouterr().err
    assert f"m.csv names 2 files that {folder} lacks: gone.wav, lost" in told
    assert f"m.csv has no row for 2 files of {folder}: high.WAV, middle.flac" in told
    (tmp_path / "m.csv").write_text("file,text\nlow.wav,Twelve\nhigh,x\nmiddle.flac,\n")
    evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges(), metadata=tmp_path / "m.csv")
    assert "m.csv" not in capsys.readouterr().err
