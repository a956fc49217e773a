"""Groups of clips that must stay together, and the splits that each may go to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from affetto.files import hash_text
from affetto.types import SPLITS, Clip

_ATTEMPTS = 20


@dataclass(frozen=True)
class Group:
    """Clips that can't be separated."""

    name: str
    """The smallest of its keys, which doesn't depend on the order of the clips."""
    clips: tuple[Clip, ...]
    counts: Mapping[str, int]
    """Number of clips per stratum, which is an emotion or "" for general speech."""
    allowed: frozenset[str] | None = None
    """Splits that the group may go to, if that is already decided."""


def connected(clips: Sequence[Clip], keys: Callable[[Clip], Iterable[str]]) -> list[Group]:
    """Groups of clips that share a key, directly or through other clips; every clip needs a key."""
    links: dict[str, str] = {}

    def root(key: str) -> str:
        links.setdefault(key, key)
        while links[key] != key:
            links[key] = links[links[key]]
            key = links[key]
        return key

    clip_keys = {clip.id: list(keys(clip)) for clip in clips}
    for first, *others in clip_keys.values():
        for other in others:
            smaller, larger = sorted((root(first), root(other)))
            links[larger] = smaller
    by_root: dict[str, list[Clip]] = {}
    for clip in clips:
        by_root.setdefault(root(clip_keys[clip.id][0]), []).append(clip)
    return [
        Group(name, tuple(members), Counter(clip.emotion or "" for clip in members))
        for name, members in sorted(by_root.items())
    ]


def allocate(
    groups: Sequence[Group], shares: Mapping[str, float], seed: Hashable, single: frozenset[str]
) -> dict[str, frozenset[str]]:
    """Allowed splits by group name, so that each stratum has about `shares` of its clips in each split.

    The first split of `shares` takes what the others leave. A stratum with fewer groups than splits gives the first
    split its largest group; the rest may go to any other split. A group that is alone in all its strata gets `single`.
    Several orders are tried, because strata share groups; the one with the fewest gaps wins.
    """
    best: dict[str, frozenset[str]] = {}
    fewest = -1
    for attempt in range(_ATTEMPTS):
        plan = _allocate_once(groups, shares, f"{seed}/{attempt}", single)
        gaps = _count_gaps(groups, plan, shares)
        if fewest < 0 or gaps < fewest:
            best, fewest = plan, gaps
        if gaps == 0:
            break
    return best


def _allocate_once(
    groups: Sequence[Group], shares: Mapping[str, float], salt: str, single: frozenset[str]
) -> dict[str, frozenset[str]]:
    plan = {group.name: group.allowed for group in groups if group.allowed}
    order = {group.name: hash_text(salt, group.name) for group in groups}
    strata = _strata(groups)
    for group in groups:
        if all(len(strata[stratum]) == 1 for stratum in group.counts):
            plan.setdefault(group.name, single)
    for stratum, members in sorted(strata.items(), key=lambda item: (len(item[1]), item[0])):
        shuffled = sorted(members, key=lambda group: order[group.name])
        if len(members) < len(shares):
            _share_scarce(shuffled, stratum, plan, list(shares))
        else:
            _share_plenty(shuffled, stratum, plan, shares)
    return plan


def _share_scarce(members: list[Group], stratum: str, plan: dict[str, frozenset[str]], splits: list[str]) -> None:
    """Gives one group to the first split; the others may go to any other split."""
    free = [group for group in members if group.name not in plan]
    has_first = any(plan.get(group.name) == frozenset(splits[:1]) for group in members)
    if free and not has_first:
        largest = max(free, key=lambda group: group.counts[stratum])
        plan[largest.name] = frozenset(splits[:1])
        free.remove(largest)
    for group in free:
        plan[group.name] = frozenset(splits[1:])


def _share_plenty(
    members: list[Group], stratum: str, plan: dict[str, frozenset[str]], shares: Mapping[str, float]
) -> None:
    first, *held = shares
    total = sum(group.counts[stratum] for group in members)
    free = [group for group in members if group.name not in plan]
    for index, split in enumerate(held):
        reserve = sum(not _has(members, plan, later) for later in (*held[index + 1 :], first))
        filled = sum(
            group.counts[stratum] / len(plan[group.name]) for group in members if split in plan.get(group.name, ())
        )
        for group in list(free):
            fits = filled + group.counts[stratum] / 2 <= shares[split] * total
            if fits and len(free) > reserve:
                plan[group.name] = frozenset({split})
                free.remove(group)
                filled += group.counts[stratum]
        if not _has(members, plan, split) and len(free) > reserve:
            smallest = min(free, key=lambda group: group.counts[stratum])
            plan[smallest.name] = frozenset({split})
            free.remove(smallest)
    for group in free:
        plan[group.name] = frozenset({first})


def _has(members: Iterable[Group], plan: Mapping[str, frozenset[str]], split: str) -> bool:
    return any(split in plan.get(group.name, ()) for group in members)


def _strata(groups: Iterable[Group]) -> dict[str, list[Group]]:
    strata: dict[str, list[Group]] = {}
    for group in groups:
        for stratum in group.counts:
            strata.setdefault(stratum, []).append(group)
    return strata


def _count_gaps(groups: Sequence[Group], plan: Mapping[str, frozenset[str]], shares: Mapping[str, float]) -> int:
    """Number of splits that a stratum lacks although it has enough groups."""
    return sum(
        not _has(members, plan, split)
        for members in _strata(groups).values()
        for split in shares
        if len(members) >= len(shares)
    )


def first_split(splits: Iterable[str]) -> str:
    """The split that comes first in `SPLITS`."""
    return min(splits, key=SPLITS.index)
