"""Resampling whole clusters, for the bootstraps of `statistics`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[float] | NDArray[np.floating] | NDArray[np.integer]
MOST_AT_ONCE = 250_000
"""Most clusters drawn at once, in whole resamples."""


def cluster_sums(clusters: Sequence[str] | None, *columns: Numbers) -> list[NDArray[np.float64]]:
    """Sums of each column by cluster, in order of the clusters' names (of the values if `clusters` is None)."""
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    length = len(arrays[0]) if clusters is None else len(clusters)
    assert all(array.shape == (length,) and np.isfinite(array).all() for array in arrays)
    if clusters is None:
        order = np.lexsort(arrays)
        return [array[order] for array in arrays]
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    order = np.lexsort((*arrays, index))
    return [np.bincount(index[order], weights=array[order]).astype(np.float64) for array in arrays]


def crossed_sums(
    values: Numbers, raters: Sequence[str], items: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums and counts (R, I) of the values by rater and item, both in order of name."""
    array = np.asarray(values, dtype=np.float64)
    assert array.shape == (len(raters),) == (len(items),)
    assert np.isfinite(array).all()
    names_R, rater = np.unique(np.asarray(raters, dtype=str), return_inverse=True)
    names_I, item = np.unique(np.asarray(items, dtype=str), return_inverse=True)
    cell = rater * len(names_I) + item
    order = np.lexsort((array, cell))
    size = len(names_R) * len(names_I)
    sums = np.bincount(cell[order], weights=array[order], minlength=size).astype(np.float64)
    counts = np.bincount(cell, minlength=size).astype(np.float64)
    return sums.reshape(len(names_R), -1), counts.reshape(len(names_R), -1)


def resampled_sums(columns: Sequence[NDArray[np.float64]], num_resamples: int, seed: int) -> list[NDArray[np.float64]]:
    """Sums (R,) of each column (C,) over the clusters of each resample."""
    num_clusters = len(columns[0])
    blocks = draws(num_clusters, num_resamples, seed, max(1, MOST_AT_ONCE // num_clusters))
    sums = [[column[drawn_BC].sum(axis=1) for column in columns] for drawn_BC in blocks]
    return [np.concatenate(parts) for parts in zip(*sums, strict=True)]


def draws(num_clusters: int, num_resamples: int, seed: int, size: int) -> Iterator[NDArray[np.int64]]:
    """The clusters of each resample in blocks (B, C), B at most `size`, which doesn't change the draws."""
    rng = np.random.default_rng(seed)
    for start in range(0, num_resamples, size):
        yield rng.integers(num_clusters, size=(min(size, num_resamples - start), num_clusters))


def counts(drawn_BC: NDArray[np.int64], num_clusters: int) -> NDArray[np.float64]:
    """How often each cluster is in each resample, (B, C)."""
    cells = drawn_BC + num_clusters * np.arange(len(drawn_BC))[:, None]
    return np.bincount(cells.ravel(), minlength=drawn_BC.size).reshape(drawn_BC.shape).astype(np.float64)


def jackknifed(values: Sequence[float], groups: Sequence[Hashable], members: Sequence[str]) -> list[float]:
    """Pseudo-values (Tukey 1958) of means over pairs: `values[i]` is a file's mean over its pairs with the files of its
    group that belong to other members (all files of a voice that speak one text are one member).

    A file is in all of its own pairs and in one of every other file's, so the mean over files varies nearly twice as
    much as the mean of as many independent values. In a group of n members whose mean is u, a value v counts as
    v + (v - u) n / (n - 2); with fewer than three members as v.
    """
    parts: dict[Hashable, dict[str, list[float]]] = {}
    for value, group, member in zip(values, groups, members, strict=True):
        parts.setdefault(group, {}).setdefault(member, []).append(value)
    sizes = {group: len(each) for group, each in parts.items()}
    means = {
        group: sum(sum(sorted(each[name])) / len(each[name]) for name in sorted(each)) / len(each)
        for group, each in parts.items()
    }
    return [
        value + (value - means[group]) * sizes[group] / (sizes[group] - 2) if sizes[group] > 2 else value
        for value, group in zip(values, groups, strict=True)
    ]
