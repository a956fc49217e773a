"""Products by oneDNN against torch's own: values, gradients twice over, and when it is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from affetto import products
from affetto.adapters.gated import gated_linears

NEEDS_ONEDNN = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN"
)  # type: ignore[no-untyped-call]

# torch warns of Intel's GPUs when anything is set.
OFF_WARNS = pytest.mark.filterwarnings("ignore:TF32 acceleration")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """oneDNN multiplies whatever may be multiplied by it; what was asked of it, in order."""
    for name in ("LEAST_ROWS", "LEAST_MATRIX"):
        monkeypatch.setattr(products, name, 1)
    monkeypatch.setattr(products, "has_faster_onednn", lambda: True)
    told: list[str] = []
    known = products._suit

    def suit(a_NI: Tensor, b_IO: Tensor) -> bool:
        answer = known(a_NI, b_IO)
        told.append("onednn" if answer else "torch")
        return answer

    monkeypatch.setattr(products, "_suit", suit)
    return told


def _near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@NEEDS_ONEDNN
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
    assert set(calls) == {"onednn"}


@NEEDS_ONEDNN
def test_what_is_added_to_may_lie_anyhow(calls: list[str]) -> None:
    a, b, turned = torch.randn(23, 31), torch.randn(31, 17), torch.randn(17, 23).T
    expected = turned + a @ b
    _near(products.addmm(turned, a, b), expected)
    _near(products.addmm_(turned, a, b), expected)
    assert calls


@NEEDS_ONEDNN
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
    assert "onednn" in calls
    assert "torch" in calls, "where a gradient is to be differentiated, torch's own steps are taken"


@NEEDS_ONEDNN
@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_frozen_layer_keeps_nothing_that_it_read(calls: list[str], is_frozen: bool) -> None:
    x, weight_OI = torch.randn(5, 7, requires_grad=True), torch.randn(6, 7, requires_grad=not is_frozen)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(tuple(one.shape)) or one, lambda one: one):
        products.linear(x, weight_OI)
    assert calls
    assert kept == ([(6, 7)] if is_frozen else [(5, 7), (6, 7)])


@NEEDS_ONEDNN
@OFF_WARNS
def test_adapted_layers_are_the_same_by_both(calls: list[str]) -> None:
    torch.manual_seed(2)
    layers = [nn.Linear(24, 20, bias=False).requires_grad_(False), nn.Linear(24, 8).requires_grad_(False)]
    factors = [(torch.randn(4, 24), torch.randn(20, 4)), (torch.randn(2, 24), torch.randn(8, 2))]
    leaves = [factor.requires_grad_() for pair in factors for factor in pair]
    x, gate_B1R = torch.randn(3, 11, 24, requires_grad=True), torch.rand(3, 1, 6)
    found = []
    for is_on in (True, False):
        with torch.backends.mkldnn.flags(enabled=is_on):  # type: ignore[no-untyped-call]
            ys = gated_linears(x, layers, factors, gate_B1R.to)
            found.append([*ys, *torch.autograd.grad(sum((y**2).sum() for y in ys), [x, *leaves])])
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-3)
    assert {"onednn", "torch"} == set(calls)


@NEEDS_ONEDNN
@OFF_WARNS
def test_torch_multiplies_what_onednn_is_not_for(calls: list[str]) -> None:
    a, b = torch.randn(9, 8), torch.randn(8, 7)
    with torch.backends.mkldnn.flags(enabled=False):  # type: ignore[no-untyped-call]
        assert torch.equal(products.mm(a, b), torch.mm(a, b))
    assert products.mm(a.double(), b.double()).dtype == torch.float64
    assert products.mm(a.bfloat16(), b.bfloat16()).dtype == torch.bfloat16
    assert products.mm(a.requires_grad_(), b).requires_grad
    with FlopCounterMode(display=False) as counter:
        products.linear(a.detach(), b.T)
    assert counter.get_total_flops() == 2 * 9 * 8 * 7
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(a, b.T).dtype == torch.bfloat16
    assert set(calls) == {"torch"}


def test_narrow_products_and_few_rows_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_faster_onednn", lambda: True)
    wide = torch.empty(1024, 1024)
    assert products._suit(torch.empty(16, 1024), wide)
    assert not products._suit(torch.empty(15, 1024), wide)
    assert not products._suit(torch.empty(4096, 1024), torch.empty(1024, 1023))


@pytest.mark.parametrize(
    ("maker", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
@NEEDS_ONEDNN
def test_only_processors_whose_kernels_mkl_lacks(
    maker: str, capability: str, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {maker}\n")
    monkeypatch.setattr(products, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.has_faster_onednn.__wrapped__() is expected
    (tmp_path / "cpuinfo").unlink()
    monkeypatch.setattr(products.platform, "processor", lambda: f"Family 26, {maker}")
    assert products.has_faster_onednn.__wrapped__() is expected
