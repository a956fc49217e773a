"""Emotion judges from other toolkits: fetching their files, reading their weights safely, and running them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from affetto.errors import BaseModelError, JudgeError
from affetto.hub import fetch_files
from affetto.judges.choice import Source, read_labels
from affetto.judges.listeners import Sounds
from affetto.judges.voices import to_unit

_INSIDE = ("state_dict", "model_state_dict", "model")
"""Keys under which a checkpoint may keep its weights, the outermost first."""


def checkpoint_folder(source: Source, files: Sequence[str]) -> Path:
    """The folder with `files` of a source, fetched if it is on the hub; JudgeError if one is missing."""
    folder = fetched(source, files)
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise JudgeError(f"{source.id} lacks {', '.join(missing)}")
    return folder


def fetched(source: Source, files: Sequence[str]) -> Path:
    """The folder of a source with those of `files` (names or patterns) that it has; JudgeError if the hub fails."""
    if source.tier != "hub":
        return Path(source.where)
    try:
        return fetch_files(source.where, source.revision, files)
    except BaseModelError as error:
        raise JudgeError(f"can't fetch the judge {source.id}: {error}") from error


def at_commit(source: Source, folder: Path) -> Source:
    """`source` with the commit that it resolved to, if `folder` is a snapshot of the hub."""
    is_snapshot = source.tier == "hub" and folder.parent.name == "snapshots"
    return replace(source, revision=folder.name) if is_snapshot else source


def read_state(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name. Only tensors and plain containers are unpickled, so no code is run."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise JudgeError(f"can't read the weights {path.name} of {name}: {error}") from error
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    state = {key: value for key, value in dict(content).items() if isinstance(value, Tensor)}
    if not state:
        raise JudgeError(f"{path.name} of {name} holds no weights")
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load `state` into `model`. Extra weights, for training only, are ignored; JudgeError if one is missing."""
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise JudgeError(f"the weights of {name} don't fit its configuration: {error}") from error
    if missing:
        raise JudgeError(
            f"{name} doesn't hold a complete {type(model).__name__}: {', '.join(missing)} would stay random"
        )


class EmotionNetwork(Protocol):
    """A module that classifies emotions from an utterance vector."""

    @property
    def fewest_samples(self) -> int:
        """Number of samples that make one frame."""
        ...

    def vector(self, sound_1S: Tensor) -> Tensor:
        """The utterance vector (1, D) that is classified."""
        ...

    def scores(self, sound_1S: Tensor) -> Tensor:
        """Logits (1, outputs)."""
        ...


class CheckpointListener:
    """Both an emotion and an embedding judge: posteriors, and the vectors that they are computed from.

    Sounds, at 16 kHz, are heard one at a time. `names` are the names of the model's outputs, None for an unused one.
    """

    sample_rate = 16_000

    def __init__(self, model: EmotionNetwork, names: Sequence[str | None], source: Source, device: str) -> None:
        assert isinstance(model, nn.Module)
        self.model: Any = model.float().eval().to(device)
        self.device = device
        self._outputs = [index for index, name in enumerate(names) if name is not None]
        output_labels = read_labels([name for name in names if name is not None], source)
        self.labels = tuple(dict.fromkeys(output_labels))
        self._columns = [self.labels.index(label) for label in output_labels]
        self.id = f"{source.id}@{source.revision}" if source.revision else source.id
        self.tier, self.licence, self.known = source.tier, source.licence, source.known

    @torch.inference_mode()
    def posteriors(self, sounds: Sounds) -> NDArray[np.float64]:
        """Probabilities (N, L); see `kinds.EmotionJudge`. Sounds too short for a frame are padded with silence."""
        posteriors_NL = np.zeros((len(sounds), len(self.labels)))
        for row_L, sound in zip(posteriors_NL, sounds, strict=True):
            num_missing = max(0, self.model.fewest_samples - len(sound))
            scores = self.model.scores(self._tensor(np.pad(sound, (0, num_missing))))[0, self._outputs]
            np.add.at(row_L, self._columns, torch.softmax(scores.double(), dim=0).cpu().numpy())
        return posteriors_NL

    @torch.inference_mode()
    def embed(self, sounds: Sounds) -> list[NDArray[np.float64] | None]:
        """Unit vectors; see `kinds.VectorJudge`."""
        return [
            None
            if len(sound) < self.model.fewest_samples
            else to_unit(self.model.vector(self._tensor(sound))[0].double().cpu().numpy(), self.id)
            for sound in sounds
        ]

    def _tensor(self, sound: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(sound, dtype=np.float32))[None].to(self.device)


def fewest_samples(convolutions: Sequence[tuple[int, int]]) -> int:
    """Number of samples that make one frame after `convolutions` of (kernel, stride)."""
    num_samples = 1
    for kernel, stride in reversed(convolutions):
        num_samples = (num_samples - 1) * stride + kernel
    return num_samples
