"""Products by affetto's C against torch's own: values, gradients twice over, and when it is left out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from affetto.model.gated import gated_linears
from affetto.native import functional
from affetto.native.products import multiply
from native_tools import required


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The C multiplies whatever may be multiplied by it; whether it did, in order."""
    required()
    monkeypatch.setattr(functional, "mkl_is_slow", lambda: True)
    for name in ("LEAST_ROWS", "LEAST_TURNED", "LEAST_WORK"):
        monkeypatch.setattr(functional, name, 1)
    told: list[bool] = []
    known = functional._suits_c

    def suits(a_NI: Tensor, b_IO: Tensor) -> bool:
        told.append(known(a_NI, b_IO))
        return told[-1]

    monkeypatch.setattr(functional, "_suits_c", suits)
    return told


def _near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("is_turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_are_those_of_torch(calls: list[bool], is_turned: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    a, b, added = torch.randn(23, 31), torch.randn(31, 17), torch.randn(23, 17)
    # The same matrices, lying in memory the other way round.
    a, b = (x.T.contiguous().T if turned else x for x, turned in zip((a, b), is_turned, strict=True))
    kept = added.clone()
    _near(functional.mm(a, b), a @ b)
    _near(functional.addmm(added, a, b), kept + a @ b)
    assert torch.equal(added, kept), "addmm leaves what it adds to as it was"
    _near(functional.addmm_(added, a, b), kept + a @ b)
    assert calls == [True] * 3


def test_what_is_added_to_may_lie_anyhow(calls: list[bool]) -> None:
    a, b, turned = torch.randn(23, 31), torch.randn(31, 17), torch.randn(17, 23).T
    expected = turned + a @ b
    _near(functional.addmm(turned, a, b), expected)
    _near(functional.addmm_(turned, a, b), expected)
    assert calls == [True]


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_linear_layer_has_its_gradients_and_theirs(calls: list[bool], has_bias: bool) -> None:
    torch.manual_seed(1)
    x, layer = torch.randn(3, 5, 7, requires_grad=True), nn.Linear(7, 6, bias=has_bias)
    found = []
    for linear in (functional.linear, nn.functional.linear):
        y = linear(x, layer.weight, layer.bias)
        inputs = [x, *layer.parameters()]
        first = torch.autograd.grad((y**3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((one**2).sum() for one in first), [x, layer.weight])
        found.append([y, *first, *second])
    for mine, torchs in zip(*found, strict=True):
        _near(mine, torchs)
    assert set(calls) == {True, False}, "where a gradient is to be differentiated, torch's own steps are taken"


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_frozen_layer_keeps_nothing_that_it_read(calls: list[bool], is_frozen: bool) -> None:
    x, weight_OI = torch.randn(5, 7, requires_grad=True), torch.randn(6, 7, requires_grad=not is_frozen)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(tuple(one.shape)) or one, lambda one: one):
        functional.linear(x, weight_OI)
    assert calls
    assert kept == ([(6, 7)] if is_frozen else [(5, 7), (6, 7)])


def test_adapted_layers_are_the_same_by_both(calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    layers = [nn.Linear(24, 20, bias=False).requires_grad_(False), nn.Linear(24, 8).requires_grad_(False)]
    factors = [(torch.randn(4, 24), torch.randn(20, 4)), (torch.randn(2, 24), torch.randn(8, 2))]
    leaves = [factor.requires_grad_() for pair in factors for factor in pair]
    x, gate_B1R = torch.randn(3, 11, 24, requires_grad=True), torch.rand(3, 1, 6)
    found = []
    for is_slow in (True, False):
        monkeypatch.setattr(functional, "mkl_is_slow", partial(bool, is_slow))
        ys = gated_linears(x, layers, factors, gate_B1R.to)
        found.append([*ys, *torch.autograd.grad(sum((y**2).sum() for y in ys), [x, *leaves])])
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-3)
    assert set(calls) == {True, False}


def test_torch_multiplies_what_they_are_not_for(calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(9, 8), torch.randn(8, 7)
    with monkeypatch.context() as patched:
        patched.setattr(functional, "library", lambda _: None)
        assert torch.equal(functional.mm(a, b), torch.mm(a, b))
        assert torch.equal(functional.linear(a, b.T), torch.nn.functional.linear(a, b.T))
    assert functional.mm(a.double(), b.double()).dtype == torch.float64
    assert functional.mm(a.bfloat16(), b.bfloat16()).dtype == torch.bfloat16
    assert functional.mm(a.requires_grad_(), b).requires_grad
    with FlopCounterMode(display=False) as counter:
        functional.linear(a.detach(), b.T)
    assert counter.get_total_flops() == 2 * 9 * 8 * 7
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.linear(a, b.T).dtype == torch.bfloat16
    assert not any(calls)


def test_into_what_is_given(calls: list[bool]) -> None:
    """A column of a larger array, or one that lies the other way round."""
    a, b, room = torch.randn(5, 8), torch.randn(8, 7), torch.full((5, 3, 7), 9.0)
    found = functional.mm(a, b, out=room[:, 1])
    _near(room[:, 1], a @ b)
    assert found.data_ptr() == room[:, 1].data_ptr()
    assert (room[:, [0, 2]] == 9.0).all()
    turned = torch.empty(7, 5).T
    _near(functional.mm(a, b, out=turned), a @ b)
    _near(turned, a @ b)
    assert any(calls)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_matrix_for_each_place(calls: list[bool], is_frozen: bool) -> None:
    torch.manual_seed(3)
    x, weight = torch.randn(5, 3, 8, requires_grad=True), torch.randn(3, 8, 7, requires_grad=not is_frozen)
    inputs = [x] if is_frozen else [x, weight]
    found = []
    for compute in (functional.heads, lambda x, weight: torch.einsum("nji,jio->njo", x, weight)):
        y = compute(x, weight)
        first = torch.autograd.grad((y**3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((one**2).sum() for one in first), inputs)
        found.append([y, *first, *second])
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4 * float(torchs.detach().abs().max()))
    assert bool(calls) is is_frozen
    nothing = functional.heads(torch.zeros(0, 3, 8), weight)
    assert nothing.shape == (0, 3, 7)


def test_what_does_not_fit_is_for_torch(calls: list[bool]) -> None:
    """Which spreads what is added, and refuses what can't be multiplied."""
    a, b = torch.randn(40, 30), torch.randn(30, 20)
    for added in (torch.randn(20), torch.randn(1, 20)):
        _near(functional.addmm(added, a, b), added + a @ b)
    for bad in (lambda: functional.mm(a, b[:25]), lambda: functional.addmm_(torch.zeros(40, 19), a, b),
                lambda: functional.addmm(torch.zeros(40, 20).double(), a, b)):  # fmt: skip
        with pytest.raises(RuntimeError):
            bad()
    _near(functional.mm(a, b, out=torch.empty(40, 20).double()).float(), a @ b)
    assert calls
    total = torch.zeros(40, 20)
    version = total._version
    functional.addmm_(total, a, b)
    assert total._version > version, "autograd sees that it changed"


def test_which_products_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(functional, "library", lambda _: "compiled")

    def is_ours(rows: int, num_in: int, num_out: int, *, is_turned: bool = False) -> bool:
        w_IO = torch.empty(num_out, num_in).T if is_turned else torch.empty(num_in, num_out)
        return functional._suits_c(torch.empty(rows, num_in), w_IO)

    assert is_ours(8, 1024, 1024)
    assert is_ours(32, 1024, 1024, is_turned=True)
    assert not is_ours(31, 1024, 1024, is_turned=True)
    assert not is_ours(7, 1024, 1024)
    assert is_ours(16, 128, 128)
    assert not is_ours(15, 128, 128)
    monkeypatch.setattr(functional, "mkl_is_slow", lambda: False)
    assert not is_ours(4096, 1024, 1024)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("is_turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", [(33, 1030, 300), (40, 2049, 130), (800, 30, 9), (3, 700, 500), (130, 64, 4100)])
def test_packed_panels(shape: tuple[int, int, int], is_turned: tuple[bool, bool], num_threads: int) -> None:
    """Deeper and wider than one panel, with rests, shared out by rows and by columns; nothing beside is touched."""
    required()
    generator = torch.Generator().manual_seed(0)
    num_rows, num_in, num_out = shape
    a, b = (torch.randn(sizes, generator=generator) for sizes in ((num_rows, num_in), (num_in, num_out)))
    exact = a.double() @ b.double()
    a, b = (x.T.contiguous().T if turned else x for x, turned in zip((a, b), is_turned, strict=True))
    room = torch.full((num_rows, num_out + 5), 2.0)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for is_added, wanted in ((False, exact), (True, 2 * exact)):
            multiply(a, b, room[:, :num_out], is_added=is_added)
            torch.testing.assert_close(room[:, :num_out].double(), wanted, rtol=1e-5, atol=3e-6 * num_in)
    finally:
        torch.set_num_threads(before)
    assert (room[:, num_out:] == 2.0).all()


@pytest.mark.parametrize(
    ("maker", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_only_processors_whose_kernels_mkl_lacks(
    maker: str, capability: str, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {maker}\n")
    monkeypatch.setattr(functional, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert functional.mkl_is_slow.__wrapped__() is expected
    (tmp_path / "cpuinfo").unlink()
    monkeypatch.setattr(functional.platform, "processor", lambda: f"Family 26, {maker}")
    assert functional.mkl_is_slow.__wrapped__() is expected
