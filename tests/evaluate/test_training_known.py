"""What an evaluation knows of an adapter's training, from its folder alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from affetto.adapters.trained_clips import TRAINED, clip_hashes, read_trained, write_trained
from affetto.codes.cache import CodeCache
from affetto.codes.prepare import Prepared
from affetto.errors import ConfigError
from affetto.evaluate.training_known import what_is_known
from affetto.files import hash_text, write_json
from affetto.types import Clip

FACTS = {
    "emotion": "happy", "recommended_intensity": 1.25, "speakers": {"ann": 4, "bo": 7}, "trained_speakers": ["bo"],
    "command": "affetto train --emotion happy --config by_speaker.yaml",
}  # fmt: skip
EXCHANGED = {"train": "test", "test": "train", "validation": "validation"}


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """Six happy and six general clips, four of each for training and one for the test."""
    splits = ("train", "train", "train", "train", "validation", "test")
    clips = tuple(
        Clip(f"{emotion}-{number}", tmp_path / "x.wav", f"{emotion} {number}", emotion, "ann", "made-up", split)
        for emotion in ("happy", None)
        for number, split in enumerate(splits)
    )
    return _prepared(tmp_path, clips)


def _prepared(folder: Path, clips: tuple[Clip, ...]) -> Prepared:
    cache = CodeCache(folder / "codes")
    keys = {clip.id: hash_text(str(clip.text)) for clip in clips}
    cache.add({key: np.zeros((2, 8), dtype=np.int16) for key in keys.values()})
    return Prepared(clips, (), (), {"ann": 0}, keys, cache)


def _exchanged(prepared: Prepared, emotion: str | None = "any") -> Prepared:
    """With train and test exchanged, of one emotion or of all."""
    clips = tuple(
        replace(clip, split=EXCHANGED[str(clip.split)]) if emotion in (clip.emotion, "any") else clip
        for clip in prepared.clips
    )
    return replace(prepared, clips=clips)


def _adapter(folder: Path, prepared: Prepared) -> Path:
    folder.mkdir()
    write_json(folder / "affetto.json", FACTS)
    write_trained(folder, clip_hashes(prepared.keys, (clip.id for clip in prepared.clips if clip.split == "train")))
    return folder


def test_clips_of_the_training_are_known_again_by_sixteen_digits_each(tmp_path: Path, prepared: Prepared) -> None:
    folder = _adapter(tmp_path / "best", prepared)
    lines = (folder / TRAINED).read_text().splitlines()
    assert lines == sorted(hash_text(f"{emotion} {number}")[:16] for emotion in ("happy", None) for number in range(4))
    assert read_trained(folder) == frozenset(lines)
    assert read_trained(tmp_path) is None


def test_where_nothing_tested_was_trained_on_nothing_is_said(
    tmp_path: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    known = what_is_known(_adapter(tmp_path / "best", prepared), "happy", prepared)
    assert what_is_known(tmp_path / "best", "happy", prepared, 0.5).intensity == 0.5
    assert (known.intensity, known.speakers, known.trained_speakers) == (1.25, {"ann": 4, "bo": 7}, ["bo"])
    assert known.notes == ()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("emotion", "told"), [("any", r"8 of 8 test clips are"), ("happy", "4 of 5 test clips are"), (None, "4 of 5 test")]
)
def test_test_clips_that_were_trained_on_stop_the_evaluation(
    tmp_path: Path, prepared: Prepared, emotion: str | None, told: str
) -> None:
    """General clips, too, which retention is measured on."""
    folder = _adapter(tmp_path / "best", prepared)
    with pytest.raises(ConfigError, match=rf"{told}.*--config and --data \(it was trained by: .*by_speaker.yaml"):
        what_is_known(folder, "happy", _exchanged(prepared, emotion))


def test_a_clip_that_the_data_has_twice_is_no_other_split(tmp_path: Path, prepared: Prepared) -> None:
    """Training told that already, and another configuration wouldn't mend it."""
    train, test = prepared.clips[0], prepared.clips[5]
    twice = replace(prepared, keys={**prepared.keys, test.id: prepared.keys[train.id]})
    assert what_is_known(_adapter(tmp_path / "best", twice), "happy", twice).notes == ()


def test_an_adapter_made_elsewhere_speaks_at_1_in_the_datas_voices_and_that_is_told(
    tmp_path: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best").mkdir()
    for _ in range(2):
        known = what_is_known(tmp_path / "best", "happy", prepared)
        assert (known.intensity, known.speakers, known.trained_speakers) == (1.0, {"ann": 0}, ["ann"])
        told = " ".join(capsys.readouterr().err.split())
        for part in ("may not be held out", "happy is evaluated at 1", "those of the data's happy clips"):
            assert part in told, "before facts are there, and with a few"
        assert len(known.notes) == 3
        write_json(tmp_path / "best" / "affetto.json", {"emotion": "happy"})
