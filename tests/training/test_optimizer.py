"""AdamW in 32 and in eight bits: what it does, what it takes, and that it goes on where it stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from affetto.config import Config
from affetto.errors import MissingDependencyError
from affetto.training.checkpoint import Progress, load_state, save_state
from affetto.training.optimizer import Bits, adamw, kept_state, moment_bytes
from affetto.training.runtime import accelerated


def _fitted(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, target: torch.Tensor, steps: int) -> list[float]:
    """Losses on the way to `target`."""
    losses = []
    for _ in range(steps):
        loss = (parameter - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("bits", [32, 8])
def test_it_learns_takes_what_is_told_and_goes_on_bit_for_bit(bits: Bits, tmp_path: Path) -> None:
    if bits == 8:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes isn't installed")
    target = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    runs = [nn.Parameter(torch.zeros(64, 256)) for _ in range(2)]
    straight, first = (adamw([parameter], 0.1, bits=bits) for parameter in runs)
    losses = _fitted(runs[0], straight, target, 40)
    assert losses[-1] < 0.01 * losses[0]
    taken = sum(
        value.nbytes for key, value in kept_state(straight, runs[0]).items() if not key.startswith(("q", "step"))
    )
    assert taken == moment_bytes(64 * 256, bits)
    _fitted(runs[1], first, target, 15)
    progress = Progress(step=15, best_value=None, best_step=None, run_key="key")
    save_state(tmp_path, {"w": runs[1]}, first, progress)
    resumed = nn.Parameter(torch.zeros(64, 256))
    second = adamw([resumed], 0.1, bits=bits)
    assert load_state(tmp_path, {"w": resumed}, second, "key") == progress
    assert _fitted(resumed, second, target, 25) == losses[15:]
    assert torch.equal(resumed, runs[0])


def test_without_bitsandbytes_a_run_of_eight_bits_ends_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    config = Config(optimizer_bits=8, output_dir=tmp_path, trackers=())
    with (
        pytest.raises(MissingDependencyError, match=r"optimizer_bits: 8 .*affetto\[four-bit\].* 32"),
        accelerated(config, "happy"),
    ):
        pytest.fail("it began")
