"""Activation checkpointing (Chen et al. 2016) of a base's layers, under the gates and masks of their own forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from affetto.model.gates import GateSwitch
from affetto.model.spans import promised_again


def checkpoint_layers(parts: Iterable[Any], gates: GateSwitch) -> None:
    """Keep no activations inside the layers of transformers' models: backward computes them again.

    It works while the network is in train mode. In eval mode, as for the Fisher pass, nothing is computed twice.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _all_of(gates.again(), promised_again())

    for part in parts:
        part.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        # transformers makes the embeddings ask for gradients, which only reentrant checkpointing needs.
        part.disable_input_require_grads()
        for module in part.modules():
            if hasattr(module, "attention_dropout"):
                # Train mode would turn it on, where a checkpoint asks for it.
                module.attention_dropout = 0.0


@contextmanager
def _all_of(*blocks: AbstractContextManager[None]) -> Iterator[None]:
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block)
        yield
