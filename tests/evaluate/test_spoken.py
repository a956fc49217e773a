from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from affetto.audio.sound import write_sound
from affetto.evaluate.spoken import NOTE, note_spoken, read_spoken, speech_key
from affetto.speak.generation import Request
from evaluate_fakes import voice

REQUESTS = [Request((1, 2, 3), 40, (0.5,), seed=7), Request((4,), 20, (0.5,), seed=8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("000.wav", "001.wav"):
        write_sound(tmp_path / name, voice(150, 0.2), 16_000)
    note_spoken(tmp_path, speech_key(REQUESTS, "base", "adapter"), {"000.wav": False, "001.wav": True})
    return tmp_path


def test_what_the_same_requests_and_weights_made_is_taken_up(folder: Path) -> None:
    assert read_spoken(folder, speech_key(REQUESTS, "base", "adapter")) == {"000.wav": False, "001.wav": True}


@pytest.mark.parametrize(
    "changes", [{"text_ids": (9,)}, {"gate": (1.0,)}, {"seed": 1}, {"temperature": 0.0}, {"max_frames": 41}]
)
def test_other_requests_made_something_else(folder: Path, changes: dict[str, object]) -> None:
    changed = [replace(REQUESTS[0], **changes), REQUESTS[1]]  # type: ignore[arg-type]
    assert read_spoken(folder, speech_key(changed, "base", "adapter")) is None


def test_so_did_other_weights(folder: Path) -> None:
    assert read_spoken(folder, speech_key(REQUESTS, "base", "other adapter")) is None


def test_files_that_changed_or_went_are_not_what_was_spoken(folder: Path) -> None:
    key = speech_key(REQUESTS, "base", "adapter")
    write_sound(folder / "000.wav", voice(151, 0.2), 16_000)
    assert read_spoken(folder, key) is None
    (folder / "000.wav").unlink()
    assert read_spoken(folder, key) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1, "files": 2}', '{"files": {"000.wav": 1}}'])
def test_a_damaged_note_is_none(folder: Path, text: str) -> None:
    (folder / NOTE).write_text(text)
    assert read_spoken(folder, speech_key(REQUESTS, "base", "adapter")) is None
