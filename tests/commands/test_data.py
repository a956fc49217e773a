"""`affetto data` from the command line: statuses, JSON, judges, data sets, and texts that a machine writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from affetto.audio.manifest import read_manifest
from affetto.audio.sound import write_sound
from affetto.cli import app
from affetto.errors import ConfigError, DataError, counted
from affetto.miniature import data
from evaluate_fakes import voice

RATE = 16_000


def called(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "250"})
    return result.exit_code, result.stdout, result.output


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Twelve clips of noise in two emotions."""
    rows = []
    for number in range(12):
        noise = 0.1 * np.random.default_rng(number).standard_normal(RATE)
        (tmp_path / "set").mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"set/{number}.wav", noise, RATE)
        emotion = "happy" if number % 2 else "sad"
        rows.append({"id": str(number), "audio": f"{number}.wav", "text": f"Sentence {number}", "emotion": emotion})
    path = tmp_path / "set/manifest.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def spoil(manifest: Path, number: int, **changes: Any) -> None:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[number] |= changes
    manifest.write_text("\n".join(json.dumps(row) for row in rows))


def test_check_says_how_many_texts_a_machine_wrote(clips: Path) -> None:
    assert "none of 12 texts was written by machine" in called("check", clips)[1]
    for number, model in ((1, "openai/whisper@1"), (4, "openai/whisper@1"), (5, "local/other@2")):
        spoil(clips, number, transcribed_by=model)
    assert "3 texts were written by machine: 1 by local/other@2, 2 by openai/whisper@1" in called("check", clips)[1]
    document = json.loads(called("check", clips, "--json")[1])
    assert document["machine_texts"] == {"local/other@2": 1, "openai/whisper@1": 2}
    assert sum(row["machine_texts"] for row in document["statistics"]) == 3


def test_check_as_json_tells_all_and_decides_the_status(clips: Path) -> None:
    status, said, _ = called("check", clips, "--json")
    document = json.loads(said)
    assert status == 0
    assert (document["schema"], document["good"]) == ("affetto.data-check/1", 12)
    assert document["problems"] == document["leaks"] == []
    assert {kind: judge["reason"] for kind, judge in document["judges"].items()} == {
        kind: f"not checked: no --judge {kind}=ID_OR_FOLDER" for kind in ("words", "emotion")
    }
    (clips.parent / "3.wav").write_bytes(b"torn")
    status, said, _ = called("check", clips, "--json")
    assert status == 1
    assert [(row["where"], row["kind"]) for row in json.loads(said)["problems"]] == [("3", "unreadable")]


def test_leaks_of_given_splits_are_a_status_of_1(clips: Path) -> None:
    spoil(clips, 0, split="train")
    spoil(clips, 1, split="test", text="SENTENCE 0!")
    status, said, _ = called("check", clips)
    assert status == 1
    assert "12 clips are good, 0 are not, 1 leak, " in said
    assert "texts not checked by ear" in said


def test_names_that_are_no_utf_8_go_through_a_manifest(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    try:
        (tmp_path / "mine" / "caf\udce9.wav").write_bytes((clips.parent / "3.wav").read_bytes())
    except OSError:
        pytest.skip("this file system knows UTF-8 names alone")
    (tmp_path / "mine" / "caf\udce9.txt").write_text("hello there")
    out = tmp_path / "m.jsonl"
    assert called("import", tmp_path / "mine", "--out", out)[0] == 0
    ((clip,), problems) = read_manifest(out)
    assert (clip.audio.name, clip.audio.is_file(), problems) == ("caf\udce9.wav", True, [])
    assert called("check", out)[0] == 0


def test_one_is_singular() -> None:
    assert [counted(number, "text") for number in (0, 1, 2)] == ["0 texts", "1 text", "2 texts"]
    assert [counted(number, "text was", "texts were") for number in (1, 2)] == ["1 text was", "2 texts were"]


def test_judges_that_cannot_judge_this_say_so(clips: Path) -> None:
    status, said, _ = called("check", clips, "--judge", "words=miniature", "--judge", "emotion=miniature", "--json")
    assert status == 0
    judges = json.loads(said)["judges"]
    assert "doesn't understand these voices" in judges["words"]["reason"]
    assert "it isn't believed about" in judges["emotion"]["reason"]
    assert judges["words"]["num_clips"] == judges["emotion"]["num_clips"] == 12
    assert CliRunner().invoke(app, ["data", "check", str(clips), "--judge", "quality=dnsmos"]).exit_code == 1


def test_transcribe_marks_what_it_wrote_and_may_write_in_place(clips: Path) -> None:
    spoil(clips, 2, text=None)
    status, said, _ = called("transcribe", clips, "--words", "miniature", "--out", clips, "--skip-bad-clips")
    assert status == 0
    assert "11 were there" in said
    found, problems = read_manifest(clips)
    assert problems == []
    assert [clip.text for clip in found if clip.transcribed_by is None and clip.id != "2"] == [
        f"Sentence {number}" for number in range(12) if number != 2
    ]
    assert not list(clips.parent.glob("*.tmp"))
    clips.write_text(clips.read_text() + "nonsense\n")
    before = clips.read_text()
    result = CliRunner().invoke(app, ["data", "transcribe", str(clips), "--words", "miniature", "--out", str(clips)])
    assert "would be lost" in str(result.exception)
    assert clips.read_text() == before


@pytest.mark.parametrize("verb", [("stats",), ("check",), ("import", "--out", "m.jsonl")])
def test_the_miniatures_clips_go_by_their_name(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    asked = []

    def sources(emotions: Sequence[str]) -> list[Path]:
        asked.append(tuple(emotions))
        return [clips]

    monkeypatch.setattr(data, "miniature_sources", sources)
    monkeypatch.chdir(tmp_path)
    status, _, said = called(*verb, "miniature")
    assert (status, asked) == (0, [data.ACTED])
    assert "12 clips" in said or "happy" in said
    (tmp_path / "miniature").mkdir()
    status, _, _ = called(*verb, "miniature")
    assert (status, len(asked)) == (1, 1), "a folder of that name goes before"


def test_doubts_alone_are_no_failure_of_transcribe(tmp_path: Path) -> None:
    for name in ("happy/a", "xyz/b"):
        path = tmp_path / "mine" / f"{name}.wav"
        write_sound(path, voice(150, 0.8), 24_000)
        path.with_suffix(".txt").write_text(f"the words {name}")
    out = tmp_path / "m.jsonl"
    status, _, err = called("transcribe", tmp_path / "mine", "--words", "miniature", "--out", out)
    assert "mislabelled" in err
    assert status == 0
    (tmp_path / "mine" / "happy" / "b.wav").write_bytes(b"torn")
    assert called("transcribe", tmp_path / "mine", "--words", "miniature", "--out", out)[0] == 1
    assert "Doubts don't change the status" in " ".join(called("transcribe", "--help")[1].split())


def test_import_keeps_sounds_of_a_data_set_beside_the_manifest(clips: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet can't be written without pyarrow")
    from pyarrow import parquet

    rows = {"audio": [{"bytes": (clips.parent / f"{n}.wav").read_bytes(), "path": None} for n in range(3)]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "train.parquet")
    out = tmp_path / "out/mine.jsonl"
    status, said, _ = called("import", f"hf:{tmp_path / 'train.parquet'}", "--out", out)
    assert (status, "3 clips" in said) == (0, True)
    found, _ = read_manifest(out)
    assert {clip.audio.parent for clip in found} == {tmp_path / "out/mine_sounds"}


def test_import_fails_for_what_it_leaves_out_and_not_for_labels_that_it_puts_right(clips: Path, tmp_path: Path) -> None:
    lines = clips.read_text().splitlines()
    for name in ("happy", "hapyy"):
        folder = tmp_path / "corpus" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.wav").write_bytes((clips.parent / "1.wav").read_bytes())
        (folder / f"{name}.txt").write_text("one")
    status, said, _ = called("import", tmp_path / "corpus", "--out", tmp_path / "kept.jsonl")
    assert (status, "2 clips, 0 left out, 1 kept despite the table" in said) == (0, True), said
    clips.write_text("\n".join([*lines, "nonsense"]) + "\n")
    status, said, _ = called("import", clips, "--out", tmp_path / "some.jsonl")
    assert (status, f"{len(lines)} clips, 1 left out" in said) == (1, True), said


def test_tables_go_to_standard_output(clips: Path) -> None:
    (clips.parent / "3.wav").write_bytes(b"torn")
    for verb, told in (("stats", ("clips by emotion", "happy")), ("check", ("unreadable", "clips by emotion"))):
        shown = CliRunner().invoke(app, ["data", verb, str(clips)], env={"COLUMNS": "250"})
        assert shown.stderr == ""
        assert all(word in shown.stdout for word in told)


def test_stats_tell_what_they_leave_out_and_fail_where_nothing_is_left(clips: Path, tmp_path: Path) -> None:
    rows = clips.read_text()
    twice = json.dumps({"id": "0", "audio": "0.wav"})
    clips.write_text(f"{rows}\nnonsense\n[]\n{twice}\n")
    shown = CliRunner().invoke(app, ["data", "stats", str(clips), "--json"])
    assert shown.exit_code == 0
    assert sum(row["clips"] for row in json.loads(shown.stdout)) == 12
    told = "rows or files are left out (2 bad-row, 1 duplicate-id): affetto data check says what to mend"
    assert shown.stderr == f"3 {told}\n"
    clips.write_text("nonsense\n")
    page = tmp_path / "page.html"
    shown = CliRunner().invoke(app, ["data", "stats", str(clips), "--page", str(page)])
    assert isinstance(shown.exception, DataError)
    assert f"there is no clip to count in {clips}: 1 row or file is left out (1 bad-row)" in str(shown.exception)
    assert not page.exists()


def test_check_knows_the_labels_that_a_run_knows(clips: Path, tmp_path: Path) -> None:
    for number, label in ((1, "hapy"), (2, "proud_of"), (3, "amused")):
        spoil(clips, number, emotion=label)
    table = tmp_path / "set" / "table.csv"
    table.write_text("audio,text,emotion\n1.wav,Sentence 1,hapy\n2.wav,Sentence 2,proud_of\n3.wav,Sentence 3,amused\n")
    own = tmp_path / "own.yaml"
    own.write_text("emotions: [happy, sad, proud_of]\n")
    for source in (clips, table):
        for options, num_unknown in (((), 2), (("--config", own), 1)):
            status, said, _ = called("check", source, "--json", *options)
            kinds = [row["kind"] for row in json.loads(said)["problems"]]
            assert (status, kinds) == (1, ["unknown-emotion"] * num_unknown)
        shown = [row["emotion"] for row in json.loads(said)["statistics"]]
        assert {"amused", "proud_of"} <= {*shown}
    own.write_text("split_by_speaker: true\n")
    assert json.loads(called("check", clips, "--json", "--config", own)[1])["by_speaker"] is True


def test_stats_write_a_page(clips: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    status, said, _ = called("stats", clips, "--page", page, "--measured", "1")
    assert (status, said.splitlines()[-1]) == (0, str(page))
    assert "12 clips, 0.2 minutes, 1 speaker, 2 emotions" in page.read_text()
    result = CliRunner().invoke(app, ["data", "stats", str(clips), "--page", str(tmp_path / "page.png")])
    assert "the page is HTML" in str(result.exception)


@pytest.mark.parametrize("verb", [("import",), ("transcribe", "--words", "miniature")])
def test_a_manifest_is_not_written_over_something_else(tmp_path: Path, verb: tuple[str, ...]) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    result = CliRunner().invoke(app, ["data", *verb, str(tmp_path), "--out", str(notes)])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == (
        f"--out {notes}: a manifest has one JSON object per line; name it {notes.with_suffix('.jsonl')}"
    )
    assert notes.read_text() == "mine"
    result = CliRunner().invoke(app, ["data", *verb, str(tmp_path), "--out", ""])
    assert (
        str(result.exception)
        == "--out is empty: a manifest has one JSON object per line; name a file that ends in .jsonl"
    )


def test_what_is_imported_is_not_written_over(tmp_path: Path) -> None:
    manifest = tmp_path / "bad.jsonl"
    manifest.write_text("{}\n")
    result = CliRunner().invoke(app, ["data", "import", str(manifest), "--out", str(manifest)])
    assert isinstance(result.exception, ConfigError)
    assert "would be lost; name another manifest" in str(result.exception)
    assert manifest.read_text() == "{}\n"


@pytest.mark.parametrize("verb", [("import",), ("transcribe", "--words", "miniature")])
@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("set", "set/manifest.jsonl"), ("set/../set/manifest.jsonl", "set/manifest.jsonl"),
        ("link/manifest.jsonl", "set/manifest.jsonl"), ("set", "link/manifest.jsonl"), ("set", "set/metadata.jsonl"),
    ],
)  # fmt: skip
def test_nor_is_a_table_of_what_is_read(
    clips: Path, tmp_path: Path, verb: tuple[str, ...], source: str, out: str
) -> None:
    table = clips.rename(tmp_path / "set" / Path(out).name)
    table.write_text(table.read_text() + "\nnonsense\n")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    before = table.read_text()
    result = CliRunner().invoke(app, ["data", verb[0], str(tmp_path / source), *verb[1:], "--out", str(tmp_path / out)])
    assert "would be lost" in str(result.exception)
    assert table.read_text() == before
