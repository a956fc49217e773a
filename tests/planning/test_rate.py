"""The measured step is only made smaller where it is too large itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from affetto.config import Config
from affetto.planning import rate
from affetto.planning.plan import base_config
from affetto.planning.workload import Data, workload


@pytest.mark.parametrize(("limit", "most_rows"), [(0.6, 1), (1.5, 2)])
def test_a_steps_products_are_those_of_its_rows_once(
    tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch, limit: float, most_rows: int
) -> None:
    """`_step` counts the whole batch's: a step of two rows below the limit is measured as it is."""
    config = Config(base=str(tiny_base_folder))
    base, work = base_config(config.base), workload(config, Data(20, 1.0), 12.5)
    taken: list[tuple[int, int]] = []
    real = rate._step

    def step(network: Any, batch: Any, *given: Any) -> tuple[int, float]:
        found = real(network, batch, *given)
        taken.append((len(batch.clip_ids), found[0]))
        return found

    monkeypatch.setattr(rate, "_step", step)
    rate.measured_rate(base, config, work, "cpu")
    rows, whole = taken[0]
    assert rows == 2
    assert taken[-1] == (work.rows, pytest.approx(whole * work.rows / 2, rel=0.01)), "as the run's own, being small"
    monkeypatch.setattr(rate, "_FEW_FLOPS", whole)
    monkeypatch.setattr(rate, "_MOST_FLOPS", limit * whole)
    rate.measured_rate(base, config, work, "cpu")
    assert taken[-1][0] == most_rows
