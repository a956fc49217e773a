"""State on disk: what goes in comes out, and what doesn't fit is refused before anything is changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from affetto.errors import CheckpointError
from affetto.preserve.budget import BudgetState
from affetto.training import checkpoint
from affetto.training.checkpoint import Progress, has_state, load_state, save_state

PROGRESS = Progress(3, 0.1 + 0.2, 2, "key", 1.5)


def make(
    seed: int, shape: tuple[int, ...] = (3, 2), *, fused: bool | None = None
) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        name: nn.Parameter(torch.randn(shape, generator=generator)) for name in ("layer.q.lora_A", "layer.q.lora_B")
    }
    return parameters, torch.optim.AdamW(parameters.values(), 0.1, fused=fused)


def step(parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("fused", [None, True])
def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path, fused: bool | None) -> None:
    parameters, optimizer = make(0, fused=fused)
    for seed in range(3):
        step(parameters, optimizer, seed)
    save_state(tmp_path / "last", parameters, optimizer, PROGRESS)
    others, other_optimizer = make(1, fused=fused)
    assert load_state(tmp_path / "last", others, other_optimizer, "key") == PROGRESS
    for run in ((parameters, optimizer), (others, other_optimizer)):
        step(*run, seed=9)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, others[name])
        moments, others_moments = optimizer.state[parameter], other_optimizer.state[others[name]]
        assert moments.keys() == others_moments.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(moments[kind], others_moments[kind]) for kind in moments)


def test_state_before_the_first_step_and_fp16s_scaler(tmp_path: Path) -> None:
    parameters, optimizer = make(0)
    start = replace(PROGRESS, step=0, best_value=None, best_step=None, loss_scaling={"scale": 65536.0})
    save_state(tmp_path / "last", parameters, optimizer, start)
    assert load_state(tmp_path / "last", *make(1), run_key="key") == start


def test_the_budgets_controller_is_part_of_the_state(tmp_path: Path) -> None:
    parameters, optimizer = make(0)
    for control in (BudgetState(0.1 + 0.2, -1 / 3, None), BudgetState(0.1 + 0.2, -1 / 3, 1e-9, 0.7, 0.1)):
        state = replace(PROGRESS, control=control)
        save_state(tmp_path / "last", parameters, optimizer, state)
        assert load_state(tmp_path / "last", *make(1), run_key="key") == state


def test_state_is_one_file_that_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, optimizer = make(0)
    folder = tmp_path / "last"
    assert not has_state(folder)
    save_state(folder, parameters, optimizer, PROGRESS)
    (file,) = folder.iterdir()
    before = file.read_bytes()
    real = checkpoint.save_file

    def killed(*arguments: object, **named: object) -> None:
        real(*arguments, **named)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_state(folder, parameters, optimizer, replace(PROGRESS, step=4))
    assert [path.name for path in folder.iterdir()] == [file.name]
    assert file.read_bytes() == before
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["progress"])["step"] == 3


def test_what_does_not_fit_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    parameters, optimizer = make(0)
    with pytest.raises(CheckpointError, match=r"nothing to resume in .*; leave out --resume"):
        load_state(folder, parameters, optimizer, "key")
    save_state(folder, parameters, optimizer, PROGRESS)
    with pytest.raises(CheckpointError, match="another configuration, base or data"):
        load_state(folder, parameters, optimizer, "another key")
    larger, other_optimizer = make(1, shape=(5, 2))
    kept = {name: parameter.detach().clone() for name, parameter in larger.items()}
    with pytest.raises(CheckpointError, match=r"layer.q.lora_A is \(3, 2\) for \(5, 2\)"):
        load_state(folder, larger, other_optimizer, "key")
    assert all(torch.equal(kept[name], parameter) for name, parameter in larger.items())
    with pytest.raises(CheckpointError, match=r"other is missing, layer.q.lora_A is unknown"):
        load_state(folder, {"other": nn.Parameter(torch.zeros(1))}, optimizer, "key")


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_a_damaged_state_is_told(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    parameters, optimizer = make(0)
    save_state(tmp_path / "last", parameters, optimizer, PROGRESS)
    (file,) = (tmp_path / "last").iterdir()
    if damage == "foreign":
        save_file({"one": torch.zeros(1)}, file)
    else:
        file.write_bytes(file.read_bytes()[: 40 if damage == "cut" else 0])
    with pytest.raises(CheckpointError, match=r"can't be read .*; start afresh without --resume"):
        load_state(tmp_path / "last", parameters, optimizer, "key")
