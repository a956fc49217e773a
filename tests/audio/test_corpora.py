"""Corpus readers on small folders laid out as published, and finding out what a folder is."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from affetto.audio.corpora import CORPORA, load_clips
from affetto.errors import DataError
from affetto.types import Clip

Tone = Callable[..., Path]
LIBRITTS = "LibriTTS/dev-clean/84/121123/84_121123_000007_00000"


def _by_name(clips: list[Clip]) -> dict[str, Clip]:
    return {clip.audio.name: clip for clip in clips}


def _ravdess(tone: Tone, root: str = "RAVDESS") -> None:
    for actor in ("01", "02"):
        for number, code in enumerate(("03-01-01-01-01-01", "03-01-02-01-02-02", "03-01-07-02-01-01")):
            tone(f"{root}/Actor_{actor}/{code}-{actor}.wav", duration_s=0.1, hertz=200 + 50 * number + int(actor))


def test_ravdess(tone: Tone, tmp_path: Path) -> None:
    _ravdess(tone)
    tone("RAVDESS/Actor_01/03-02-03-01-01-01-01.wav", duration_s=0.1)  # song
    tone("RAVDESS/Actor_01/02-01-03-01-01-01-01.wav", duration_s=0.1)  # video without sound
    tone("RAVDESS/Actor_01/._03-01-03-01-01-01-01.wav", duration_s=0.1)  # left by macOS
    tone("RAVDESS/Actor_01/03-01-09-01-01-01-01.wav", duration_s=0.1)
    clips, problems = load_clips([tmp_path / "RAVDESS"])
    assert [(problem.kind, problem.where) for problem in problems] == [
        ("bad-row", "RAVDESS/Actor_01/03-01-09-01-01-01-01.wav")
    ]
    assert len(clips) == 6
    calm, disgusted = (_by_name(clips)[name] for name in ("03-01-02-01-02-02-01.wav", "03-01-07-02-01-01-02.wav"))
    assert (calm.emotion, calm.text, calm.speaker) == ("calm", "Dogs are sitting by the door.", "ravdess-01")
    assert (disgusted.emotion, disgusted.text) == ("disgusted", "Kids are talking by the door.")
    assert ("normal" in calm.id, "strong" in disgusted.id) == (True, True)
    assert calm.intensity is not None
    assert 0.0 < calm.intensity < 1.0 == disgusted.intensity
    neutral = _by_name(clips)["03-01-01-01-01-01-01.wav"]
    assert neutral.gate == 1.0, "nobody acts it strongly, so the one way it is acted is its full strength"
    assert {clip.corpus for clip in clips} == {"ravdess"}


def test_ravdess_copy_under_another_name_takes_its_originals_labels(tone: Tone, tmp_path: Path) -> None:
    _ravdess(tone)
    original = tmp_path / "RAVDESS/Actor_01/03-01-07-02-01-01-01.wav"
    (original.parent / "03-01-02-01-02-02-02.wav").write_bytes(original.read_bytes())
    tone("RAVDESS/Actor_01/03-01-05-01-02-01-02.wav", duration_s=0.3, hertz=900)  # misplaced, but no copy
    clips, problems = load_clips([tmp_path / "RAVDESS"])
    assert [problem.kind for problem in problems] == ["mislabelled", "mislabelled"]
    assert not {problem.where for problem in problems} & {clip.id for clip in clips}, "a warning, so not left out"
    assert len({clip.id for clip in clips}) == len(clips) == 8
    inside = {clip.audio.name: clip for clip in clips if clip.audio.parent.name == "Actor_01"}
    copy = inside["03-01-02-01-02-02-02.wav"]
    true = inside[original.name]
    assert (copy.text, copy.emotion, copy.speaker) == (true.text, true.emotion, true.speaker)
    assert inside["03-01-05-01-02-01-02.wav"].speaker == "ravdess-02"


def test_a_corpus_may_be_announced_and_is_held_to_it(tone: Tone, tmp_path: Path) -> None:
    _ravdess(tone)
    _ravdess(tone, "nested/RAVDESS")
    for announced in ("RAVDESS", "ravdess"):
        for place in ("RAVDESS", "nested"):
            assert load_clips([Path(announced), tmp_path / place]) == load_clips([tmp_path / place])
    with pytest.raises(DataError, match=r"looks like ravdess and not like ljspeech: LJSpeech: metadata.csv"):
        load_clips([Path("LJSpeech"), tmp_path / "RAVDESS"])
    with pytest.raises(DataError, match=r"RAVDESS.*: no such file or folder|no data given"):
        load_clips([Path("RAVDESS")])


def test_one_actor_alone_and_nested_twice(tone: Tone, tmp_path: Path) -> None:
    _ravdess(tone, "data/Audio_Speech_Actors_01-24")
    assert len(load_clips([tmp_path / "data"])[0]) == 6
    assert len(load_clips([tmp_path / "data/Audio_Speech_Actors_01-24/Actor_02"])[0]) == 3


def test_copy_of_all_actors_inside_is_not_read_twice(tone: Tone, tmp_path: Path) -> None:
    _ravdess(tone)
    _ravdess(tone, "RAVDESS/audio_speech_actors_01-24")  # as a widely used mirror has it
    clips, problems = load_clips([tmp_path / "RAVDESS"])
    assert (len(clips), problems) == (6, [])


def _ljspeech(tone: Tone, tmp_path: Path, *lines: str) -> Path:
    tone("LJSpeech-1.1/wavs/LJ001-0001.wav", duration_s=0.1)
    tone("LJSpeech-1.1/wavs/LJ001-0002.flac", duration_s=0.1)
    folder = tmp_path / "LJSpeech-1.1"
    (folder / "metadata.csv").write_text("\n".join(lines), "utf-8")
    return folder


def test_ljspeech(tone: Tone, tmp_path: Path) -> None:
    rows = ('LJ001-0001|In 1455, "he"|In fourteen fifty-five, "he"', "LJ001-0002|Only one|", "")
    folder = _ljspeech(tone, tmp_path, *rows)
    clips, problems = load_clips([folder])
    assert problems == []
    assert [clip.text for clip in clips] == ['In fourteen fifty-five, "he"', "Only one"]
    assert {(clip.emotion, clip.speaker, clip.corpus) for clip in clips} == {(None, "LJ", "ljspeech")}


def test_ljspeech_problems(tone: Tone, tmp_path: Path) -> None:
    folder = _ljspeech(tone, tmp_path, "LJ001-0001|a|a", "LJ001-0009|b|b", "LJ001-0001|a|a", "what is this")
    clips, problems = load_clips([folder])
    assert [clip.id for clip in clips] == ["LJ001-0001"]
    assert [(problem.kind, problem.where.rpartition("/")[2]) for problem in problems] == [
        ("missing-file", "metadata.csv:2"),
        ("duplicate-id", "metadata.csv:3"),
        ("bad-row", "metadata.csv:4"),
        ("missing-text", "LJ001-0002.flac"),
    ]


def test_plain_folder_with_texts_beside(tone: Tone, tmp_path: Path) -> None:
    for name in ("Happy/a.wav", "happy/deep/b.flac", "Anger/c.wav", "whatever/d.wav", "e.wav", "tired/f.wav"):
        tone(f"mine/{name}", duration_s=0.1)
    (tmp_path / "mine/Happy/a.txt").write_text("\ufeffHello \n there\n", "utf-8")
    (tmp_path / "mine/e.normalized.txt").write_text("Ee", "utf-8")
    clips, problems = load_clips([tmp_path / "mine"], emotions=["Tired"])
    assert [(problem.where, problem.kind) for problem in problems] == [("mine/whatever", "mislabelled")]
    found = {clip.audio.stem: (clip.text, clip.emotion) for clip in clips}
    assert found == {
        "a": ("Hello there", "happy"), "b": (None, "happy"), "c": (None, "angry"), "d": (None, None),
        "e": ("Ee", None), "f": (None, "Tired"),
    }  # fmt: skip
    assert {clip.speaker for clip in clips} == {"0"}
    assert {clip.corpus for clip in clips} == {"mine"}
    assert next(clip.id for clip in clips if clip.audio.stem == "b") == "mine-happy-deep-b"


def test_the_nearest_folder_names_the_emotion(tone: Tone, tmp_path: Path) -> None:
    tone("neutral/happy/sad/a.wav", duration_s=0.1)
    assert load_clips([tmp_path / "neutral"])[0][0].emotion == "sad"


def test_the_folder_itself_may_name_the_emotion(tone: Tone, tmp_path: Path) -> None:
    tone("sad/a.wav", duration_s=0.1)
    assert load_clips([tmp_path / "sad"])[0][0].emotion == "sad"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_plain_folder_with_a_header(tone: Tone, tmp_path: Path, delimiter: str) -> None:
    for name in ("a", "b", "happy/c", "d"):
        tone(f"mine/{name}.wav", duration_s=0.1)
    rows = [
        ("file", "text", "emotion", "speaker"),
        ("a.wav", f'"Well{delimiter} then"', "SAD", "anna"),
        ("b", "Bee", "", ""),
        ("happy/c.wav", "Sea", "weary", "bob"),
        ("gone.wav", "No", "", ""),
        ("b.wav", "Again", "", ""),
        ("d.wav", "One cell missing", ""),
    ]
    table = "\r\n".join(delimiter.join(row) for row in rows)
    (tmp_path / "mine/metadata.csv").write_bytes(b"\xef\xbb\xbf" + table.encode())
    clips, problems = load_clips([tmp_path / "mine"])
    found = {clip.audio.stem: (clip.text, clip.emotion, clip.speaker) for clip in clips}
    assert found == {
        "a": (f"Well{delimiter} then", "sad", "anna"), "b": ("Bee", None, "0"), "c": ("Sea", "weary", "bob"),
        "d": (None, None, "0"),
    }  # fmt: skip
    assert Counter((problem.kind, problem.where) for problem in problems) == Counter(
        [
            ("missing-file", "mine/metadata.csv:5"), ("bad-row", "mine/metadata.csv:6"),
            ("bad-row", "mine/metadata.csv:7"),
        ]
    )  # fmt: skip


def test_plain_folder_laid_out_like_ljspeech(tone: Tone, tmp_path: Path) -> None:
    tone("happy/wavs/one.wav", duration_s=0.1)
    tone("happy/wavs/two.wav", duration_s=0.1)
    (tmp_path / "happy/metadata.csv").write_text("one|1 a|One a\nwavs/two.wav|Two\nbroken\n", "utf-8")
    clips, problems = load_clips([tmp_path / "happy"])
    assert [(clip.text, clip.emotion) for clip in clips] == [("One a", "happy"), ("Two", "happy")]
    assert [problem.where for problem in problems] == ["happy/metadata.csv:3"]


def test_unknown_columns_broken_quotes_and_wrong_encodings_are_told(tone: Tone, tmp_path: Path) -> None:
    tone("a/x.wav", duration_s=0.1)
    (tmp_path / "a/metadata.csv").write_text("file,txt\nx.wav,hello\n", "utf-8")
    tone("b/x.wav", duration_s=0.1)
    (tmp_path / "b/metadata.csv").write_text('file,text\nx.wav,"hello\n', "utf-8")
    tone("c/x.wav", duration_s=0.1)
    (tmp_path / "c/metadata.csv").write_bytes("file,text\nx.wav,é\n".encode("latin-1"))
    for name, words in (("a", "did you mean 'text'"), ("b", "not CSV"), ("c", "not UTF-8")):
        clips, problems = load_clips([tmp_path / name])
        assert [clip.text for clip in clips] == [None]
        assert [(problem.kind, words in problem.message) for problem in problems] == [("bad-row", True)]


def test_a_text_in_another_encoding_costs_its_clip_alone(tone: Tone, tmp_path: Path) -> None:
    """Latin-1's `café` is neither read as another word nor as none."""
    for name in ("a", "b"):
        tone(f"mine/{name}.wav", duration_s=0.1)
        tone(f"{LIBRITTS}{'ab'.index(name)}.wav", duration_s=0.1)
    texts = [("mine/a.txt", "mine/b.txt"), (f"{LIBRITTS}0.normalized.txt", f"{LIBRITTS}1.normalized.txt")]
    for place, other in texts:
        (tmp_path / place).write_bytes("café".encode("latin-1"))
        (tmp_path / other).write_text("café", "utf-8")
    for folder in ("mine", "LibriTTS"):
        clips, problems = load_clips([tmp_path / folder])
        assert [clip.text for clip in clips] == ["café"]
        ((where, kind, message),) = [(one.where, one.kind, one.message) for one in problems]
        assert (kind, where.rpartition(".")[2]) == ("wrong-text", "wav")
        assert re.search(r"(a|_00000\d\.normalized)\.txt: not UTF-8 .*; save it as UTF-8$", message)


def test_same_stem_twice_and_formats_that_cannot_be_read(tone: Tone, tmp_path: Path) -> None:
    tone("mine/a.flac", duration_s=0.1)
    tone("mine/a.wav", duration_s=0.1)
    tone("mine/x-y/z.wav", duration_s=0.1)
    tone("mine/x/y-z.wav", duration_s=0.1)
    (tmp_path / "mine/b.m4a").write_bytes(b"x")
    clips, problems = load_clips([tmp_path / "mine"])
    assert {clip.id for clip in clips} == {"mine-a", "mine-x-y-z", "mine-x-y-z-2"}
    assert {(problem.where, problem.kind) for problem in problems} == {
        ("mine/a.wav", "duplicate-id"), ("mine/b.m4a", "unreadable"),
    }  # fmt: skip


def test_links_in_a_circle_end(tone: Tone, tmp_path: Path) -> None:
    tone("mine/happy/a.wav", duration_s=0.1)
    (tmp_path / "mine/happy/up").symlink_to(tmp_path / "mine")
    assert len(load_clips([tmp_path / "mine"])[0]) == 1


def test_folder_of_corpora(tone: Tone, tmp_path: Path) -> None:
    data = tmp_path / "data"
    _ravdess(tone, "data/RAVDESS")
    tone("data/LJSpeech-1.1/wavs/LJ001-0001.wav", duration_s=0.1)
    (data / "LJSpeech-1.1/metadata.csv").write_text("LJ001-0001|a|a\n", "utf-8")
    tone("data/own/happy/a.wav", duration_s=0.1)
    tone("data/listed/b.wav", duration_s=0.1)
    (data / "listed/manifest.jsonl").write_text('{"id": "b", "audio": "b.wav"}\n{"id": "b2"}\n', "utf-8")
    (data / "notes").mkdir()
    (data / "notes/readme.md").write_text("hello", "utf-8")
    tone("data/loose.wav", duration_s=0.1)
    clips, problems = load_clips([data])
    assert Counter(clip.corpus for clip in clips) == {"ravdess": 6, "ljspeech": 1, "own": 1, "listed": 1}
    assert {problem.where for problem in problems} == {"listed/manifest.jsonl:2", "data/loose.wav"}


def test_ids_are_unique_over_sources_and_context_follows(tone: Tone, tmp_path: Path) -> None:
    for name in ("one", "two"):
        for clip in ("a", "b"):
            tone(f"{name}/{clip}.wav", duration_s=0.1)
        rows = [{"id": "a", "audio": "a.wav"}, {"id": "b", "audio": "b.wav", "context": ["a"]}]
        (tmp_path / name / "m.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    clips, problems = load_clips([tmp_path / "one/m.jsonl", tmp_path / "two/m.jsonl"])
    assert problems == []
    assert [(clip.id, clip.audio.parent.name, clip.context) for clip in clips] == [
        ("a", "one", ()), ("b", "one", ("a",)), ("two-a", "two", ()), ("two-b", "two", ("two-a",)),
    ]  # fmt: skip


def test_a_recording_that_two_sources_list_is_taken_once(tone: Tone, tmp_path: Path) -> None:
    tone("one/a.wav", duration_s=0.1)
    tone("one/b.wav", duration_s=0.1)
    rows = [{"id": "other", "audio": "a.wav"}, {"id": "c", "audio": "a.wav", "end_s": 0.05, "context": ["other"]}]
    (tmp_path / "one/m.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    clips, problems = load_clips([tmp_path / "one", tmp_path / "one/m.jsonl"])
    assert [clip.id for clip in clips] == ["one-a", "one-b", "c"]
    assert clips[2].context == ("one-a",)
    assert [problem.kind for problem in problems] == ["duplicate-id"]


def test_nothing_found_says_shortly_what_could_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello", "utf-8")
    (tmp_path / "none.jsonl").write_text("", "utf-8")
    sources: list[list[Path]] = [[], *([tmp_path / name] for name in ("empty", "gone", "notes.txt", "none.jsonl"))]
    for wrong in sources:
        with pytest.raises(DataError) as caught:
            load_clips(wrong)
        told = str(caught.value).replace(str(tmp_path), "")
        assert len(told) < 500
        for words in (*(name for name in CORPORA if name != "folder"), "name.txt", ".jsonl", "hf:", "docs/data.md"):
            assert words in told


def test_only_bad_rows_is_a_report_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("nonsense\n", "utf-8")
    clips, problems = load_clips([tmp_path / "m.jsonl"])
    assert clips == []
    assert [problem.kind for problem in problems] == ["bad-row"]
