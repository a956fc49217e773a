"""Forced alignment against all paths there are, and against what an alignment must be."""

from __future__ import annotations

from itertools import groupby, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.codes.alignment import align

BLANK = 0


def posteriors(frames: int, size: int, seed: int) -> np.ndarray:
    return np.log(np.random.default_rng(seed).dirichlet(np.full(size, 0.5), frames))


def spelled(path: tuple[int, ...]) -> list[int]:
    """What a path says: repeats and blanks dropped, as CTC defines it."""
    return [token for token, _ in groupby(path) if token != BLANK]


def by_enumeration(log_probs_TV: np.ndarray, tokens: list[int]) -> tuple[float, tuple[int, ...]]:
    """The best of all V^T paths that spell `tokens`."""
    frames, size = log_probs_TV.shape
    best = (-np.inf, ())
    for path in product(range(size), repeat=frames):
        if spelled(path) == tokens:
            best = max(best, (float(log_probs_TV[range(frames), path].sum()), path))
    return best


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 10**6))
def test_no_path_is_more_likely(frames: int, tokens: list[int], seed: int) -> None:
    log_probs_TV = posteriors(frames, 4, seed)
    log_prob, path = by_enumeration(log_probs_TV, tokens)
    found = align(log_probs_TV, tokens, BLANK)
    if found is None:
        assert log_prob == -np.inf
        repeats = sum(one == other for one, other in pairwise(tokens))
        assert frames < len(tokens) + repeats
        return
    assert found.log_prob == pytest.approx(log_prob)
    mine = np.full(frames, BLANK)
    for token, (first, end) in zip(tokens, found.spans_L2, strict=True):
        mine[first:end] = token
    assert mine.tolist() == list(path)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 10**6))
def test_tokens_come_in_order_and_each_is_heard(tokens: list[int], seed: int) -> None:
    tokens = [token + 1 for token in tokens]
    found = align(posteriors(80, 7, seed), tokens, BLANK)
    assert found is not None
    first_L, end_L = found.spans_L2.T
    assert (end_L > first_L).all()
    assert (first_L[1:] >= end_L[:-1]).all()
    assert first_L[0] >= 0
    assert end_L[-1] <= 80
    for place, (one, other) in enumerate(pairwise(tokens)):
        assert one != other or first_L[place + 1] > end_L[place], "equal neighbours need a blank between them"


def test_posteriors_that_know_their_path_are_followed() -> None:
    path = [0, 0, 2, 2, 0, 2, 3, 3, 0, 1, 0, 0]
    log_probs_TV = np.full((len(path), 4), np.log(0.02))
    log_probs_TV[range(len(path)), path] = np.log(0.94)
    found = align(log_probs_TV, [2, 2, 3, 1], BLANK)
    assert found is not None
    assert found.spans_L2.tolist() == [[2, 4], [5, 6], [6, 8], [9, 10]]
    assert found.log_prob == pytest.approx(12 * np.log(0.94))


@pytest.mark.parametrize(("frames", "tokens"), [(2, [1, 2, 3]), (3, [1, 1, 2]), (0, [1])])
def test_more_tokens_than_frames(frames: int, tokens: list[int]) -> None:
    assert align(posteriors(frames, 4, 0), tokens, BLANK) is None


def test_a_token_that_is_nowhere_possible() -> None:
    log_probs_TV = posteriors(6, 4, 0)
    log_probs_TV[:, 2] = -np.inf
    assert align(log_probs_TV, [1, 2], BLANK) is None
    assert align(log_probs_TV, [1, 3], BLANK) is not None


def test_a_long_text() -> None:
    tokens = [1 + place % 3 for place in range(400)]
    path = [token for token in tokens for token in (token, BLANK)]
    log_probs_TV = np.full((len(path), 4), np.log(0.02))
    log_probs_TV[range(len(path)), path] = np.log(0.94)
    found = align(log_probs_TV, tokens, BLANK)
    assert found is not None
    assert found.spans_L2[:, 0].tolist() == list(range(0, 800, 2))
    assert found.log_prob == pytest.approx(800 * np.log(0.94))
