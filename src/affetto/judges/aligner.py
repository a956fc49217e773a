"""Chooses the recogniser that times a clip's words, for bases whose text runs in parallel with their frames."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from affetto.codes.prepare import Prepared
from affetto.codes.timing import Recogniser
from affetto.judges.choice import OFF, default_judge, load_judge
from affetto.model.base import find_base
from affetto.model.beside import with_streams
from affetto.progress import say


def with_timed_words(
    prepared: Prepared, base_name: str, choices: Mapping[str, str], *, use_cached_only: bool = False
) -> Prepared:
    """`with_streams` with the recogniser of `find_aligner`, which is loaded only if a clip has no annotation."""
    import torch

    aligner = partial(find_aligner, choices, "cuda" if torch.cuda.is_available() else "cpu")
    return with_streams(prepared, find_base(base_name), aligner, use_cached_only=use_cached_only)


def find_aligner(choices: Mapping[str, str], device: str = "cpu") -> Recogniser:
    """The word judge of the configuration's `judges` if it has a CTC head; else the one that comes with affetto.

    Raises as `load_judge` does.
    """
    from affetto.judges.listeners import CtcListener

    if choices.get("words", OFF) != OFF:
        chosen = load_judge("words", choices["words"], device)
        if isinstance(chosen, CtcListener):
            return chosen
        say(f"{chosen.id} has no CTC head, so it can't time words: affetto's own recogniser does")
    own = default_judge("words", device)
    assert isinstance(own, CtcListener)
    return own
