"""Forced alignment: which of a recogniser's frames hear each token of a known text.

A recogniser with a CTC head gives every frame a distribution over its tokens and a blank. A path that spells the text
stays on each token for one frame or more, may pass any number of blanks before, between and after tokens, and must
pass one between two equal tokens (Graves et al. 2006, "Connectionist temporal classification"). The Viterbi algorithm,
over the text's tokens with a blank in every gap, finds the most likely of these paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Alignment:
    """The most likely path through a text's L tokens."""

    spans_L2: NDArray[np.int64]
    """First frame of each token, and the one after its last."""
    log_prob: float
    """Log-probability of the whole path, in nats."""


def align(log_probs_TV: NDArray[np.floating], tokens: Sequence[int], blank: int) -> Alignment | None:
    """The most likely path of T frames that spells `tokens` (at least one); None if there is none.

    There is none with fewer frames than tokens and blanks between equal neighbours, or if every path has probability 0.
    """
    states_S = np.full(2 * len(tokens) + 1, blank, dtype=np.int64)
    states_S[1::2] = tokens
    # A path may skip the blank between two tokens that differ.
    may_skip_S = np.zeros(len(states_S), dtype=bool)
    may_skip_S[3::2] = states_S[3::2] != states_S[1:-2:2]
    emitted_TS = np.asarray(log_probs_TV, dtype=np.float64)[:, states_S]
    steps_TS = np.zeros(emitted_TS.shape, dtype=np.int8)
    # Before the first frame a path is on the first blank; it may stay there or go on to a token.
    best_S = np.full(len(states_S), -np.inf)
    best_S[0] = 0.0
    before_3S = np.full((3, len(states_S)), -np.inf)
    for frame, emitted_S in enumerate(emitted_TS):
        before_3S[0] = best_S
        before_3S[1, 1:] = best_S[:-1]
        before_3S[2, 2:] = np.where(may_skip_S[2:], best_S[:-2], -np.inf)
        steps_TS[frame] = before_3S.argmax(axis=0)
        best_S = before_3S.max(axis=0) + emitted_S
    state = len(states_S) - (1 if best_S[-1] >= best_S[-2] else 2)
    log_prob = float(best_S[state])
    if log_prob == -np.inf or not len(log_probs_TV):
        return None
    path_T = np.empty(len(log_probs_TV), dtype=np.int64)
    for frame in reversed(range(len(path_T))):
        path_T[frame] = state
        state -= int(steps_TS[frame, state])
    places_L = 2 * np.arange(len(tokens)) + 1
    spans_L2 = np.stack([np.searchsorted(path_T, places_L, "left"), np.searchsorted(path_T, places_L, "right")], axis=1)
    return Alignment(spans_L2.astype(np.int64), log_prob)
