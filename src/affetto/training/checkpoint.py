"""A run's state on disk. Batches and draws are functions of the step, so tensors and a step number suffice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from affetto.errors import CheckpointError
from affetto.files import write_atomically
from affetto.preserve.budget import BudgetState
from affetto.training.optimizer import kept_state, put_state

_STATE = "training_state.safetensors"
"""A single file, so that a crash never leaves half a state. `Progress` is JSON in its header."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int
    """Completed optimizer steps."""
    best_value: float | None
    """Lowest validation value so far, and its step."""
    best_step: int | None
    run_key: str
    """Hash of everything that decides the run; a run with another key can't be resumed from this state."""
    training_s: float = 0.0
    """Seconds spent in steps and validations, interrupted attempts included."""
    loss_scaling: Mapping[str, float] | None = None
    """State of fp16's loss scaler."""
    control: BudgetState | None = None
    """State of the forgetting budget's controller."""


def has_state(folder: Path) -> bool:
    """Whether there is something to resume in `folder`."""
    return (folder / _STATE).is_file()


def save_state(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write weights, optimizer moments and progress to `folder`, atomically."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weight/{name}"] = parameter.detach().cpu().contiguous()
        for key, value in kept_state(optimizer, parameter).items():
            tensors[f"{key}/{name}"] = value
    facts = {"progress": json.dumps(asdict(progress), allow_nan=False)}
    write_atomically(folder / _STATE, lambda temporary: save_file(tensors, temporary, metadata=facts))


def load_state(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, run_key: str
) -> Progress:
    """Load the state in `folder` into `parameters` and `optimizer`. If unfit: CheckpointError, no change."""
    progress = _read_progress(folder, run_key)
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(folder / _STATE).items():
        kind, _, name = key.partition("/")
        moments.setdefault(name, {})[kind] = value
    if wrong := _unfit(moments, parameters):
        raise CheckpointError(
            f"{folder} doesn't fit this adapter: {', '.join(wrong[:4])}. Start afresh without --resume"
        )
    for name, parameter in parameters.items():
        parameter.data.copy_(moments[name].pop("weight"))
        if moments[name]:
            put_state(optimizer, parameter, moments[name])
    return progress


def _read_progress(folder: Path, run_key: str) -> Progress:
    if not has_state(folder):
        raise CheckpointError(f"there is nothing to resume in {folder}; leave out --resume to start afresh")
    try:
        with safe_open(folder / _STATE, framework="pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {})["progress"])
        control = facts.pop("control", None)
        progress = Progress(**facts, control=BudgetState(**control) if control else None)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / _STATE} can't be read ({error}); start afresh without --resume") from error
    if progress.run_key != run_key:
        raise CheckpointError(
            f"{folder} belongs to a run with another configuration, base or data; "
            "restore those, or start afresh without --resume"
        )
    return progress


def _unfit(moments: Mapping[str, Mapping[str, Tensor]], parameters: Mapping[str, nn.Parameter]) -> list[str]:
    missing = [f"{name} is missing" for name in parameters if "weight" not in moments.get(name, {})]
    unknown = [f"{name} is unknown" for name in moments if name not in parameters]
    shapes = [
        f"{name} is {tuple(moments[name]['weight'].shape)} for {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in moments and "weight" in moments[name] and moments[name]["weight"].shape != parameter.shape
    ]
    return missing + unknown + shapes
