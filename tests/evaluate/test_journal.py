"""A run that is stopped and goes on writes what a run that was never stopped writes."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

import affetto
from affetto import provenance
from affetto.errors import DataError
from affetto.evaluate import journal
from affetto.evaluate.folder import evaluate_folder
from affetto.evaluate.results import FileRow
from affetto.evaluate.scoring import Item
from affetto.judges.choice import Judges
from evaluate_fakes import RATE, PitchJudge, PitchWords, fake_judges, voice


class Counting(PitchJudge):
    """Counts what it hears, gives up where it is told to, and says something else in other company."""

    def __init__(self, stop_after: int = 10_000) -> None:
        self.heard, self.stop_after = 0, stop_after

    def posteriors(self, sounds: list[NDArray[np.float32]]) -> NDArray[np.float64]:
        if self.heard >= self.stop_after:
            raise KeyboardInterrupt
        self.heard += len(sounds)
        happy = np.array([(sound.mean() * 1e6 + len(sounds) + place) % 1 for place, sound in enumerate(sounds)])
        return np.stack([1 - happy, happy], axis=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "sounds"
    place.mkdir()
    for index in range(60):
        soundfile.write(place / f"{index:02d}.wav", voice(100 + 3 * index, 0.15 + 0.002 * index), RATE)
    (place / "60.wav").write_bytes(b"broken")
    (place / "07.txt").write_text("eleven")
    return place


def score(folder: Path, output: Path, judge: PitchJudge, *, resume: bool) -> bytes:
    evaluate_folder(folder, "happy", output, judges=Judges(judge), resume=resume)
    return output.read_bytes() + output.with_suffix(".csv").read_bytes()


def test_a_run_that_was_stopped_loses_at_most_a_batch_and_ends_the_same(folder: Path, tmp_path: Path) -> None:
    whole = Counting()
    expected = score(folder, tmp_path / "whole.json", whole, resume=False)
    assert whole.heard == 60
    stopped = Counting(stop_after=25)
    with pytest.raises(KeyboardInterrupt):
        score(folder, tmp_path / "r.json", stopped, resume=False)
    assert 25 <= stopped.heard < 60
    assert not (tmp_path / "r.json").exists()
    rows = journal.journal_path(tmp_path / "r.json")
    with rows.open("a") as file:
        file.write('{"key": "torn by the k')
    rest = Counting()
    assert score(folder, tmp_path / "r.json", rest, resume=True) == expected
    assert stopped.heard + rest.heard == 60, "what was heard in whole batches isn't heard again"
    again = Counting()
    assert score(folder, tmp_path / "r.json", again, resume=True) == expected
    assert again.heard == 0
    anew = Counting()
    assert score(folder, tmp_path / "r.json", anew, resume=False) == expected
    assert anew.heard == 60


def test_one_new_file_is_heard_with_its_batch_alone(folder: Path, tmp_path: Path) -> None:
    score(folder, tmp_path / "r.json", Counting(), resume=False)
    soundfile.write(folder / "new.wav", voice(333, 0.2), RATE)
    judge = Counting()
    resumed = score(folder, tmp_path / "r.json", judge, resume=True)
    assert 1 <= judge.heard < 60
    evaluate_folder(folder, "happy", tmp_path / "r.json", judges=Judges(Counting()))
    assert score(folder, tmp_path / "r.json", Counting(), resume=False) == resumed


def heard_again(folder: Path, output: Path, judges: Judges, emotion: str = "happy") -> int:
    judge = judges.emotion
    assert isinstance(judge, Counting)
    evaluate_folder(folder, emotion, output, judges=judges, resume=True)
    return judge.heard


def test_whatever_a_row_depends_on_makes_it_anew(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "r.json"
    score(folder, output, Counting(), resume=False)
    assert heard_again(folder, output, Judges(Counting(), PitchWords())) == 60, "another judge of words"
    score(folder, output, Counting(), resume=False)
    retrained = Counting()
    retrained.id = "fake/pitch@other-weights"
    assert heard_again(folder, output, Judges(retrained)) == 60
    score(folder, output, Counting(), resume=False)
    assert heard_again(folder, output, Judges(Counting()), "sad") == 60
    score(folder, output, Counting(), resume=False)
    (folder / "07.txt").write_text("twelve")
    assert 1 <= heard_again(folder, output, Judges(Counting())) < 60
    soundfile.write(folder / "07.wav", voice(444, 0.2), RATE)
    assert 1 <= heard_again(folder, output, Judges(Counting())) < 60
    monkeypatch.setattr(journal, "versions", lambda: {"torch": "another"})
    assert heard_again(folder, output, Judges(Counting())) == 60


def test_new_names_change_nothing_but_names_and_order(folder: Path, tmp_path: Path) -> None:
    """Permuting files: judges whose answers depend on the company included."""
    first = evaluate_folder(folder, "happy", tmp_path / "a.json", judges=Judges(Counting()))["systems"][0]
    (tmp_path / "moved").mkdir()
    for index, path in enumerate(sorted(folder.iterdir(), key=lambda path: path.name[::-1])):
        (tmp_path / "moved" / f"{index:03d}-{path.name}").write_bytes(path.read_bytes())
    text = next((tmp_path / "moved").glob("*-07.txt"))
    text.rename(next((tmp_path / "moved").glob("*-07.wav")).with_suffix(".txt"))
    second = evaluate_folder(tmp_path / "moved", "happy", tmp_path / "b.json", judges=Judges(Counting()))["systems"][0]
    by_name = {row["file"]: row for row in first["files"]}
    for row in second["files"]:
        assert {**row, "file": ""} == {**by_name[row["file"].split("-", 1)[1]], "file": ""}
    assert [row["file"][4:] for row in second["files"]] != [row["file"] for row in first["files"]]
    assert second["confusion"] == first["confusion"]
    for name, metric in first["metrics"].items():
        values = [metric["value"], second["metrics"][name]["value"]]
        assert values == [None, None] or values[0] == pytest.approx(values[1], rel=1e-12)


KEY = '{"key": "a"}\n'


@pytest.mark.parametrize(
    "text", ["", KEY, f"{KEY}\n[]\n", '{"key": "a", "row": {"file": "x"}}\n', '{"key": "torn by', f"{KEY}\0\xff"]
)
def test_a_journal_that_holds_nothing_of_use_is_no_hindrance(folder: Path, tmp_path: Path, text: str) -> None:
    journal.journal_path(tmp_path / "r.json").write_text(text)
    judge = Counting()
    score(folder, tmp_path / "r.json", judge, resume=True)
    assert judge.heard == 60


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_of_somebodys_is_no_journal(folder: Path, tmp_path: Path, resume: bool) -> None:
    theirs = journal.journal_path(tmp_path / "r.json")
    theirs.write_text("my notes")
    judge = Counting()
    with pytest.raises(DataError, match=r"r\.rows\.jsonl would be overwritten"):
        score(folder, tmp_path / "r.json", judge, resume=resume)
    assert (theirs.read_text(), judge.heard) == ("my notes", 0)


def test_rows_of_other_libraries_or_changed_code_are_made_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "r.json"
    score(folder, output, Counting(), resume=False)
    assert heard_again(folder, output, Judges(Counting())) == 0
    with monkeypatch.context() as patched:
        patched.setattr(journal, "source_hash", lambda: "of another metric")
        assert heard_again(folder, output, Judges(Counting())) == 60
    score(folder, output, Counting(), resume=False)
    real = provenance.version
    monkeypatch.setattr(provenance, "version", lambda name: "9" if name == "pyworld-prebuilt" else real(name))
    assert heard_again(folder, output, Judges(Counting())) == 60


def test_the_code_that_makes_rows_is_hashed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(affetto.__file__).parent
    for name in ("metrics", "judges", "evaluate", "audio", "report"):
        shutil.copytree(package / name, tmp_path / name, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    monkeypatch.setattr(journal, "__file__", str(tmp_path / "evaluate" / "journal.py"))

    def hashed() -> str:
        return journal.source_hash.__wrapped__()

    assert hashed() == journal.source_hash(), "the same code, wherever it lies"
    seen = {hashed()}
    for name in ("metrics/prosody.py", "judges/dnsmos.py", "evaluate/scoring.py", "audio/sound.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "# changed\n")
        seen.add(hashed())
    assert len(seen) == 5
    (tmp_path / "report" / "text.py").write_text("# changed\n")
    assert hashed() in seen


def test_every_library_that_scores_is_named() -> None:
    found = provenance.versions()
    assert {"pyworld", "soxr", "jiwer", "scipy", "speechmos", "onnxruntime", "soundfile"} <= set(found)
    assert found["pyworld"] == version("pyworld-prebuilt")


def test_the_journal_is_strict_json_lines(folder: Path, tmp_path: Path) -> None:
    (folder / "07.txt").write_text("a line\u2028broken")
    evaluate_folder(folder, "happy", tmp_path / "r.json", judges=fake_judges())
    lines = journal.journal_path(tmp_path / "r.json").read_text(encoding="utf-8").split("\n")[:-1]
    rows = [json.loads(line, parse_constant=lambda name: pytest.fail(name))["row"] for line in lines]
    assert len(rows) == 61
    assert {row["file"] for row in rows} >= {"00.wav", "60.wav"}


def test_rows_of_lasting_sounds_are_taken_up_by_other_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    items = [Item(f"{index}", voice(100 + 3 * index, 0.2 + 0.01 * index), RATE) for index in range(20)]

    def score_into(name: str, judge: PitchJudge, *, lasting: bool, emotion: str = "happy") -> list[FileRow]:
        one = journal.Journal(tmp_path / name, Judges(judge), emotion, resume=False)
        return one.score(items, lasting=lasting)

    first = Counting()
    rows = score_into("a.rows.jsonl", first, lasting=True)
    assert first.heard == 20
    again = Counting()
    renamed = [Item(f"other {item.file}", item.sound, RATE) for item in items]
    found = journal.Journal(tmp_path / "b.rows.jsonl", Judges(again), "happy", resume=False).score(
        renamed, lasting=True
    )
    assert again.heard == 0
    assert [row["values"] for row in found] == [row["values"] for row in rows]
    assert [row["file"] for row in found] == [item.file for item in renamed]
    for lasting, emotion in ((False, "happy"), (True, "sad")):
        other = Counting()
        score_into("c.rows.jsonl", other, lasting=lasting, emotion=emotion)
        assert other.heard == 20, "what is judged anew each time, or for another emotion"


def test_lasting_rows_are_not_written_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    journal.Journal(tmp_path / "a.rows.jsonl", fake_judges(), "happy", resume=False).score(
        [Item("1", voice(150, 0.3), RATE)]
    )
    assert not (tmp_path / "cache").exists()
