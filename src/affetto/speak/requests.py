"""Requests to a base, and the codes that it speaks for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affetto.errors import ConfigError
from affetto.model.batch import Turn
from affetto.speak.arguments import require_takes, require_temperature
from affetto.types import SPEAKING_TEMPERATURE


@dataclass(frozen=True)
class Request:
    """One utterance to be spoken."""

    text_ids: tuple[int, ...]
    """The prompt, as `Base.prompt_ids` gives it."""
    max_frames: int
    gate: tuple[float, ...] = ()
    """Intensity per adapter of the bank; empty is the base."""
    seed: int = 0
    temperature: float = SPEAKING_TEMPERATURE
    """0 is greedy."""
    depth_temperature: float | None = None
    """For all codebooks but the first; None is `temperature`."""
    top_k: int = 0
    """0 means all codes."""
    context: tuple[Turn, ...] = ()
    takes: int = 1
    """How many times it is said; the best take is kept (`affetto.speak.takes`)."""

    def __post_init__(self) -> None:
        for name, temperature in zip(("temperature", "depth_temperature"), self.temperatures, strict=True):
            require_temperature(temperature, name)
        require_takes(self.takes)
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (all codes) or a positive number, not {self.top_k}")
        if not all(math.isfinite(intensity) and intensity >= 0 for intensity in self.gate):
            raise ConfigError(f"intensities must be finite numbers, 0 or more, not {self.gate}")

    @property
    def temperatures(self) -> tuple[float, float]:
        """The temperatures of the first codebook and of the others."""
        return self.temperature, self.temperature if self.depth_temperature is None else self.depth_temperature


@dataclass(frozen=True)
class Spoken:
    """The codes of one spoken request."""

    codes_TK: NDArray[np.int64]
    hit_cap: bool
    """Whether the frame cap ended it rather than the model."""
