"""Data sets of Hugging Face: real ones, written to disk by pyarrow or by `datasets` itself."""

from __future__ import annotations

import builtins
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audio_signals import sine

from affetto import hub
from affetto.audio.corpora import load_clips
from affetto.audio.corpora.hugging_face import parse_source
from affetto.audio.sound import read_sound
from affetto.errors import DataError, MissingDependencyError

Tone = Callable[..., Path]
CLASSES = ["neutral", "joyful", "anger"]
FEATURES = {"label": {"names": CLASSES, "_type": "ClassLabel"}, "recording": {"_type": "Audio"}}


def encoded(hertz: float, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sine(0.2, 16_000, hertz=hertz), 16_000, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def read(source: str, sounds: Path) -> tuple[list[Any], list[Any]]:
    return load_clips([Path(source)], sounds=sounds)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Two splits, one of them in two shards, with names of classes as `datasets` writes them."""
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet can't be written without pyarrow")
    from pyarrow import parquet as writer

    folder = tmp_path / "acted"
    shards = {"train-00000-of-00002": (200, 0), "train-00001-of-00002": (300, 2), "test-00000-of-00001": (400, -1)}
    for name, (hertz, label) in shards.items():
        table = pyarrow.table(
            {
                "recording": [
                    {"bytes": encoded(hertz), "path": "a.wav"}, {"bytes": encoded(hertz + 50, "FLAC"), "path": None}
                ],
                "sentence": [f"One of {name}.", None],
                "label": pyarrow.array([label, 1], pyarrow.int64()),
                "speaker_id": [7, 8],
            },
            metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
        )  # fmt: skip
        (folder / "data").mkdir(parents=True, exist_ok=True)
        writer.write_table(table, folder / "data" / f"{name}.parquet")
    return folder


def test_parquet_shards_with_sounds_inside(parquet: Path, tmp_path: Path) -> None:
    clips, problems = read(f"hf:{parquet}", tmp_path / "sounds")
    assert problems == []
    assert [(clip.id, clip.text, clip.emotion, clip.speaker) for clip in clips] == [
        ("acted-test-000000", "One of test-00000-of-00001.", None, "acted-7"),
        ("acted-test-000001", None, "joyful", "acted-8"),
        ("acted-train-000000", "One of train-00000-of-00002.", "neutral", "acted-7"),
        ("acted-train-000001", None, "joyful", "acted-8"),
        ("acted-train-000002", "One of train-00001-of-00002.", "angry", "acted-7"),
        ("acted-train-000003", None, "joyful", "acted-8"),
    ]
    assert {(clip.corpus, clip.split) for clip in clips} == {("acted", None)}, "published splits are not taken up"
    assert [clip.audio.suffix for clip in clips] == [".wav", ".flac"] * 3
    heard = read_sound(clips[2].audio, 16_000)
    np.testing.assert_allclose(heard, sine(0.2, 16_000, hertz=200), atol=1 / 32768)
    assert clips[2].audio.read_bytes() == encoded(200), "written as it is"
    again, _ = read(f"hf:{parquet}", tmp_path / "sounds")
    assert again == clips
    assert len(list((tmp_path / "sounds").iterdir())) == 6


def test_splits_columns_and_names_can_be_chosen(parquet: Path, tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    wanted = "audio=recording&text=sentence&emotion=label&speaker=speaker_id&split=test&keep_splits=true"
    clips, problems = read(f"hf:{parquet}?{wanted}", sounds)
    assert problems == []
    assert {clip.split for clip in clips} == {"test"}
    assert len(read(f"hf:{parquet}?split=train+test", sounds)[0]) == 6
    renamed, _ = read(f"hf:{parquet}?labels=calm,happy,sad&split=train", sounds)
    assert [clip.emotion for clip in renamed] == ["calm", "happy", "sad", "happy"]
    assert {clip.emotion for clip in read(f"hf:{parquet}?emotion=", sounds)[0]} == {None}
    one, _ = read(f"hf:{parquet / 'data' / 'test-00000-of-00001.parquet'}", sounds)
    assert [clip.audio for clip in one] == [clip.audio for clip in clips]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("split=tset", "no split 'tset' .did you mean 'test'"),
        ("text=sentense", "no column 'sentense' .did you mean 'sentence'"),
        ("colour=red", "no key 'colour'; the keys are audio, text, emotion"),
        ("audio", "'audio' isn't key=value"),
        ("split=test&split=train", "given twice"),
        ("keep_splits=maybe", "true or false"),
    ],
)
def test_wrong_wishes_are_told(parquet: Path, tmp_path: Path, query: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(f"hf:{parquet}?{query}", tmp_path / "sounds")


def test_numbers_without_names_need_them(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet can't be written without pyarrow")
    from pyarrow import parquet as writer

    rows = {"audio": [encoded(200)], "label": [1]}
    (tmp_path / "set").mkdir()
    writer.write_table(pyarrow.table(rows), tmp_path / "set/train.parquet")
    with pytest.raises(DataError, match="labels=neutral,happy"):
        read(f"hf:{tmp_path / 'set'}", tmp_path / "sounds")
    (clip,), _ = read(f"hf:{tmp_path / 'set'}?labels=sad,joy", tmp_path / "sounds")
    assert clip.emotion == "joy"


def test_decoded_samples_and_torn_files(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet can't be written without pyarrow")
    from pyarrow import parquet as writer

    samples = sine(0.1, 8_000, hertz=300)
    rows = {"audio": [{"array": samples.tolist(), "sampling_rate": 8_000}, {"array": None, "sampling_rate": 8_000}]}
    (tmp_path / "set").mkdir()
    writer.write_table(pyarrow.table(rows), tmp_path / "set/train.parquet")
    (clip,), problems = read(f"hf:{tmp_path / 'set'}", tmp_path / "sounds")
    np.testing.assert_allclose(read_sound(clip.audio, 8_000), samples, atol=1 / 32768)
    assert [(problem.where, problem.kind) for problem in problems] == [("set/train:1", "bad-row")]
    (tmp_path / "set/train.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match="not a Parquet file"):
        read(f"hf:{tmp_path / 'set'}", tmp_path / "sounds")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_audio_folder_needs_no_package(tone: Tone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    forbid(monkeypatch, "datasets", "pyarrow")
    for split in ("train", "test"):
        tone(f"set/data/{split}/wavs/a.wav", duration_s=0.1, hertz=300 + len(split))
        row = {"file_name": "wavs/a.wav", "transcription": f"From {split}.", "mood": "sadness"}
        lines = [",".join(row), ",".join(row.values())] if name.endswith("csv") else [json.dumps(row)]
        (tmp_path / f"set/data/{split}/{name}").write_text("\n".join(lines))
    clips, problems = read(f"hf:{tmp_path / 'set'}?emotion=mood&keep_splits=true", tmp_path / "sounds")
    assert problems == []
    assert [(clip.id, clip.text, clip.emotion, clip.split) for clip in clips] == [
        ("set-test-000000", "From test.", "sad", "test"), ("set-train-000000", "From train.", "sad", "train"),
    ]  # fmt: skip
    assert clips[0].audio == tmp_path / "set/data/test/wavs/a.wav", "files stay where they are"


def test_a_table_whose_columns_nobody_could_guess(tone: Tone, tmp_path: Path) -> None:
    tone("mine/a.wav", duration_s=0.1)
    (tmp_path / "mine/list.csv").write_text("clip,words,mood\na.wav,Hello,joy\n")
    (clip,), problems = read(f"hf:{tmp_path / 'mine/list.csv'}?audio=clip&text=words&emotion=mood", tmp_path / "sounds")
    assert (problems, clip.text, clip.emotion) == ([], "Hello", "joy")
    with pytest.raises(DataError, match="no column names the sound"):
        read(f"hf:{tmp_path / 'mine/list.csv'}", tmp_path)
    (tmp_path / "mine/list.csv").write_text("clip,words\na.wav,Hello,there\n")
    with pytest.raises(DataError, match=r"can't be read: mine/list[.]csv:2: need 2 cells, got 3"):
        read(f"hf:{tmp_path / 'mine/list.csv'}?audio=clip", tmp_path)
    with pytest.raises(DataError, match="a data set is a folder, or a file with one of"):
        read(f"hf:{tmp_path / 'mine/a.wav'}", tmp_path)


def forbid(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Let imports of `packages` fail, as where they aren't installed."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in packages:
            raise ImportError(f"no {name}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_missing_packages_are_named_with_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "datasets", "pyarrow")
    with pytest.raises(MissingDependencyError, match="pip install datasets"):
        read("hf:someone/some-set", tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        read(f"hf:{tmp_path / 'set'}", tmp_path)
    with pytest.raises(DataError, match="no folder /nowhere/at/all"):
        read("hf:/nowhere/at/all", tmp_path)
    with pytest.raises(DataError, match="name a data set"):
        read("hf:?split=train", tmp_path)


def test_a_data_set_that_is_nowhere_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` asked the hub for a file's name for half a minute."""
    monkeypatch.setattr(hub, "_answers", lambda: pytest.fail("the hub was asked"))
    for name in ("list.csv", "rows.parquet", "some/list.jsonl"):
        with pytest.raises(DataError, match=f"there is no file {name} to read a data set from"):
            read(f"hf:{name}", tmp_path)
    pytest.importorskip("datasets", reason="the package `datasets` isn't installed")
    monkeypatch.setattr(hub, "_answers", lambda: False)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it was tried again"))
    with pytest.raises(DataError, match="there is no folder nobody/nothing, and as a hub id it isn't in the cache"):
        read("hf:nobody/nothing", tmp_path)


def test_sources_are_parsed_as_written() -> None:
    asked = parse_source("hf:me/set?audio=a%26b&split=train+dev&config=en&revision=abc&labels=x, y&id=")
    assert (asked.where, asked.name) == ("me/set", "set")
    assert asked.columns == {"audio": "a&b", "id": ""}
    assert (asked.splits, asked.config, asked.revision) == (("train", "dev"), "en", "abc")
    assert (asked.labels, asked.keep_splits) == (("x", "y"), False)


@pytest.fixture
def made() -> Any:
    """A real `datasets` data set with sounds and classes."""
    datasets = pytest.importorskip("datasets", reason="the package `datasets` isn't installed")
    rows = {
        "audio": [{"bytes": encoded(200), "path": "one.wav"}, {"bytes": encoded(260), "path": "two.wav"}],
        "text": ["One.", "Two."],
        "label": [2, 0],
    }
    features = datasets.Features(
        {
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "text": datasets.Value("string"), "label": datasets.ClassLabel(names=CLASSES),
        }
    )  # fmt: skip
    return datasets.Dataset.from_dict(rows, features=features).cast_column("audio", datasets.Audio())


def facts(clips: list[Any]) -> list[tuple[object, ...]]:
    return [(clip.text, clip.emotion, clip.audio.read_bytes()) for clip in clips]


EXPECTED = [("One.", "angry", encoded(200)), ("Two.", "neutral", encoded(260))]


def test_what_save_to_disk_and_to_parquet_write(made: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package `datasets` isn't installed")
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "validation": made}).save_to_disk(tmp_path / "two")
    (tmp_path / "three").mkdir()
    made.to_parquet(tmp_path / "three/train.parquet")
    for name in ("one", "two", "three"):
        clips, problems = read(f"hf:{tmp_path / name}?split=train", tmp_path / "sounds")
        assert problems == []
        assert facts(clips) == EXPECTED
    both, _ = read(f"hf:{tmp_path / 'two'}?keep_splits=true", tmp_path / "sounds")
    assert [clip.split for clip in both] == ["train", "train", "validation", "validation"]


def test_what_only_the_package_can_read(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow files without their state, as the package's cache has them."""
    made.save_to_disk(tmp_path / "set/inner")
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / "set/inner" / name).unlink()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    clips, problems = read(f"hf:{tmp_path / 'set'}", tmp_path / "sounds")
    assert problems == []
    assert facts(clips) == EXPECTED
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="can't load"):
        read(f"hf:{tmp_path / 'none'}", tmp_path / "sounds")
