"""Shape-only tensors, except for indices, which are computed.

What a network computes from its weights doesn't affect its control flow. Its indices may: how many places a mask
selects, how long the longest text is. For a base that reads such values (`Outline.reads_indices`) everything derived
from indices, booleans and masks of ones is computed, and everything derived from weights has only a shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Numberless(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, new tensors have only a shape, except integers, booleans, ones, and what is derived only from
    these.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, with values if all of its tensors have some."""
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        has_numbers = not any(isinstance(tensor, FakeTensor) for tensor in given)
        if has_numbers and given:
            return func(*args, **kwargs)
        if not all(isinstance(tensor, FakeTensor) for tensor in given):
            args, kwargs = tree_map(self._emptied, (_by_places(args), kwargs))
        with self.fake:
            result = func(*args, **kwargs)
        if has_numbers and (func is torch.ops.aten.ones.default or not _is_real(result)):
            return func(*args, **kwargs)
        return result

    def _emptied(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or isinstance(leaf, FakeTensor):
            return leaf
        return self.fake.from_tensor(leaf)


def _is_real(result: Any) -> bool:
    """Whether some of the resulting tensors are floating-point, as weights are, or complex."""
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    return any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors)


def _by_places(args: Any) -> Any:
    """Replaces masks that index shape-only tensors by the indices that they select."""
    return tuple(_places(arg) if isinstance(arg, (list, tuple)) else arg for arg in args)


def _places(indices: Any) -> Any:
    if not any(_is_mask(index) for index in indices):
        return indices
    places: list[Any] = []
    for index in indices:
        places += index.nonzero().unbind(dim=1) if _is_mask(index) else [index]
    return places


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
