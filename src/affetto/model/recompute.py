"""Activation checkpointing (Chen et al. 2016) of a base's layers, with the forward pass's gates and masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from affetto.model.gates import GateSwitch
from affetto.model.spans import promised_again


def checkpoint_layers(parts: Iterable[Any], gates: GateSwitch) -> None:
    """Keep no activations inside the layers of transformers' models; the backward pass recomputes them.

    It applies in train mode only. In eval mode, as for the Fisher pass, nothing is computed twice.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _all_of(gates.again(), promised_again())

    for part in parts:
        part.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        # transformers makes the embeddings require gradients, which only reentrant checkpointing needs.
        part.disable_input_require_grads()
        for module in part.modules():
            if hasattr(module, "attention_dropout"):
                # Train mode would turn it on if a checkpoint's configuration sets it.
                module.attention_dropout = 0.0


@contextmanager
def _all_of(*blocks: AbstractContextManager[None]) -> Iterator[None]:
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block)
        yield
