"""The diagonal against dense matrices, finite differences and its own file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from affetto.errors import CacheError
from affetto.preserve.curvature import CURVATURES, Diagonal
from affetto.preserve.ewc import ewc_penalty

OUT, IN, RANK, CLIPS = 5, 4, 2, 3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def curvature() -> Diagonal:
    """Two layers, three clips of 2, 3 and 4 positions."""
    made = Diagonal()
    for number, site in enumerate(("one", "two")):
        positions = [2 + clip for clip in range(CLIPS)]
        inputs = [draw(count, IN, seed=10 * number + clip) for clip, count in enumerate(positions)]
        gradients = [draw(count, OUT, seed=100 + 10 * number + clip) for clip, count in enumerate(positions)]
        made.update(site, inputs, gradients)
    made.num_codes, made.num_clips = 18, CLIPS
    return made


def in_float64(curvature: Diagonal) -> Diagonal:
    curvature.sums_OI = {site: sums.double() for site, sums in curvature.sums_OI.items()}
    return curvature


def test_update_squares_each_clips_sum_over_positions(curvature: Diagonal) -> None:
    expected = torch.zeros(OUT, IN, dtype=torch.float64)
    for clip in range(CLIPS):
        inputs, gradients = draw(2 + clip, IN, seed=clip), draw(2 + clip, OUT, seed=100 + clip)
        for i in range(OUT):
            for j in range(IN):
                expected[i, j] += sum((g[i] * a[j]).item() for a, g in zip(inputs, gradients, strict=True)) ** 2
    torch.testing.assert_close(curvature.sums_OI["one"].double(), expected, rtol=1e-5, atol=1e-6)


def test_penalty_equals_the_dense_quadratic_form(curvature: Diagonal) -> None:
    in_float64(curvature)
    a_RI, b_OR, scale = draw(RANK, IN, seed=7), draw(OUT, RANK, seed=8), 1.7
    change = (scale * b_OR @ a_RI).flatten()
    fisher = torch.diag(curvature.sums_OI["one"].flatten()) / 18
    assert curvature.penalty("one", a_RI, b_OR, scale).item() == pytest.approx((change @ fisher @ change).item())


def test_ewc_is_half_the_sum_over_layers_and_passes_layers_without_rank(curvature: Diagonal) -> None:
    in_float64(curvature)
    factors = [("one", draw(RANK, IN, seed=1), draw(OUT, RANK, seed=2), 2.0), ("two", draw(1, IN), draw(OUT, 1), 0.5)]
    expected = 0.5 * sum(curvature.penalty(*layer).item() for layer in factors)
    empty = ("three", torch.zeros(0, IN), torch.zeros(OUT, 0), 1.0)
    assert expected > 0.1
    assert ewc_penalty(curvature, [*factors, empty]).item() == pytest.approx(expected)


def test_gradients_of_the_penalty_equal_finite_differences(curvature: Diagonal) -> None:
    in_float64(curvature)
    a_RI, b_OR = draw(RANK, IN, seed=3).requires_grad_(), draw(OUT, RANK, seed=4).requires_grad_()

    def penalty(a: Tensor, b: Tensor) -> Tensor:
        return ewc_penalty(curvature, [("one", a, b, 1.3), ("two", a, b, 0.4)])

    assert torch.autograd.gradcheck(penalty, (a_RI, b_OR))
    penalty(a_RI, b_OR).backward()  # type: ignore[no-untyped-call]
    assert a_RI.grad is not None
    assert a_RI.grad.abs().min() > 0


def test_an_untouched_adapter_costs_nothing(curvature: Diagonal) -> None:
    a_RI, b_OR = draw(RANK, IN).float().requires_grad_(), torch.zeros(OUT, RANK, requires_grad=True)
    penalty = ewc_penalty(curvature, [("one", a_RI, b_OR, 2.0)])
    penalty.backward()  # type: ignore[no-untyped-call]
    assert penalty.item() == 0.0
    assert a_RI.grad is not None
    assert b_OR.grad is not None
    assert not a_RI.grad.any()
    assert not b_OR.grad.any()


def test_file_round_trip(curvature: Diagonal, tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "fisher.safetensors"
    curvature.save(path)
    read = Diagonal.load(path)
    assert (read.num_codes, read.num_clips) == (18, CLIPS)
    assert read.sums_OI.keys() == curvature.sums_OI.keys()
    assert all(torch.equal(read.sums_OI[site], sums) for site, sums in curvature.sums_OI.items())
    assert [file.name for file in path.parent.iterdir()] == ["fisher.safetensors"]


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"one": torch.zeros(2, 2)}, other, metadata={"curvature": "kfac", "num_codes": "1", "num_clips": "1"})
    with pytest.raises(CacheError, match="'kfac', not 'diagonal'; delete it"):
        Diagonal.load(other)
    other.write_bytes(b"not a tensor")
    with pytest.raises(CacheError, match="can't be read"):
        Diagonal.load(other)


def test_curvatures_go_by_the_configurations_names() -> None:
    from affetto.config import Config

    assert {name: curvature.name for name, curvature in CURVATURES.items()} == {name: name for name in CURVATURES}
    assert Config().ewc_curvature in CURVATURES
