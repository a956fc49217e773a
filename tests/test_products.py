"""Products by oneDNN and by affetto's C against torch's own: values, gradients twice over, and whose they are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from affetto import products
from affetto.adapters.gated import gated_linears
from native_tools import required

# torch warns of Intel's GPUs when anything is set.
OFF_WARNS = pytest.mark.filterwarnings("ignore:TF32 acceleration")


@pytest.fixture(params=["onednn", "c"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One of them multiplies whatever may be multiplied by it; what was asked of it, in order."""
    asked: str = request.param
    monkeypatch.setattr(products, "mkl_is_slow", lambda: True)
    if asked == "onednn":
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            pytest.skip("this torch was built without oneDNN")
        changes: dict[str, Any] = {"LEAST_ROWS": 1, "LEAST_MATRIX": 1}
    else:
        required()
        changes = {"LEAST_WORK": 1, "LEAST_TURNED": 1}
    for name, value in changes.items():
        monkeypatch.setattr(products, name, value)
    told: list[str] = []
    known = {"onednn": products._suits_onednn, "c": products._suits_c}[asked]

    def suits(a_NI: Tensor, b_IO: Tensor) -> bool:
        answer = known(a_NI, b_IO)
        told.append(asked if answer else "torch")
        return answer

    monkeypatch.setattr(products, f"_suits_{asked}", suits)
    return told


def _near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("is_turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_are_those_of_torch(calls: list[str], is_turned: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    a, b, added = torch.randn(23, 31), torch.randn(31, 17), torch.randn(23, 17)
    # The same matrices, lying in memory the other way round.
    a, b = (x.T.contiguous().T if turned else x for x, turned in zip((a, b), is_turned, strict=True))
    kept = added.clone()
    _near(products.mm(a, b), a @ b)
    _near(products.addmm(added, a, b), kept + a @ b)
    assert torch.equal(added, kept), "addmm leaves what it adds to as it was"
    _near(products.addmm_(added, a, b), kept + a @ b)
    assert set(calls) <= {"onednn", "c"}
    assert calls


def test_what_is_added_to_may_lie_anyhow(calls: list[str]) -> None:
    a, b, turned = torch.randn(23, 31), torch.randn(31, 17), torch.randn(17, 23).T
    expected = turned + a @ b
    _near(products.addmm(turned, a, b), expected)
    _near(products.addmm_(turned, a, b), expected)
    assert set(calls) <= {"onednn"}, "torch adds in the C's place"


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_linear_layer_has_its_gradients_and_theirs(calls: list[str], has_bias: bool) -> None:
    torch.manual_seed(1)
    x, layer = torch.randn(3, 5, 7, requires_grad=True), nn.Linear(7, 6, bias=has_bias)
    found = []
    for linear in (products.linear, nn.functional.linear):
        y = linear(x, layer.weight, layer.bias)
        inputs = [x, *layer.parameters()]
        first = torch.autograd.grad((y**3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((one**2).sum() for one in first), [x, layer.weight])
        found.append([y, *first, *second])
    for mine, torchs in zip(*found, strict=True):
        _near(mine, torchs)
    assert {"onednn", "c"} & set(calls)
    assert "torch" in calls, "where a gradient is to be differentiated, torch's own steps are taken"


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_frozen_layer_keeps_nothing_that_it_read(calls: list[str], is_frozen: bool) -> None:
    x, weight_OI = torch.randn(5, 7, requires_grad=True), torch.randn(6, 7, requires_grad=not is_frozen)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(tuple(one.shape)) or one, lambda one: one):
        products.linear(x, weight_OI)
    assert calls
    assert kept == ([(6, 7)] if is_frozen else [(5, 7), (6, 7)])


@OFF_WARNS
def test_adapted_layers_are_the_same_by_both(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    layers = [nn.Linear(24, 20, bias=False).requires_grad_(False), nn.Linear(24, 8).requires_grad_(False)]
    factors = [(torch.randn(4, 24), torch.randn(20, 4)), (torch.randn(2, 24), torch.randn(8, 2))]
    leaves = [factor.requires_grad_() for pair in factors for factor in pair]
    x, gate_B1R = torch.randn(3, 11, 24, requires_grad=True), torch.rand(3, 1, 6)
    found = []
    for is_slow in (True, False):
        monkeypatch.setattr(products, "mkl_is_slow", partial(bool, is_slow))
        ys = gated_linears(x, layers, factors, gate_B1R.to)
        found.append([*ys, *torch.autograd.grad(sum((y**2).sum() for y in ys), [x, *leaves])])
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-3)
    assert "torch" in calls
    assert {"onednn", "c"} & set(calls)


@OFF_WARNS
def test_torch_multiplies_what_they_are_not_for(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(9, 8), torch.randn(8, 7)
    with torch.backends.mkldnn.flags(enabled=False), monkeypatch.context() as patched:  # type: ignore[no-untyped-call]
        patched.setattr(products, "library", lambda _: None)
        assert torch.equal(products.mm(a, b), torch.mm(a, b))
        assert torch.equal(products.linear(a, b.T), torch.nn.functional.linear(a, b.T))
    assert products.mm(a.double(), b.double()).dtype == torch.float64
    assert products.mm(a.bfloat16(), b.bfloat16()).dtype == torch.bfloat16
    assert products.mm(a.requires_grad_(), b).requires_grad
    with FlopCounterMode(display=False) as counter:
        products.linear(a.detach(), b.T)
    assert counter.get_total_flops() == 2 * 9 * 8 * 7
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(a, b.T).dtype == torch.bfloat16
    assert set(calls) == {"torch"}


def test_into_what_is_given(calls: list[str]) -> None:
    """A column of a larger array, or one that lies the other way round."""
    a, b, room = torch.randn(5, 8), torch.randn(8, 7), torch.full((5, 3, 7), 9.0)
    found = products.mm(a, b, out=room[:, 1])
    _near(room[:, 1], a @ b)
    assert found.data_ptr() == room[:, 1].data_ptr()
    assert (room[:, [0, 2]] == 9.0).all()
    turned = torch.empty(7, 5).T
    _near(products.mm(a, b, out=turned), a @ b)
    _near(turned, a @ b)
    assert calls


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_matrix_for_each_place(calls: list[str], is_frozen: bool) -> None:
    torch.manual_seed(3)
    x, weight = torch.randn(5, 3, 8, requires_grad=True), torch.randn(3, 8, 7, requires_grad=not is_frozen)
    inputs = [x] if is_frozen else [x, weight]
    found = []
    for compute in (products.heads, lambda x, weight: torch.einsum("nji,jio->njo", x, weight)):
        y = compute(x, weight)
        first = torch.autograd.grad((y**3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((one**2).sum() for one in first), inputs)
        found.append([y, *first, *second])
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4 * float(torchs.detach().abs().max()))
    assert bool(calls) is is_frozen
    nothing = products.heads(torch.zeros(0, 3, 8), weight)
    assert nothing.shape == (0, 3, 7)


def test_which_products_are_whose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(products, "_has_onednn", lambda: True)
    monkeypatch.setattr(products, "library", lambda _: "compiled")

    def whose(rows: int, num_in: int, num_out: int, *, is_turned: bool = False) -> str:
        x_NI, w_IO = torch.empty(rows, num_in), torch.empty(num_in, num_out)
        w_IO = torch.empty(num_out, num_in).T if is_turned else w_IO
        found = [name for name in ("onednn", "c") if getattr(products, f"_suits_{name}")(x_NI, w_IO)]
        assert len(found) < 2
        return found[0] if found else "torch"

    assert whose(16, 1024, 1024) == whose(16, 1024, 1024, is_turned=True) == "onednn"
    assert whose(15, 1024, 1024) == "torch"
    assert whose(4096, 1024, 1023) == whose(64, 1024, 1023, is_turned=True) == "c"
    assert whose(63, 1024, 1023, is_turned=True) == "torch"
    assert whose(16, 128, 128) == "c"
    assert whose(15, 128, 128) == "torch"
    monkeypatch.setattr(products, "mkl_is_slow", lambda: False)
    assert whose(4096, 1024, 1024) == whose(4096, 512, 512) == "torch"


@pytest.mark.parametrize(
    ("maker", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_only_processors_whose_kernels_mkl_lacks(
    maker: str, capability: str, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {maker}\n")
    monkeypatch.setattr(products, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.mkl_is_slow.__wrapped__() is expected
    (tmp_path / "cpuinfo").unlink()
    monkeypatch.setattr(products.platform, "processor", lambda: f"Family 26, {maker}")
    assert products.mkl_is_slow.__wrapped__() is expected
