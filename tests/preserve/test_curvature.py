"""Every curvature against dense matrices that are built by explicit loops, finite differences and its own file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from affetto.errors import CacheError, CurvatureError
from affetto.native import products as native_products
from affetto.preserve.curvature import (
    CONTROLS,
    CURVATURES,
    Curvature,
    Diagonal,
    Full,
    Kfac,
    PositionDiagonal,
    Rank1,
    Sketch,
    kronecker,
    sampled,
)
from affetto.preserve.curvature.diagonal import weighted_square
from affetto.preserve.curvature.sampled import _leading_directions
from affetto.preserve.ewc import ewc_penalty
from native_tools import required

SITES = {"one": (5, 4), "two": (3, 6)}
"""(out, in) by layer."""
RANK, NUM_CODES = 2, 18
POSITIONS = {"a": 2, "b": 3, "c": 4}
ALL = sorted(CURVATURES)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clip(site: str, clip_id: str) -> tuple[Tensor, Tensor]:
    """Inputs (P, in) and gradients (P, out)."""
    seed = 10 * list(SITES).index(site) + list(POSITIONS).index(clip_id)
    out, into = SITES[site]
    return draw(POSITIONS[clip_id], into, seed=seed), draw(POSITIONS[clip_id], out, seed=100 + seed)


def fed(curvature: Curvature, clips: str = "abc", at_once: bool = True) -> Curvature:
    for part in [clips] if at_once else clips:
        for site in SITES:
            pairs = [clip(site, clip_id) for clip_id in part]
            curvature.update(site, list(part), [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    curvature.num_codes, curvature.num_clips = NUM_CODES, len(clips)
    return curvature


def factors(seed: int = 0) -> list[tuple[str, Tensor, Tensor, float]]:
    return [
        (site, draw(RANK, into, seed=seed + number), draw(out, RANK, seed=50 + seed + number), 1.7 - number)
        for number, (site, (out, into)) in enumerate(SITES.items())
    ]


def outer_by_clip() -> dict[str, list[Tensor]]:
    """Each clip's gradient at every layer, flattened, by explicit loops."""
    found: dict[str, list[Tensor]] = {}
    for site, (out, into) in SITES.items():
        for clip_id in POSITIONS:
            total = torch.zeros(out, into, dtype=torch.float64)
            for a, g in zip(*clip(site, clip_id), strict=True):
                for i in range(out):
                    for j in range(into):
                        total[i, j] += g[i] * a[j]
            found.setdefault(site, []).append(total.flatten())
    return found


def outer_by_position(site: str) -> list[Tensor]:
    return [torch.outer(g, a).flatten() for clip_id in POSITIONS for a, g in zip(*clip(site, clip_id), strict=True)]


def dense(name: str) -> Tensor:
    """The whole Fisher that each approximation stands for, over both layers' weights (out-major), times the codes."""
    blocks = []
    for site, (out, into) in SITES.items():
        by_clip, by_position = torch.stack(outer_by_clip()[site]), torch.stack(outer_by_position(site))
        if name == "diagonal":
            block = torch.diag((by_clip**2).sum(0))
        elif name == "diagonal_positions":
            block = torch.diag((by_position**2).sum(0))
        elif name == "rank1":
            squares = (by_clip**2).sum(0).reshape(out, into)
            block = torch.diag(torch.outer(squares.sum(1), squares.sum(0)).flatten() / squares.sum())
        elif name == "kfac":
            inputs = torch.cat([clip(site, clip_id)[0] for clip_id in POSITIONS])
            gradients = torch.cat([clip(site, clip_id)[1] for clip_id in POSITIONS])
            block = torch.kron(gradients.T @ gradients, inputs.T @ inputs) / len(inputs)
        elif name == "sketch":
            block = by_position.T @ by_position
        else:
            continue
        blocks.append(block)
    if name == "full":
        whole = torch.stack([torch.cat(parts) for parts in zip(*outer_by_clip().values(), strict=True)])
        return whole.T @ whole
    return torch.block_diag(*blocks)


@pytest.mark.parametrize("name", ALL)
def test_form_equals_the_dense_quadratic_form(name: str) -> None:
    curvature = fed(CURVATURES[name]())
    change = torch.cat([(scale * b_OR @ a_RI).flatten() for _, a_RI, b_OR, scale in factors()])
    expected = (change @ dense(name) @ change).item() / NUM_CODES
    assert expected > 0.01
    # Sampled curvatures keep directions in float16, the others sums in float32.
    tolerance = 2e-3 if name in ("sketch", "full") else 1e-5
    assert curvature.form(factors()).item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", ALL)
def test_gradients_of_the_penalty_equal_finite_differences(name: str) -> None:
    curvature = fed(CURVATURES[name]())
    for by_site in curvature.tensors.values():
        for site, value in by_site.items():
            by_site[site] = value.double()
    leaves = [leaf.requires_grad_() for _, a_RI, b_OR, _ in factors() for leaf in (a_RI, b_OR)]

    def penalty(*given: Tensor) -> Tensor:
        return ewc_penalty(curvature, [("one", *given[:2], 1.3), ("two", *given[2:], 0.4)])

    assert torch.autograd.gradcheck(penalty, leaves)
    penalty(*leaves).backward()  # type: ignore[no-untyped-call]
    assert min(leaf.grad.abs().max() for leaf in leaves if leaf.grad is not None) > 0
    assert all(leaf.grad is not None for leaf in leaves)


@pytest.mark.parametrize("name", ALL)
def test_pitfall_17_batches_do_not_matter(name: str) -> None:
    together, apart = fed(CURVATURES[name]()), fed(CURVATURES[name](), at_once=False)
    assert together.form(factors()).item() == pytest.approx(apart.form(factors()).item(), rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"kfac", "rank1"}))
def test_data_add_up(name: str) -> None:
    whole = fed(CURVATURES[name]()).form(factors()).item()
    parts = [fed(CURVATURES[name](), clips).form(factors()).item() for clips in ("ab", "c")]
    assert min(parts) > 0
    assert whole == pytest.approx(sum(parts), rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_positions_without_gradient_are_padding(name: str) -> None:
    padded = CURVATURES[name]()
    for site, (out, into) in SITES.items():
        pairs = [clip(site, clip_id) for clip_id in POSITIONS]
        inputs = [torch.cat([a_PI, 9 * torch.ones(3, into)]) for a_PI, _ in pairs]
        padded.update(site, list(POSITIONS), inputs, [torch.cat([g_PO, torch.zeros(3, out)]) for _, g_PO in pairs])
    padded.num_codes = NUM_CODES
    assert padded.form(factors()).item() == pytest.approx(fed(CURVATURES[name]()).form(factors()).item(), rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_layer_that_hears_nothing_costs_nothing(name: str) -> None:
    """Zero gradients throughout; rank1 divides by their sum."""
    curvature = CURVATURES[name]()
    for site, (out, into) in SITES.items():
        curvature.update(site, ["a"], [torch.ones(3, into)], [torch.zeros(3, out)])
    curvature.num_codes, curvature.num_clips = NUM_CODES, 1
    for scale in (1e-3, 2.0, 100.0):
        changes = [(site, a_RI.float(), b_OR.float(), scale) for site, a_RI, b_OR, _ in factors()]
        assert curvature.form(changes).item() == 0.0


@pytest.mark.parametrize("name", ALL)
def test_an_untouched_adapter_costs_nothing(name: str) -> None:
    a_RI, b_OR = draw(RANK, 4).float().requires_grad_(), torch.zeros(5, RANK, requires_grad=True)
    penalty = ewc_penalty(fed(CURVATURES[name]()), [("one", a_RI, b_OR, 2.0)])
    penalty.backward()  # type: ignore[no-untyped-call]
    assert penalty.item() == 0.0
    assert a_RI.grad is not None
    assert b_OR.grad is not None
    assert not a_RI.grad.any()
    assert not b_OR.grad.any()


@pytest.mark.parametrize("name", ALL)
def test_file_round_trip(name: str, tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "fisher.safetensors"
    curvature = fed(CURVATURES[name]())
    curvature.save(path, "key")
    read = CURVATURES[name].load(path, "key")
    assert (read.num_codes, read.num_clips) == (NUM_CODES, 3)
    assert read.form(factors()).item() == curvature.form(factors()).item()
    assert read.site_memory() == curvature.site_memory()
    assert set(read.site_memory()) == set(SITES)
    assert [file.name for file in path.parent.iterdir()] == ["fisher.safetensors"]
    with pytest.raises(CacheError, match=r"another base or other clips \(key\) than these \(other\); delete it"):
        CURVATURES[name].load(path, "other")


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"one": torch.zeros(2, 2)}, other, metadata={"curvature": "kfac", "num_codes": "1", "num_clips": "1"})
    with pytest.raises(CacheError, match="'kfac', not 'diagonal'; delete it"):
        Diagonal.load(other)
    other.write_bytes(b"not a tensor")
    with pytest.raises(CacheError, match="can't be read"):
        Diagonal.load(other)


@pytest.mark.parametrize("name", ALL)
def test_pitfall_28_what_is_not_finite_is_named(name: str) -> None:
    inputs, gradients = clip("one", "b")
    bad = inputs.clone()
    bad[1, 2] = float("nan")
    curvature = CURVATURES[name]()
    curvature.update("one", ["b"], [inputs], [gradients])
    with pytest.raises(CurvatureError, match="not finite at layer one on clip c"):
        curvature.update("one", ["b", "c"], [inputs, bad], [gradients, gradients])


@pytest.mark.parametrize(("kind", "size"), [(Sketch, "PAIRS_PER_STEP"), (Full, "CLIPS_PER_STEP")])
def test_a_steps_part_of_the_sample_is_unbiased_and_repeats(
    kind: type[Curvature], size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled, size, 2)
    curvature = fed(kind())
    whole = curvature.form(factors()).item()
    parts = [curvature.form(factors(), step).item() for step in range(3000)]
    assert curvature.form(factors(), 7).item() == parts[7]
    assert len(set(parts)) > 2
    error = torch.tensor(parts).std().item() / 3000**0.5
    assert sum(parts) / 3000 == pytest.approx(whole, abs=4 * error)


def test_a_draw_of_positions_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "PAIRS_PER_CLIP", 2)
    inputs, gradients = draw(6, 4, seed=1), draw(6, 5, seed=2)
    whole = sum(
        ((gradient @ factors()[0][2]) @ (factors()[0][1] @ a)).item() ** 2
        for a, gradient in zip(inputs, gradients, strict=True)
    )
    found = []
    for number in range(1500):
        curvature = Sketch()
        curvature.update("one", [f"clip {number}"], [inputs], [gradients])
        curvature.num_codes = 1
        found.append(curvature.form([factors()[0]]).item() / 1.7**2)
    assert curvature.tensors["weights"]["one"].shape == (2,)
    error = torch.tensor(found).std().item() / 1500**0.5
    assert sum(found) / 1500 == pytest.approx(whole, abs=4 * error)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_leading_directions_are_the_singular_ones(out: int, into: int, seed: int) -> None:
    matrices = torch.stack([draw(out, into, seed=seed), draw(out, into, seed=seed + 5000)])
    together = _leading_directions(matrices, 3, sampled._generator("test"))
    kept = min(3, out, into)
    for matrix, left_KO, values_K, right_KI in zip(matrices, *together, strict=True):
        torch.testing.assert_close(values_K[:kept], torch.linalg.svdvals(matrix)[:kept], rtol=1e-6, atol=1e-9)
        assert not values_K[kept:].any()
        for k in range(kept):
            torch.testing.assert_close(matrix @ right_KI[k], values_K[k] * left_KO[k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 8, 1 << 16])
def test_weighted_square_does_not_depend_on_its_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("affetto.preserve.curvature.diagonal._BLOCK", block)
    weights, a_RI, b_OR = draw(5, 4).abs(), draw(RANK, 4, seed=1).requires_grad_(), draw(5, RANK, seed=2)
    b_OR.requires_grad_()
    value = weighted_square(weights, a_RI, b_OR)
    plain = (weights * (b_OR @ a_RI) ** 2).sum()
    torch.testing.assert_close(value, plain)
    for found, expected in zip(
        torch.autograd.grad(3 * value, (a_RI, b_OR)), torch.autograd.grad(3 * plain, (a_RI, b_OR)), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ALL)
def test_a_penalty_never_forms_the_change_of_a_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that the penalty makes is smaller than the layer, whose own size is far above the block's."""
    monkeypatch.setattr("affetto.preserve.curvature.diagonal._BLOCK", 16 * 256)
    out = into = 256
    curvature = CURVATURES[name]()
    curvature.update("big", ["a"], [draw(6, into)], [draw(6, out, seed=1)])
    curvature.num_codes = 1
    sizes = largest_tensors(lambda: curvature.form([("big", draw(4, into).float(), draw(out, 4).float(), 1.0)]))
    assert max(sizes) < out * into / 2


def largest_tensors(work: Callable[[], object]) -> list[int]:
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = func(*args, **(kwargs or {}))
            is_new = isinstance(made, Tensor) and not any(made is given for given in args)
            if is_new and not func.is_view and made.dtype.is_floating_point and func.__name__ != "_to_copy.default":
                sizes.append(made.numel())
            return made

    with Watch():
        work()
    return sizes


def test_ewc_is_half_the_form_and_passes_layers_without_rank() -> None:
    curvature = fed(Kfac())
    empty = ("three", torch.zeros(0, 4), torch.zeros(5, 0), 1.0)
    expected = 0.5 * curvature.form(factors()).item()
    assert expected > 0.1
    assert ewc_penalty(curvature, [*factors(), empty]).item() == pytest.approx(expected)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_kfac_in_c_is_that_of_torch(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of unlike width, rank and scale: the form and its gradients, against autograd in float64."""
    required()
    monkeypatch.setattr(native_products, "_THREAD_WORK", 1)
    widths = {"wide": (37, 50), "square": (20, 20), "thin": (3, 64), "tall": (70, 1)}
    single, double = Kfac(), Kfac()
    factors_of: dict[str, tuple[Tensor, Tensor, float]] = {}
    for number, (site, (out, into)) in enumerate(widths.items()):
        a_PI, g_PO = draw(90, into, seed=number), draw(90, out, seed=50 + number)
        double.update(site, ["a"], [a_PI], [g_PO])
        single.update(site, ["a"], [a_PI.float()], [g_PO.float()])
        rank = 1 + 8 * number
        factors_of[site] = draw(rank, into, seed=number), draw(out, rank, seed=70 + number), 0.5 + number
    for curvature in (single, double):
        curvature.num_codes, curvature.num_clips = 90, 1
    asked: list[int] = []
    real = kronecker.kronecker_squares
    monkeypatch.setattr(kronecker, "kronecker_squares", lambda all_: (asked.append(len(all_)), real(all_))[1])
    found = []
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    for curvature, dtype in ((double, torch.float64), (single, torch.float32)):
        given = [(site, a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_(), s)
                 for site, (a, b, s) in factors_of.items()]  # fmt: skip
        form = 3.0 * curvature.form(given)
        found.append([form, *torch.autograd.grad(form, [one for _, *pair, _ in given for one in pair])])
    torch.set_num_threads(before)
    assert asked == [4], "float64 goes through torch"
    for exact, mine in zip(*found, strict=True):
        torch.testing.assert_close(
            mine.detach().double(), exact.detach(), rtol=1e-5, atol=1e-5 * float(exact.detach().abs().max())
        )


def test_positions_that_cancel_out_are_seen_by_the_exact_diagonal_alone() -> None:
    a_PI, g_PO = draw(1, 4).repeat(2, 1), torch.cat([draw(1, 5), -draw(1, 5)])
    exact, independent, factored = Diagonal(), PositionDiagonal(), Rank1()
    for curvature in (exact, independent, factored):
        curvature.update("one", ["a"], [a_PI], [g_PO])
        curvature.num_codes = 1
    # Not 0 to the bit: some processors round the sum of both in another order.
    assert exact.form([factors()[0]]).item() == pytest.approx(0.0, abs=1e-9)
    assert factored.form([factors()[0]]).item() == pytest.approx(0.0, abs=1e-9)
    assert independent.form([factors()[0]]).item() > 0.1


def test_curvatures_go_by_the_configurations_names() -> None:
    from typing import get_args

    from affetto.config import Config

    assert set(get_args(Config.model_fields["ewc_curvature"].annotation)) == {*CURVATURES, *CONTROLS}


@pytest.mark.parametrize("name", ALL)
def test_a_change_of_full_rank_has_the_form_of_its_product_with_the_identity(name: str) -> None:
    curvature = fed(CURVATURES[name]())
    full, product = [], []
    for number, (site, (out, into)) in enumerate(SITES.items()):
        change = draw(out, into, seed=70 + number).requires_grad_()
        full.append((site, change, None, 1.3))
        product.append((site, change, torch.eye(out, dtype=change.dtype), 1.3))
    found, expected = curvature.form(full), curvature.form(product)
    assert expected.item() > 0
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, [factor[1] for factor in full]),
        torch.autograd.grad(expected, [factor[1] for factor in product]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
