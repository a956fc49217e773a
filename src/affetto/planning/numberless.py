"""Tensors without numbers but for those of indices.

What a network computes from its weights decides nothing about its road. Its indices may: how many places a mask
chooses, how long the longest text is. For a base that asks for such things (`Outline.reads_indices`) what comes of
indices, truth values and masks of ones is computed, and what comes of weights has a shape alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Numberless(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every tensor that is made while it is on has a shape only, all but whole numbers, truth values and ones, and
    what is made of such alone.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, with numbers where all of its tensors have some."""
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        has_numbers = not any(isinstance(tensor, FakeTensor) for tensor in given)
        if has_numbers and given:
            return func(*args, **kwargs)
        if not all(isinstance(tensor, FakeTensor) for tensor in given):
            args, kwargs = tree_map(self._emptied, (_by_places(args), kwargs))
        with self.fake:
            made = func(*args, **kwargs)
        if has_numbers and (func is torch.ops.aten.ones.default or not _is_real(made)):
            return func(*args, **kwargs)
        return made

    def _emptied(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or isinstance(leaf, FakeTensor):
            return leaf
        return self.fake.from_tensor(leaf)


def _is_real(made: Any) -> bool:
    """Whether some of what is made are real numbers, as weights are, or complex ones."""
    tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
    return any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors)


def _by_places(args: Any) -> Any:
    """Masks that choose among what has no numbers, as the places that they choose."""
    return tuple(_places(arg) if isinstance(arg, (list, tuple)) else arg for arg in args)


def _places(indices: Any) -> Any:
    if not any(_is_mask(index) for index in indices):
        return indices
    found: list[Any] = []
    for index in indices:
        found += index.nonzero().unbind(dim=1) if _is_mask(index) else [index]
    return found


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
