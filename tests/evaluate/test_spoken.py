from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from affetto.audio.sound import write_sound
from affetto.config import Config
from affetto.evaluate import spoken
from affetto.evaluate.speaking import Studio
from affetto.evaluate.spoken import NOTE, copy_spoken, note_spoken, read_spoken, speech_key
from affetto.model.batch import Turn
from affetto.speak.requests import Request
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


def test_so_did_another_precision_or_device(tmp_path: Path) -> None:
    def key(answers_hash: str, device: str) -> str:
        base = SimpleNamespace(folder=tmp_path, answers_hash=answers_hash, device=torch.device(device))
        voice: Any = SimpleNamespace(base=base)
        return speech_key(REQUESTS, *Studio.of(voice, tmp_path, Config(output_dir=tmp_path), resume=True).made_by)

    assert len({key("base", "cpu"), key("base/bf16", "cpu"), key("base", "cuda")}) == 3


def test_so_did_other_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoken, "speaking_hash", lambda: "of another choice of takes")
    assert read_spoken(folder, speech_key(REQUESTS, "base", "adapter")) is None


def test_so_did_another_context_of_the_same_length() -> None:
    def after(*code: int) -> str:
        turn = Turn((1, 2), np.array([code]))
        return speech_key([replace(REQUESTS[0], context=(turn,)), REQUESTS[1]], "base", "adapter")

    assert after(3, 4) == after(3, 4)
    assert len({after(3, 4), after(3, 5), speech_key(REQUESTS, "base", "adapter")}) == 3


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


def test_what_the_base_says_is_said_once(tmp_path: Path) -> None:
    """Until a file of it changes; and a stopped evaluation leaves nothing that is taken for the whole."""
    said = []

    def say(into: Path) -> None:
        said.append(into)
        write_sound(into / "000.wav", voice(150, 0.2), 16_000)
        note_spoken(into, "key", {"000.wav": False})

    def stop(into: Path) -> None:
        write_sound(into / "000.wav", voice(150, 0.2), 16_000)
        raise KeyboardInterrupt

    kept = tmp_path / "cache" / "key"
    with pytest.raises(KeyboardInterrupt):
        copy_spoken(kept, tmp_path / "a", "key", stop)
    assert not kept.exists()
    for name in ("a", "b"):
        copy_spoken(kept, tmp_path / name, "key", say)
        assert read_spoken(tmp_path / name, "key") == {"000.wav": False}
    assert len(said) == 1
    write_sound(kept / "000.wav", voice(151, 0.2), 16_000)
    copy_spoken(kept, tmp_path / "c", "key", say)
    assert len(said) == 2
    assert (tmp_path / "c" / "000.wav").read_bytes() == (tmp_path / "a" / "000.wav").read_bytes()
