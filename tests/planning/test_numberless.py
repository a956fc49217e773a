"""What keeps its numbers, and what has a shape alone."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from affetto.planning.numberless import Numberless


def test_indices_are_computed_and_weights_are_not() -> None:
    with Numberless():
        weight = torch.zeros(5, 3)
        places = torch.arange(6) % 4
        mask = torch.ones(6).bool() & (places > 1)
        chosen = weight[places]
        assert int(places.max()) == 3
        assert mask.tolist() == [False, False, True, True, False, False]
        assert chosen.shape == (6, 3)
        assert isinstance(weight, FakeTensor)
        assert isinstance(chosen, FakeTensor)
        with pytest.raises(DataDependentOutputException):
            float(chosen.sum())


def test_a_mask_chooses_as_many_as_it_does() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 4, 3))
    mask = torch.tensor([[True, False, True, False], [False, True, False, False]])
    with Numberless() as mode:
        values = torch.nn.Parameter(mode.fake.from_tensor(weight.data))
        chosen = values[mask]
        assert chosen.shape == weight[mask].shape == (3, 3)
        torch.autograd.backward(chosen.sum())
        assert values.grad is not None
        assert values.grad.shape == weight.shape
        filled = torch.zeros(2, 4)
        filled[mask] = 1.0
        assert filled.shape == (2, 4)
    assert torch.zeros(2).tolist() == [0.0, 0.0], "outside everything has numbers"
