"""Manifests: exact round trips, and every wrong row told at once."""

from __future__ import annotations

import json
import math
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.audio.manifest import KEYS, read_manifest, write_manifest
from affetto.errors import DataError
from affetto.types import SPLITS, Clip

_NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
_WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def _write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


@st.composite
def _clips(draw: st.DrawFn) -> list[tuple[str, dict[str, Any]]]:
    ids = draw(st.lists(_NAMES, min_size=1, max_size=5, unique=True))
    rows = []
    for index, name in enumerate(ids):
        start_s = draw(st.none() | st.floats(0, 1e6))
        end_s = None if draw(st.booleans()) else (start_s or 0.0) + draw(st.floats(0.25, 1e6))
        fields = {
            "folders": draw(st.lists(_NAMES, min_size=1, max_size=3)),
            "text": draw(st.none() | _WORDS),
            "emotion": draw(st.none() | _NAMES),
            "speaker": draw(_NAMES),
            "split": draw(st.sampled_from([*SPLITS, None])),
            "start_s": start_s,
            "end_s": end_s,
            "intensity": None,
            "context": tuple(draw(st.lists(st.sampled_from(ids[:index]), unique=True))) if index else (),
        }
        if fields["emotion"] is not None:
            fields["intensity"] = draw(st.none() | st.floats(0, 1, exclude_min=True))
        rows.append((name, fields))
    return rows


@given(_clips())
@settings(max_examples=60, deadline=None)
def test_round_trip_is_exact(rows: list[tuple[str, dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sub" / "manifest.jsonl"
        clips = [
            Clip(id=name, audio=Path(folder).joinpath(*fields.pop("folders")), corpus="c", **fields)
            for name, fields in rows
        ]
        write_manifest(path, clips)
        assert read_manifest(path) == (clips, [])


def test_file_name_that_is_not_utf8_survives(tmp_path: Path, make_clip: Callable[..., Clip]) -> None:
    clip = make_clip("a", audio=tmp_path / "caf\udce9.wav")
    write_manifest(tmp_path / "manifest.jsonl", [clip])
    assert read_manifest(tmp_path / "manifest.jsonl") == ([clip], [])


def test_paths_are_relative_to_the_manifest(tmp_path: Path, make_clip: Callable[..., Clip]) -> None:
    path = tmp_path / "one" / "manifest.jsonl"
    write_manifest(path, [make_clip("a", audio=tmp_path / "one/wavs/a.wav"), make_clip("b", audio=tmp_path / "b.wav")])
    assert [json.loads(line)["audio"] for line in path.read_text().splitlines()] == ["wavs/a.wav", "../b.wav"]
    (tmp_path / "one").rename(tmp_path / "two")
    clips, _ = read_manifest(tmp_path / "two" / "manifest.jsonl")
    assert clips[0].audio == tmp_path / "two/wavs/a.wav"


def test_absent_values(tmp_path: Path) -> None:
    clips, problems = read_manifest(_write(tmp_path / "m.jsonl", "", {"id": "a", "audio": "a.wav", "text": None}, "  "))
    assert problems == []
    assert clips == [Clip("a", tmp_path / "a.wav", None, None, speaker="0", corpus=tmp_path.name)]


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    rows = b'{"id": "a", "audio": "a.wav"}\r\n\r\n{"id": "b", "audio": "b.wav"}'
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + rows)
    clips, problems = read_manifest(tmp_path / "m.jsonl")
    assert ([clip.id for clip in clips], problems) == (["a", "b"], [])


_BAD_ROWS: list[tuple[str, object, list[tuple[str, str]]]] = [
    ("not JSON", "{id: 1", [("bad-row", "not JSON")]),
    ("not an object", "[1]", [("bad-row", "expected an object, got list")]),
    ("an empty object", "{}", [("bad-row", "'id' is missing"), ("bad-row", "'audio' is missing")]),
    ("deep", "[" * 100_000, [("bad-row", "not JSON")]),
    ("key twice", '{"id": "x", "audio": "a.wav", "id": "y"}', [("bad-row", "'id' occurs twice")]),
    ("no id", {"audio": "a.wav"}, [("bad-row", "'id' is missing")]),
    ("empty id", {"id": "", "audio": "a.wav"}, [("bad-row", "'id' is missing")]),
    ("no audio", {"id": "x"}, [("bad-row", "'audio' is missing")]),
    ("number as id", {"id": 7, "audio": "a.wav"}, [("bad-row", "'id' must be a string, got 7")]),
    ("list as text", {"id": "x", "audio": "a.wav", "text": ["a"]}, [("bad-row", "'text' must be a string")]),
    ("near key", {"id": "x", "audio": "a.wav", "emotoin": "happy"}, [("bad-row", "did you mean 'emotion'")]),
    ("far key", {"id": "x", "audio": "a.wav", "qqq": 1}, [("bad-row", "unknown key 'qqq'")]),
    ("near split", {"id": "x", "audio": "a.wav", "split": "val"}, [("bad-row", "did you mean 'validation'")]),
    ("NUL", {"id": "x", "audio": "a\0.wav"}, [("bad-row", "NUL")]),
    ("empty speaker", {"id": "x", "audio": "a.wav", "speaker": ""}, [("bad-row", "empty string")]),
    ("text as time", {"id": "x", "audio": "a.wav", "start_s": "1"}, [("bad-row", "'start_s' must be seconds")]),
    ("bool as time", {"id": "x", "audio": "a.wav", "end_s": True}, [("bad-row", "'end_s' must be seconds")]),
    ("NaN", {"id": "x", "audio": "a.wav", "start_s": float("nan")}, [("bad-segment", "need 0 <= start_s < end_s")]),
    ("backwards", {"id": "x", "audio": "a.wav", "start_s": 2, "end_s": 1}, [("bad-segment", "from 2 s to 1 s")]),
    ("before the start", {"id": "x", "audio": "a.wav", "start_s": -1}, [("bad-segment", "-1")]),
    ("string as context", {"id": "x", "audio": "a.wav", "context": "ok"}, [("bad-row", "list of clip ids")]),
    ("itself", {"id": "x", "audio": "a.wav", "context": ["x"]}, [("bad-context", "names itself")]),
    ("no such turn", {"id": "x", "audio": "a.wav", "context": ["okk"]}, [("bad-context", "did you mean 'ok'")]),
    ("a turn twice", {"id": "x", "audio": "a.wav", "context": ["ok", "ok"]}, [("bad-context", "twice")]),
    ("corpora mixed", {"id": "x", "audio": "a.wav", "corpus": "b", "context": ["ok"]}, [("bad-context", "corpus 'c'")]),
    (
        "nobody's text",
        {"id": "x", "audio": "a.wav", "transcribed_by": "m"},
        [("bad-row", "names who wrote the text, but there is none")],
    ),
    ("too strong", {"id": "x", "audio": "a.wav", "emotion": "sad", "intensity": 2}, [("bad-row", "up to 1")]),
    ("no strength", {"id": "x", "audio": "a.wav", "emotion": "sad", "intensity": 0.0}, [("bad-row", "above 0")]),
    ("NaN strength", {"id": "x", "audio": "a.wav", "emotion": "sad", "intensity": math.nan}, [("bad-row", "above 0")]),
    ("strength in words", {"id": "x", "audio": "a.wav", "emotion": "sad", "intensity": "1"}, [("bad-row", "got '1'")]),
    ("bool as strength", {"id": "x", "audio": "a.wav", "emotion": "sad", "intensity": True}, [("bad-row", "got True")]),
    ("strength of nothing", {"id": "x", "audio": "a.wav", "intensity": 0.5}, [("bad-row", "row has none")]),
    ("id taken", {"id": "ok", "audio": "b.wav"}, [("duplicate-id", "line 1")]),
    ("two things", {"id": 1, "audio": "a.wav", "split": "dev"}, [("bad-row", "string"), ("bad-row", "'dev'")]),
]


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in _BAD_ROWS], ids=[case[0] for case in _BAD_ROWS])
def test_bad_row(tmp_path: Path, row: object, expected: list[tuple[str, str]]) -> None:
    clips, problems = read_manifest(_write(tmp_path / "m.jsonl", {"id": "ok", "audio": "ok.wav", "corpus": "c"}, row))
    assert [clip.id for clip in clips] == ["ok"]
    assert [(problem.where, problem.kind) for problem in problems] == [("m.jsonl:2", kind) for kind, _ in expected]
    for problem, (_, words) in zip(problems, expected, strict=True):
        assert words in problem.message


def test_every_bad_row_is_told_at_once(tmp_path: Path) -> None:
    rows = [row for _, row, _ in _BAD_ROWS if row != _BAD_ROWS[4][1]]
    good = {"id": "ok", "audio": "ok.wav", "corpus": "c"}
    clips, problems = read_manifest(_write(tmp_path / "m.jsonl", good, *rows))
    assert [clip.id for clip in clips] == ["ok"]
    assert {problem.where for problem in problems} == {f"m.jsonl:{number}" for number in range(2, len(rows) + 2)}


def test_a_turn_that_is_left_out_takes_its_dependants_with_it(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "audio": "a.wav", "split": "wrong"},
        {"id": "b", "audio": "b.wav", "context": ["a"]},
        {"id": "c", "audio": "c.wav", "context": ["b"]},
        {"id": "d", "audio": "d.wav"},
        {"id": "e", "audio": "e.wav", "context": ["f"]},
        {"id": "f", "audio": "f.wav", "context": ["e"]},
    ]
    clips, problems = read_manifest(_write(tmp_path / "m.jsonl", *rows))
    assert [clip.id for clip in clips] == ["d"]
    assert [problem.kind for problem in problems] == ["bad-row", *["bad-context"] * 4]


@given(st.binary(max_size=60) | st.text(string.printable, max_size=60).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_no_line_crashes_the_reader(line: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.jsonl"
        path.write_bytes(b'{"id": "a", "audio": "a.wav"}\n' + line)
        clips, problems = read_manifest(path)
    assert clips[0].id == "a"
    assert len(problems) >= sum(bool(part.strip()) for part in line.split(b"\n")), "no good row starts like this"


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl"):
        read_manifest(tmp_path / "none.jsonl")


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, make_clip: Callable[..., Clip]) -> None:
    for bad in (
        [make_clip("a"), make_clip("a")],
        [make_clip("a", context=("gone",))],
        [make_clip("a", start_s=float("inf"))],
        [make_clip("a", split="dev")],
    ):
        with pytest.raises(DataError, match="not written"):
            write_manifest(tmp_path / "m.jsonl", bad)
    assert list(tmp_path.iterdir()) == []


def test_keys_are_the_clip_fields() -> None:
    assert set(KEYS) == set(Clip.__dataclass_fields__)
