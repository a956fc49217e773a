"""Where Triton's kernels can't run, slower steps do, and it is said why."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from affetto.model import triton_runs


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    triton_runs.triton_runs.cache_clear()
    yield
    triton_runs.triton_runs.cache_clear()


def test_without_a_gpu_or_without_triton_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not triton_runs.triton_runs()
    triton_runs.triton_runs.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton_runs, "find_spec", lambda _: None)
    assert not triton_runs.triton_runs()
    assert capsys.readouterr().err == ""


def test_a_kernel_that_fails_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine without a C compiler, say; here the kernels can't even be imported."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton_runs, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "affetto.model.fused_kernels", None)
    assert not triton_runs.triton_runs()
    assert not triton_runs.triton_runs()
    assert capsys.readouterr().err.count("Triton's kernels don't run here") == 1
