"""Real processes over gloo: what several train is what one does, and only training may be launched as several."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import make_prepared, results

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import ConfigError
from affetto.run import run
from affetto.training.loop import train
from affetto.training.runtime import accelerated

SETTINGS: dict[str, Any] = {
    "target_modules": ("q_proj", "down_proj"), "num_epochs": 2, "grad_accumulation_steps": 2, "batch_size": 2
}  # fmt: skip
SCRIPT = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from training_helpers import make_config, make_prepared
from affetto.training.loop import train
from affetto.training.runtime import accelerated
base, output, clips = map(Path, sys.argv[1:])
train(make_config(base, output, **{SETTINGS}), "happy", make_prepared(clips))
"""


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_two_processes_train_what_one_does(config_of: Callable[..., Config], tmp_path: Path) -> None:
    alone, shared = config_of("alone", **SETTINGS), config_of("shared")
    expected = results(train(alone, "happy", make_prepared(tmp_path / "clips")))
    surroundings = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1",
        "AFFETTO_CACHE": str(tmp_path / "cold cache"),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, alone.base, str(shared.output_dir), str(tmp_path / f"clips {rank}")],
            env=surroundings | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert sum("Estimating the Fisher" in text for text in told) == 1, "the second finds the first's"
    found = results(shared.output_dir / "emotion_models" / "happy")
    for part, wanted in zip(found[:2], expected[:2], strict=True):
        assert part.keys() == wanted.keys()
        for name, tensor in part.items():
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-6, msg=name)
    assert [row["step"] for row in found[2]] == [row["step"] for row in expected[2]], "one of them writes the log"
    for row, wanted_row in zip(found[2], expected[2], strict=True):
        assert row["terms"] == pytest.approx(wanted_row["terms"], rel=1e-4, abs=1e-6)


def test_the_whole_road_is_one_process(
    config_of: Callable[..., Config], prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("affetto.run.prepare_clips", lambda *_, **__: prepared)
    with pytest.raises(ConfigError, match=r"2 were launched: train with several .*affetto evaluate, affetto report"):
        run(config_of(), ["happy"], command="affetto run")


def test_processes_that_do_not_know_each_other_are_refused(
    config_of: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would train everything, into the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigError, match=r"2 processes were launched .*: start them with torchrun"),
        accelerated(config_of(), "x"),
    ):
        pass
