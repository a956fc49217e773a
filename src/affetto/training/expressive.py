"""The expressive base: one adapter over all emotions, which each emotion's own adapter may build on.

Its gate is 1 wherever theirs is. What is saved for an emotion is the sum of both as one LoRA, the ranks side by side,
so it loads on the untouched base like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

from affetto.adapters.bank import AdapterBank
from affetto.adapters.peft_files import WEIGHTS, insert_adapter, read_adapter, read_facts
from affetto.config import EXPRESSIVE, Config
from affetto.errors import CheckpointError
from affetto.files import hash_file
from affetto.folders import recover_folder
from affetto.model.base import Base


def lacks_expressive_base(config: Config) -> bool:
    """Whether the configuration asks for an expressive base whose training has yet to begin or to finish.

    An interrupted run leaves its best adapter so far, but without a frontier, which is measured at the end.
    """
    folder = recover_folder(config.expressive_folder)
    if not config.expressive_base or not folder.is_dir():
        return config.expressive_base
    facts = read_facts(folder)
    return bool(facts) and facts.get("frontier") is None


def add_expressive_base(bank: AdapterBank, config: Config, emotions: Sequence[str], base: Base) -> str | None:
    """Put the expressive base, frozen, into the bank if `emotions` build on it; returns the hash of its weights."""
    if not config.expressive_base or EXPRESSIVE in emotions:
        return None
    folder = config.expressive_folder
    if not folder.is_dir():
        raise CheckpointError(
            f"expressive_base is on, and there is none in {folder}: affetto train --emotion {EXPRESSIVE}"
        )
    insert_adapter(bank, EXPRESSIVE, read_adapter(folder), base.hash)
    for parameter in bank.parameters(EXPRESSIVE).values():
        parameter.requires_grad_(False)
    return hash_file(folder / WEIGHTS)


def own_gate(bank: AdapterBank, emotion: str) -> tuple[float, ...]:
    """The gate under which an adapter is trained: 1 for itself and the expressive base, 0 for every other."""
    return tuple(float(name in (emotion, EXPRESSIVE)) for name in bank.names)
