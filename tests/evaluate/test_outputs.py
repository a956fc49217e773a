"""Nothing of the user's is written over: not by the files that go beside the results either."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from affetto import pipeline
from affetto.errors import DataError
from affetto.evaluate.journal import check_outputs
from affetto.evaluate.results import read_results, write_results
from affetto.files import write_json
from evaluate_fakes import RATE, voice
from result_samples import result

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluation_metrics.py"
OFF = [part for kind in ("emotion", "words", "quality", "voice") for part in ("--judge", f"{kind}=none")]
TEXTS = "file,text\nlow.wav,Twelve\n"
Called = Callable[..., tuple[int, str, str]]


@pytest.fixture
def wavs(tmp_path: Path) -> Path:
    """A folder with a sound, its text and a table; another table beside the folder."""
    place = tmp_path / "wavs"
    place.mkdir()
    soundfile.write(place / "low.wav", voice(120, 0.3), RATE)
    (place / "low.txt").write_text("twelve")
    (place / "metadata.csv").write_text(TEXTS)
    (tmp_path / "texts.csv").write_text(TEXTS)
    (tmp_path / "listed.jsonl").write_text('{"key": "k", "file": "low.wav", "text": "Twelve"}\n')
    return place


LOSING: dict[str, list[str]] = {
    "the given table": ["--metadata", "texts.csv", "-o", "texts.json"],
    "the given table, by another path": ["--metadata", "wavs/../texts.csv", "-o", "texts.json"],
    "the folder's own table": ["-o", "wavs/metadata.json"],
    "the table of the base": ["--base", "base", "-o", "base/metadata.json"],
    "somebody's table": ["-o", "texts.json"],
    "somebody's JSON": ["-o", "mine.json"],
    "the given table, by VERSA's lines": ["-o", "r.json", "--metadata", "listed.jsonl", "--versa", "listed.jsonl"],
    "a text, by VERSA's lines": ["-o", "r.json", "--versa", "wavs/low.txt"],
    "a sound, by VERSA's lines": ["-o", "r.json", "--versa", "wavs/low.wav"],
    "the results, by VERSA's lines": ["-o", "r.json", "--versa", "r.json"],
    "VERSA's lines without a name": ["-o", "r.json", "--versa", ""],
    "the journal, by VERSA's lines": ["-o", "r.json", "--versa", "r.rows.jsonl"],
}


@pytest.mark.parametrize("case", LOSING)
def test_nothing_is_lost_or_scored(affetto: Called, wavs: Path, tmp_path: Path, case: str) -> None:
    shutil.copytree(wavs, tmp_path / "base")
    (tmp_path / "mine.json").write_text('{"schema": "mine"}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status, out, err = affetto("score", wavs, "-e", "happy", *LOSING[case], *OFF)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, "nothing was judged"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_results_need_a_name(affetto: Called, wavs: Path) -> None:
    status, _, err = affetto("score", wavs, "-e", "happy", "-o", "", *OFF)
    assert (status, err) == (1, "error: no name is given for the results: name a file such as results.json\n")


def test_the_script_refuses_as_well(wavs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    arguments = ["--eval-dir", str(wavs), "--batch", "--emotion", "happy", "--metadata", str(tmp_path / "texts.csv")]
    assert main([*arguments, "--output", str(tmp_path / "texts.json"), *OFF]) == 2
    assert "texts.csv is read for texts and speakers" in capsys.readouterr().err
    assert (tmp_path / "texts.csv").read_text() == TEXTS


def test_an_evaluation_refuses_before_it_speaks(
    affetto: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "prepare_clips", lambda *_, **__: pytest.fail("too late"))
    theirs = tmp_path / "evaluation_results" / "happy_results.csv"
    theirs.parent.mkdir()
    theirs.write_text("my;own;columns\n")
    (tmp_path / "emotion_models" / "happy" / "best").mkdir(parents=True)
    status, _, err = affetto("evaluate", "-e", "happy")
    assert status == 1
    assert "happy_results.csv would be overwritten" in err


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(TEXTS)
    with pytest.raises(DataError, match=r"r\.csv would be overwritten, and affetto didn't write"):
        write_results(tmp_path / "r.json", result())
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_what_affetto_wrote_and_what_is_empty_is_written_over(affetto: Called, wavs: Path, tmp_path: Path) -> None:
    (tmp_path / "r.csv").touch()
    for _ in range(2):
        called = ["score", wavs, "-e", "happy", "-o", "r.json", "--versa", "r.jsonl", *OFF]
        assert affetto(*called)[0] == 0
    assert read_results(tmp_path / "r.json")["systems"][0]["num_files"] == 1
    write_json(tmp_path / "compact.json", result())
    check_outputs(tmp_path / "compact.json", folders=[wavs], metadata=tmp_path / "texts.csv")
