"""A run's surroundings: a cache of its own, Accelerate as new, prepared clips without sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training_helpers import make_config, make_prepared

from affetto.codes.prepare import Prepared
from affetto.config import Config


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate's state belongs to the process, so that one test's precision would be the next one's."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return make_prepared(tmp_path / "clips")


@pytest.fixture
def config_of(tiny_base_folder: Path, tmp_path: Path) -> Callable[..., Config]:
    """A short run's configuration: config_of("name of its folder", learning_rate=1e-3, …)."""

    def make(output: str = "run", **changes: Any) -> Config:
        return make_config(tiny_base_folder, tmp_path / output, **changes)

    return make
