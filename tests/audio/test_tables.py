"""Other people's tables: which column is which, how rows become clips, and what is said of those that can't."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from affetto.audio.columns import COLUMNS, choose_columns, label_of
from affetto.audio.corpora import load_clips
from affetto.audio.manifest import read_manifest, write_manifest
from affetto.errors import DataError

Tone = Callable[..., Path]


def write_rows(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def test_nemo_manifest_with_a_segment(tone: Tone, tmp_path: Path) -> None:
    tone("set/wavs/a.wav", duration_s=3.0)
    tone("set/wavs/b.wav", duration_s=1.0)
    path = write_rows(
        tmp_path / "set/train.json",
        {"audio_filepath": "wavs/a.wav", "duration": 1.5, "offset": 0.5, "text": "One.", "speaker": "anna"},
        {"audio_filepath": str(tmp_path / "set/wavs/b.wav"), "duration": 1.0, "text": "Two.", "label": "Sadness"},
    )  # fmt: skip
    clips, problems = load_clips([path])
    assert problems == []
    assert [(clip.text, clip.emotion, clip.speaker, clip.start_s, clip.end_s) for clip in clips] == [
        ("One.", None, "anna", 0.5, 2.0), ("Two.", "sad", "0", None, None),
    ]  # fmt: skip
    assert [clip.audio.name for clip in clips] == ["a.wav", "b.wav"]
    write_manifest(tmp_path / "manifest.jsonl", clips)
    assert read_manifest(tmp_path / "manifest.jsonl") == (clips, [])


def test_a_sounds_own_name_may_begin_with_a_tilde(tone: Tone, tmp_path: Path) -> None:
    tone("set/~nobody-here.wav", duration_s=1.0)
    path = write_rows(tmp_path / "set/train.json", {"audio_filepath": "~nobody-here.wav", "text": "One."})
    clips, problems = load_clips([path])
    assert problems == []
    assert [clip.audio.name for clip in clips] == ["~nobody-here.wav"]


def test_common_voice_finds_its_clips_and_its_quotes_are_letters(tone: Tone, tmp_path: Path) -> None:
    for name in ("common_voice_en_1", "common_voice_en_2"):
        tone(f"cv/clips/{name}.wav", duration_s=0.1)
    rows = [
        ("client_id", "path", "sentence", "up_votes", "age", "gender", "accents", "locale", "segment"),
        ("f00d", "common_voice_en_1.wav", '"Well," he said', "2", "", "", "", "en", ""),
        ("beef", "common_voice_en_2.wav", "No.", "2", "", "", "", "en", ""),
    ]
    (tmp_path / "cv/validated.tsv").write_text("\n".join("\t".join(row) for row in rows), "utf-8")
    clips, problems = load_clips([tmp_path / "cv/validated.tsv"])
    assert problems == [], "columns that nobody needs are passed over"
    assert [(clip.text, clip.speaker, clip.audio.parent.name) for clip in clips] == [
        ('"Well," he said', "f00d", "clips"), ("No.", "beef", "clips"),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_one_table_in_every_form_gives_the_same_clips(tone: Tone, tmp_path: Path, suffix: str) -> None:
    tone("t/x/a.wav", duration_s=0.1)
    tone("t/x/b.wav", duration_s=0.1)
    rows = [
        {"path": "x/a.wav", "transcription": "Ay, so", "label": "fear", "spk": "7", "split": "dev", "intensity": 0.5},
        {"path": "x/b", "transcription": "Bee", "label": "happy", "spk": "8", "split": "train", "intensity": ""},
    ]
    table = tmp_path / f"t/list{suffix}"
    if suffix == ".json":
        table.write_text(json.dumps(rows), "utf-8")
    elif suffix == ".jsonl":
        write_rows(table, *rows)
    else:
        mark = "\t" if suffix == ".tsv" else ","
        lines = [list(rows[0]), *([f'"{value}"' for value in row.values()] for row in rows)]
        table.write_bytes("\r\n".join(mark.join(line) for line in lines).encode("utf-8-sig"))
    clips, problems = load_clips([table])
    assert problems == []
    assert [(clip.id, clip.text, clip.emotion, clip.speaker, clip.split, clip.intensity) for clip in clips] == [
        ("t-x-a", "Ay, so", "fearful", "7", "validation", 0.5), ("t-x-b", "Bee", "happy", "8", "train", None),
    ]  # fmt: skip


def test_everything_wrong_is_told_by_line(tone: Tone, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "deep/b"):
        tone(f"t/{name}.wav", duration_s=0.1)
    path = write_rows(
        tmp_path / "t/list.jsonl",
        {"file": "a.wav", "txt": "lost"},
        {"file": "gone.wav"},
        {"file": "a.wav"},
        {"file": "b.wav", "offset": "soon"},
        {"file": "b.wav", "offset": 2.0, "end_time": 1.0},
        {"file": "c.wav", "split": "holdout"},
        {"file": "c.wav", "emotion": 3},
        {"file": ""},
        {"file": "deep/b.wav", "emotion": "sad", "intensity": 3},
    )
    path.write_text(path.read_text() + "nonsense\n[1]\n")
    clips, problems = load_clips([path])
    assert [clip.audio.name for clip in clips] == ["a.wav"]
    told = {(problem.where.rpartition("/")[2], problem.kind) for problem in problems}
    lines = {1: "bad-row", 2: "missing-file", 3: "duplicate-id", **dict.fromkeys(range(4, 12), "bad-row")}
    assert told == {(f"list.jsonl:{line}", kind) for line, kind in lines.items()}
    said = " ".join(problem.message for problem in problems)
    for words in (
        "did you mean 'text'",
        "'gone.wav'",
        "seconds, got 'soon'",
        "is empty",
        "'holdout'",
        "number without",
        "got 3; scale it",
    ):
        assert words in said


def test_a_table_of_one_sound_that_several_files_could_be_takes_none(tone: Tone, tmp_path: Path) -> None:
    tone("t/one/a.wav", duration_s=0.1)
    tone("t/two/a.wav", duration_s=0.1)
    path = write_rows(tmp_path / "t/list.jsonl", {"file": "a.wav"}, {"file": "two/a.wav"})
    clips, problems = load_clips([path])
    assert [clip.audio.parent.name for clip in clips] == ["two"]
    assert [problem.kind for problem in problems] == ["missing-file"]


def test_a_manifest_stays_a_manifest(tone: Tone, tmp_path: Path) -> None:
    tone("t/a.wav", duration_s=0.1)
    path = write_rows(
        tmp_path / "t/m.jsonl", {"id": "a", "audio": "a.wav", "txt": "typo"}, {"id": "b", "audio": "a.wav"}
    )
    clips, problems = load_clips([path])
    assert [clip.id for clip in clips] == ["b"]
    assert "unknown key 'txt'" in problems[0].message
    own = {"id": "a", "audio": "a.wav", "duration": 0.1, "corpus": "mine"}
    clips, problems = load_clips([write_rows(tmp_path / "t/m.jsonl", own)])
    assert (clips, ["unknown key 'duration'" in problem.message for problem in problems]) == ([], [True])
    clips, problems = load_clips([write_rows(tmp_path / "t/n.jsonl", {"audio": "a.wav", "text": "No id."})])
    assert ([clip.text for clip in clips], problems) == (["No id."], [])


def test_a_folders_manifest_may_be_somebody_elses(tone: Tone, tmp_path: Path) -> None:
    tone("t/a.wav", duration_s=0.1)
    write_rows(tmp_path / "t/manifest.jsonl", {"audio_filepath": "a.wav", "duration": 0.1, "text": "Hi."})
    clips, problems = load_clips([tmp_path / "t"])
    assert ([(clip.id, clip.text) for clip in clips], problems) == ([("t-a", "Hi.")], [])


def test_a_table_without_a_sound_names_its_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sentence,who\nhi,me\n")
    with pytest.raises(DataError, match=r"no column names the sound; columns are sentence, who"):
        load_clips([tmp_path / "t.csv"])
    (tmp_path / "t.json").write_text("[1, 2")
    with pytest.raises(DataError, match="not JSON"):
        load_clips([tmp_path / "t.json"])


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.tsv", "metadata.jsonl"])
def test_plain_folders_read_other_peoples_metadata(tone: Tone, tmp_path: Path, name: str) -> None:
    tone("mine/wavs/a.wav", duration_s=0.1)
    row = {"file_name": "wavs/a.wav", "sentence": "Hi there", "label": "Anger", "speaker_id": "eve"}
    if name.endswith("jsonl"):
        write_rows(tmp_path / "mine" / name, row)
    else:
        mark = "," if name.endswith("csv") else "\t"
        (tmp_path / "mine" / name).write_text("\n".join(mark.join(cells) for cells in (row, row.values())))
    clips, problems = load_clips([tmp_path / "mine"])
    assert problems == []
    assert [(clip.text, clip.emotion, clip.speaker) for clip in clips] == [("Hi there", "angry", "eve")]


def test_paths_may_be_written_as_windows_does(tone: Tone, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tone(f"mine/wavs/{name}.wav", duration_s=0.1)
    for name in ("list.csv", "metadata.csv"):
        (tmp_path / "mine" / name).write_text("file;text\r\nwavs\\a.wav;One\r\n.\\wavs\\b.wav;Two\r\n", newline="")
    listed, problems = load_clips([tmp_path / "mine/list.csv"])
    assert problems == []
    assert [(clip.id, clip.audio.name, clip.text) for clip in listed] == [
        ("mine-wavs-a", "a.wav", "One"), ("mine-wavs-b", "b.wav", "Two")
    ]  # fmt: skip
    assert load_clips([tmp_path / "mine"]) == (listed, [])


def test_a_table_that_a_plain_folder_does_not_read_is_told_where_texts_are_missing(tone: Tone, tmp_path: Path) -> None:
    tone("mine/wavs/a.wav", duration_s=0.1)
    (tmp_path / "mine/labels.csv").write_text("file,text,emotion\nwavs/a.wav,One,happy\n")
    (tmp_path / "mine/notes.csv").write_text("day,weather\nMonday,rain\n")
    [clip], [problem] = load_clips([tmp_path / "mine"])
    assert clip.text is None
    assert (problem.where, problem.kind, problem.costs_no_clip) == ("mine/labels.csv", "mislabelled", True)
    assert "1 clip has no text: give the table itself" in problem.message
    (tmp_path / "mine/wavs/a.txt").write_text("One")
    assert load_clips([tmp_path / "mine"])[1] == []


def test_columns_are_chosen_by_wish_then_by_name() -> None:
    present = ["Path", "text", "sentence", "label", "mood"]
    columns = choose_columns(present, {"emotion": "mood", "text": "sentence"})
    assert dict(columns.names) == {"emotion": "mood", "text": "sentence", "audio": "Path"}
    assert "emotion" not in choose_columns(present, {"emotion": ""})
    with pytest.raises(DataError, match="did you mean 'sentence'"):
        choose_columns(present, {"text": "sentense"})
    names = [name for field in COLUMNS.values() for name in field]
    assert len(set(names)) == len(names), "no name means two things"


def test_numbered_labels_become_their_classes() -> None:
    names = {"joy": "happy"}
    assert [label_of(value, names, ["Joy", "weary"]) for value in (0, "1", -1, None, " ")] == [
        "happy", "weary", None, None, None,
    ]  # fmt: skip
    for value in (2, "-2"):
        with pytest.raises(DataError, match="classes are Joy, weary"):
            label_of(value, names, ["Joy", "weary"])
