"""Takes: a sentence is said several times, and the take that is most like the others is kept.

A language model that samples speech loses words now and then. What one take has lost the others mostly have: errors
differ, while correct speech is alike. So every take is compared with every other, and the one with the smallest mean
distance is kept: minimum Bayes risk decoding (Kumar & Byrne 2004; with a model's own samples Eikema & Aziz 2022). The
risk is the mel-cepstral distance (Kubichek 1993) of two takes along their best alignment (dynamic time warping in its
symmetric form, Sakoe & Chiba 1978), after subtracting each take's mean cepstrum.

With an emotion some errors are so common that most takes have them. Softer speech has fewer, and nearly the same
prosody, so half as many takes again are said at `SOFTER` of the intensity. They are witnesses: only compared with,
never kept.

Neither the text nor a recogniser takes part in the choice, so a recogniser's verdict on the result remains evidence.
Nor does the choice favour plain speech, as likelihoods do: the emotion is among what most takes have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from affetto.speak.requests import Request, Spoken
from affetto.types import Codec

FEWEST = 3
"""Takes needed for a choice: of two, neither is more like the other."""
SOFTER = 0.85
"""The witnesses' share of the intensity."""
_TAKES_PER_WITNESS = 2
_MOST_CELLS = 2**24
"""Most pairs of positions to compare at once."""
_SEED_STRIDE = 15_485_863
"""Distance between the seeds of successive takes: a large prime, so that sentences with adjacent seeds share none."""

FloatArray = NDArray[np.floating]


def num_witnesses(request: Request) -> int:
    """The number of softer takes to compare with: none for the base's speech, or if there is no choice to make."""
    return request.takes // _TAKES_PER_WITNESS if request.takes >= FEWEST and any(request.gate) else 0


def best_takes(codec: Codec, requests: Sequence[Request], say: Callable[[list[Request]], list[Spoken]]) -> list[Spoken]:
    """The best take of each request; the first of its takes has the request's own seed.

    `say` speaks requests of one take each: first all takes, then all witnesses. A take that said nothing, or that its
    cap ended, is kept only if all are like that; such a witness isn't compared with.
    """
    takes = iter(say([_nth(request, take) for request in requests for take in range(request.takes)]))
    softer = [
        _nth(replace(request, gate=tuple(SOFTER * intensity for intensity in request.gate)), request.takes + number)
        for request in requests
        for number in range(num_witnesses(request))
    ]
    witnesses = iter(say(softer) if softer else [])
    return [
        _best(codec, [*islice(takes, request.takes)], [*islice(witnesses, num_witnesses(request))])
        for request in requests
    ]


def _nth(request: Request, take: int) -> Request:
    return replace(request, takes=1, seed=request.seed + take * _SEED_STRIDE)


def _best(codec: Codec, takes: Sequence[Spoken], witnesses: Sequence[Spoken]) -> Spoken:
    said = [take for take in takes if len(take.codes_TK)]
    compared = [take for take in said if not take.hit_cap] or said or takes[:1]
    if len(compared) < FEWEST:
        return compared[0]
    complete = [take for take in witnesses if len(take.codes_TK) and not take.hit_cap]
    distances = take_distances([codec.cepstra(take.codes_TK) for take in (*compared, *complete)])
    # The first of several equals: greedy takes are all the same.
    return compared[int(distances.sum(1)[: len(compared)].argmin())]


def take_distances(takes: Sequence[FloatArray]) -> NDArray[np.float64]:
    """Pairwise distances (N, N) of cepstra (S, C), in their unit, per position of both takes."""
    centred = [np.asarray(take - take.mean(0), dtype=np.float32) for take in takes]
    pairs = list(combinations(range(len(takes)), 2))
    at_once = max(1, _MOST_CELLS // max(map(len, takes)) ** 2)
    distances = np.zeros((len(takes), len(takes)))
    for start in range(0, len(pairs), at_once):
        part = pairs[start : start + at_once]
        warped = warped_distances([_pairwise(centred[i], centred[j]) for i, j in part])
        for (i, j), distance in zip(part, warped, strict=True):
            distances[i, j] = distances[j, i] = distance
    return distances


def _pairwise(one_SC: FloatArray, other_TC: FloatArray) -> FloatArray:
    squares = (one_SC**2).sum(1)[:, None] + (other_TC**2).sum(1) - 2 * one_SC @ other_TC.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def warped_distances(pairs: Sequence[FloatArray]) -> list[float]:
    """For each table (S, T) of distances the smallest sum along a path from its first cell to its last.

    A step advances by one position in either take, or in both, which counts twice. The sum is divided by S + T.
    """
    num_s, num_t = max(len(table) for table in pairs), max(table.shape[1] for table in pairs)
    padded = np.zeros((len(pairs), num_s, num_t), dtype=np.float32)
    for place, table in enumerate(pairs):
        padded[place, : len(table), : table.shape[1]] = table
    flat = padded.reshape(len(pairs), -1)
    ends = [len(table) + table.shape[1] - 2 for table in pairs]
    # Cells with the same s + t don't depend on each other, so a diagonal is computed at once. Index s + 1 is that of
    # position s; index 0, before the first position, stays infinitely far.
    earlier, previous = (np.full((len(pairs), num_s + 1), np.inf, dtype=np.float32) for _ in range(2))
    previous[:, 1] = 2 * flat[:, 0]
    distances = [0.0] * len(pairs)
    for total in range(num_s + num_t - 1):
        if total:
            low, high = max(0, total - num_t + 1), min(total, num_s - 1) + 1
            costs = flat[:, low * num_t + total - low : (high - 1) * num_t + total - high + 2 : num_t - 1 or 1]
            current = np.full_like(previous, np.inf)
            current[:, low + 1 : high + 1] = np.minimum(
                np.minimum(previous[:, low + 1 : high + 1], previous[:, low:high]) + costs,
                earlier[:, low:high] + 2 * costs,
            )
            earlier, previous = previous, current
        for place in [place for place, end in enumerate(ends) if end == total]:
            distances[place] = float(previous[place, len(pairs[place])]) / (total + 2)
    return distances
