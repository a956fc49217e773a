"""Prepared clips without sound: codes that a network can learn, every emotion its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from affetto.audio.speakers import speaker_numbers
from affetto.codes.cache import CodeCache
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.training import loop
from affetto.training.log import read_log
from affetto.types import Clip

NUM_CODEBOOKS, CODEBOOK_SIZE = 8, 256
_WORDS = [
    "red",
    "blue",
    "green",
    "small",
    "tall",
    "warm",
    "cold",
    "bright",
    "dark",
    "old",
    "new",
    "quick",
    "slow",
    "soft",
    "loud",
]
COUNTS = {
    ("happy", "train"): 6, ("happy", "validation"): 2, ("happy", "test"): 1,
    ("sad", "train"): 4, ("sad", "validation"): 2,
    (None, "train"): 10, (None, "validation"): 3, (None, "test"): 1,
}  # fmt: skip


def make_prepared(folder: Path, counts: Mapping[tuple[str | None, str], int] = COUNTS, seed: int = 0) -> Prepared:
    """Clips of each (emotion, split) with texts of their own; an emotion's codes stay near its own few values."""
    rng = np.random.default_rng(seed)
    clips, codes = [], {}
    for (emotion, split), count in counts.items():
        for number in range(count):
            name = f"{emotion or 'general'}-{split}-{number}"
            text = f"{emotion or 'general'} {split} {' '.join(rng.choice(_WORDS, 2))} {number}"
            clips.append(Clip(name, Path(f"{name}.wav"), text, emotion, "ab"[number % 2], "made-up", split))
            codes[f"key-{name}"] = emotional_codes(emotion, int(rng.integers(3, 7)), rng)
    cache = CodeCache(folder / "codes")
    cache.add(codes)
    speakers = speaker_numbers({clip.speaker for clip in clips})
    return Prepared(tuple(clips), (), (), speakers, {clip.id: f"key-{clip.id}" for clip in clips}, cache)


def emotional_codes(emotion: str | None, num_frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Codes (T, K) of one of two values per codebook, which ones depends on the emotion."""
    values_KX = np.random.default_rng(sum((emotion or "general").encode())).integers(
        0, CODEBOOK_SIZE, (NUM_CODEBOOKS, 2)
    )
    choice_TK = rng.integers(0, 2, (num_frames, NUM_CODEBOOKS))
    return np.take_along_axis(values_KX.T, choice_TK, axis=0)


def make_config(base: Path, output: Path, **changes: Any) -> Config:
    """A short run with every term on: 2 epochs of 2 to 3 steps."""
    values: dict[str, Any] = {
        "emotions": ("happy", "sad"), "base": str(base), "output_dir": output, "adapter_r": 4, "fisher_clips": 4,
        "rehearsal_buffer_size": 6, "num_epochs": 2, "batch_size": 4, "learning_rate": 5e-3, "ewc_lambda": 100.0,
        "replay_ratio": 0.4, "distillation_alpha": 0.5,
        "depth_frames_share": 0.5, "trackers": (), "validation_clips": 4,
    }  # fmt: skip
    return Config(**(values | changes))


TINY: dict[str, Any] = {"target_modules": ("q_proj", "down_proj"), "num_epochs": 3}
"""Three epochs of two steps."""


class Alone:
    """Accelerate's interface as one process sees it."""

    num_processes, process_index, is_main_process, scaler = 1, 0, True, None
    device = torch.device("cpu")

    def autocast(self) -> Any:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:  # noqa: ARG002
        raise AssertionError("there is nobody to sum with")

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, max_norm)


class InBfloat16(Alone):
    """One process that computes in bfloat16 where autocast does."""

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16)


class Group:
    """What processes share: a meeting point for sums."""

    def __init__(self, num_processes: int) -> None:
        self.barrier = threading.Barrier(num_processes, timeout=30)
        self.brought: dict[int, Tensor] = {}


class Member(Alone):
    """One of several processes, played by a thread."""

    def __init__(self, group: Group, index: int) -> None:
        self.group, self.process_index = group, index
        self.num_processes, self.is_main_process = group.barrier.parties, index == 0

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        self.group.brought[self.process_index] = tensor.clone()
        self.group.barrier.wait()
        total = torch.stack([self.group.brought[index] for index in range(self.num_processes)]).sum(dim=0)
        self.group.barrier.wait()
        return total


def results(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Any]]]:
    """Weights and moments, the best adapter, the log."""
    state = load_file(folder / "last" / "training_state.safetensors")
    best = load_file(folder / "best" / "adapter_model.safetensors")
    return state, best, read_log(folder / "training_log.jsonl")


def assert_equal_runs(found: Path, expected: Path) -> None:
    for one, other in zip(results(found)[:2], results(expected)[:2], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert results(found)[2] == results(expected)[2]


def stop_at_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """SIGTERM arrives while the run is in its step of that number."""
    real, calls = loop._step, []

    def interrupted(runs: Any, states: Any, batches: Any) -> Any:
        calls.append(states)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return real(runs, states, batches)

    monkeypatch.setattr(loop, "_step", interrupted)


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
