"""A hook that records a layer's input and the gradient at its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Watch:
    """A forward hook for one pass. Decoder layers in C, inside which hooks don't run, look for it and call `tell`."""

    def __init__(self, name: str, tell: Callable[[Tensor, Tensor], None]) -> None:
        """`tell` gets the layer's input and the gradient at its output, of equal shape except the last dimension."""
        self.tell = tell
        self._name, self._has_begun = name, False

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        """The forward hook."""
        self.begin()
        # Nothing in a frozen base requires gradients, so the first watched layers start the graph.
        output = output if output.requires_grad else output.detach().requires_grad_()
        held = [inputs[0].detach()]
        # Popped, since the graph keeps this function longer than the input is needed.
        output.register_hook(lambda gradient: self.tell(held.pop(), gradient.detach()))
        return output

    def begin(self) -> None:
        """Note that the layer runs. A second run (weight sharing, checkpointing) would overwrite the first's values."""
        assert not self._has_begun, f"{self._name} ran twice in one pass"
        self._has_begun = True


def watch_of(layer: nn.Module) -> Watch | None:
    """The layer's watch, if it has one."""
    return next((hook for hook in layer._forward_hooks.values() if isinstance(hook, Watch)), None)
