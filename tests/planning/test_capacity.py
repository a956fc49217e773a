from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.planning import capacity
from affetto.types import Clip

EMOTIONS = ("happy", "sad", "angry")


class Ready:
    """Clips of 25 frames: two seconds at the miniature's rate."""

    def num_frames(self) -> dict[str, int]:
        return {f"{emotion}{index}": 25 for emotion in EMOTIONS for index in range(4)}

    def select(self, emotion: str, split: str) -> list[Clip]:
        assert split == "train"
        return [Clip(f"{emotion}{index}", Path("x.wav"), None, emotion, "a", "small") for index in range(4)]


def jobs(monkeypatch: pytest.MonkeyPatch, *, cores: int = 8, free: int = 64 * 10**9, each: int = 10**9) -> int:
    def planned(_config: Config, data: capacity.Data, **_: float) -> SimpleNamespace:
        assert (data.clips, data.clip_s) == (4, pytest.approx(2.0))
        return SimpleNamespace(peak_bytes=each)

    monkeypatch.setattr(capacity, "plan", planned)
    monkeypatch.setattr(capacity, "find_base", lambda _name: None)
    monkeypatch.setattr(capacity, "codec_frame_rate", lambda _folder: 12.5)
    monkeypatch.setattr(capacity, "processors", lambda: cores)
    monkeypatch.setattr(capacity.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    ready: Prepared = Ready()  # type: ignore[assignment]
    return capacity.num_jobs(Config(), ready, EMOTIONS)


def test_there_are_as_many_as_emotions_processors_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs(monkeypatch) == len(EMOTIONS)
    assert jobs(monkeypatch, cores=2) == 2
    assert jobs(monkeypatch, cores=1) == 1
    assert jobs(monkeypatch, each=10**9, free=4 * 10**9) == 2, "each needs its plan and a gigabyte to be judged in"
    assert jobs(monkeypatch, each=30 * 10**9, free=20 * 10**9) == 1, "one runs as it always did"


def test_a_gpu_and_a_shared_run_are_busy_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert jobs(monkeypatch) == 1
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert jobs(monkeypatch) == 1
