"""The forecast against measured KL, against sampled labels, and against derivatives by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from affetto.adapters.bank import AdapterBank
from affetto.evaluate.retention import measure_retention
from affetto.model.base import Base
from affetto.model.batch import Row
from affetto.preserve.curvature import Full, sampled
from affetto.preserve.fisher import estimate_fisher
from affetto.preserve.forecast import forecast
from moshi_checkpoint import moshi_row


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> list[Row]:
    lengths: list[tuple[int, ...]] = [(3,), (6,), (2,), (4, 5), (8,)]
    return [make_row(seed, frames=frames) for seed, frames in enumerate(lengths)]


@pytest.fixture
def bank(tiny_base: Base) -> AdapterBank:
    """Two adapters that change every layer a little."""
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    for seed, name in enumerate(("happy", "sad")):
        bank.add(name, rank=3, alpha=6.0, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for site in bank.sites.values():
            site.B[name].data.normal_(0.0, 0.004, generator=generator)
    return bank


@pytest.mark.parametrize("adapter", [0, 1])
def test_forecast_is_the_limit_of_the_measured_kl(
    tiny_base: Base, bank: AdapterBank, rows: list[Row], adapter: int
) -> None:
    found = forecast(tiny_base, rows, 2)
    gate = [0.0, 0.0]
    ratios = []
    for intensity in (1.0, 0.3):
        gate[adapter] = intensity
        measured = measure_retention(tiny_base, rows, tuple(gate))
        np.testing.assert_array_equal(measured.codes_NK.sum(axis=1), found.codes_C)
        kl = measured.kl_NK.sum() / measured.codes_NK.sum()
        assert kl > 1e-6
        ratios.append(found.kl(adapter, intensity) / kl)
    assert ratios[1] == pytest.approx(1.0, abs=0.03)
    assert abs(ratios[1] - 1) < abs(ratios[0] - 1) + 0.01
    assert len(bank.names) == 2


def test_clips_and_batches_are_told_apart(tiny_base: Base, bank: AdapterBank, rows: list[Row]) -> None:
    together = forecast(tiny_base, rows, len(bank.names))
    alone = [forecast(tiny_base, [row], 2) for row in rows]
    np.testing.assert_allclose(together.forms_CE, np.concatenate([one.forms_CE for one in alone]), rtol=1e-4)
    assert not np.allclose(together.forms_CE[:, 0], together.forms_CE[:, 1])


def test_sampled_labels_give_the_same_form_on_average(
    tiny_base: Base, bank: AdapterBank, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Full` with every direction kept is the sampled estimate of what the forecast takes exactly."""
    monkeypatch.setattr(sampled, "DIRECTIONS_PER_CLIP", 64)
    exact = 2 * forecast(tiny_base, rows, 2).kl(0)
    factors = list(bank.factors("happy"))
    draws = []
    for seed in range(60):
        curvature = estimate_fisher(tiny_base.network, bank.sites, rows, Full(), seed=seed)
        draws.append(curvature.form(factors).item())
    error = np.std(draws) / np.sqrt(len(draws))
    assert np.mean(draws) == pytest.approx(exact, abs=3 * error)
    assert error < 0.15 * exact


def test_adapters_and_weights_are_left_alone(tiny_base: Base, bank: AdapterBank, rows: list[Row]) -> None:
    before = {name: value.clone() for name, value in tiny_base.model.state_dict().items()}
    with torch.no_grad():
        forecast(tiny_base, rows[:2], 2)
    assert all(torch.equal(value, before[name]) for name, value in tiny_base.model.state_dict().items())
    assert all(parameter.grad is None for parameter in bank.parameters("happy").values())


def test_the_text_beside_the_frames_counts(tiny_moshi: Base) -> None:
    rows = [moshi_row(seed, frames=5 + seed) for seed in range(4)]
    bank = AdapterBank(tiny_moshi.model, tiny_moshi.network.gates, part="backbone")
    bank.add("happy", rank=3, alpha=6.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        tiny_moshi.network.text_head.weight *= 6  # a random model's text hardly minds what the adapter does
        for _, _, b_OR, _ in bank.factors("happy"):
            assert b_OR is not None
            b_OR.normal_(0.0, 0.003, generator=generator)
    found, measured = forecast(tiny_moshi, rows, 1), measure_retention(tiny_moshi, rows, (0.3,))
    assert measured.text is not None
    np.testing.assert_array_equal(measured.codes_N, found.codes_C)
    whole = measured.kl_N.sum() / found.codes_C.sum()
    assert measured.text.kl_N.sum() > 0.2 * measured.kl_N.sum(), "without the text it would be another number"
    assert found.kl(0, 0.3) == pytest.approx(whole, rel=0.03)
