"""Train, validation and test splits without leaks: no text in two splits and, on request, no speaker in two.

Acted corpora repeat their texts: RAVDESS has 2 sentences, CREMA-D 12, ESD says each of 350 in every emotion. A random
split of such clips measures memory. Speakers are identified by name alone, so corpora must not share names.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from affetto.audio.grouping import Group, allocate, connected, first_split
from affetto.errors import DataError, counted
from affetto.types import SPLITS, Clip, Problem

By = Literal["id", "text", "speaker", "audio"]
_EVERY = frozenset(SPLITS)
_WHERE = "splits"


def normalise_text(text: str) -> str:
    """A text in lower case without punctuation, so that spelling variants of one sentence are equal."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = re.sub(r"[\W_]+", " ", re.sub(r"['\u2019]", "", folded)).strip()
    return words or folded.strip()


def assign_splits(
    clips: Sequence[Clip], *, seed: int = 0, validation: float = 0.1, test: float = 0.1, by_speaker: bool = False
) -> tuple[list[Clip], list[Problem]]:
    """The clips in their order, each with a split, and the splits that couldn't be kept apart or filled.

    Splits that clips already have stay. `validation` and `test` are shares of the clips of each emotion, general
    speech (emotion None) counting as one; 0 leaves that split out. Context turns go to the split of the clip that hears
    them. The result depends only on the clips' contents and `seed`, not on their order.

    Few texts: an emotion with two texts trains on one; validation and test share the other and are kept apart by
    speaker (with one speaker it is all validation). So RAVDESS trains on half of its clips. With one text all clips
    are for training. Each of these is reported.

    `by_speaker`: speakers are split like texts, and a clip is used if its speaker's and its text's splits agree. If
    speakers say the same texts, the other clips can't be used without a leak: they keep split None and are counted in
    a problem. An emotion with two speakers trains on one; validation and test share the other, kept apart by text. An
    emotion's only speaker, if heard in no other emotion, is split by text alone. Both are reported.

    Problems concern the whole set (`where` is "splits"): split-overlap, missing-split, unplaced. Raises `DataError` for
    repeated ids and impossible shares.
    """
    shares = _shares(validation, test)
    repeated = [name for name, count in Counter(clip.id for clip in clips).items() if count > 1]
    if repeated:
        raise DataError(f"clip ids must be unique; repeated: {', '.join(sorted(repeated)[:10])}")
    by_text = {clip.id: _EVERY for clip in clips}
    by_voice = dict(by_text)
    if by_speaker:
        by_voice = _allowed(clips, _speaker_keys, shares, f"{seed}/speaker", single=_EVERY, narrow=by_text)
    by_text = _allowed(clips, _text_keys, shares, f"{seed}/text", single=frozenset(SPLITS[:1]), narrow=by_voice)
    allowed = {clip.id: by_text[clip.id] & by_voice[clip.id] for clip in clips}
    # A clip that may be in training among others has a text that leaks already: `first_split` puts it there.
    contested = [clip for clip in clips if len(allowed[clip.id]) > 1 and SPLITS[0] not in allowed[clip.id]]
    if contested:
        held = {split: share for split, share in shares.items() if split != SPLITS[0]} or dict.fromkeys(SPLITS[1:], 0.5)
        single = frozenset([first_split(held)])
        keys = _both_keys if by_speaker else _speaker_keys
        allowed |= _allowed(contested, keys, held, f"{seed}/held", single=single, narrow=allowed)
    placed = [
        clip if clip.split else replace(clip, split=first_split(allowed[clip.id]) if allowed[clip.id] else None)
        for clip in clips
    ]
    problems = _gaps(clips, placed, tuple(shares)) + overlaps(placed, by_speaker=by_speaker)
    return placed, problems


def overlaps(placed: Sequence[Clip], *, by_speaker: bool) -> list[Problem]:
    """Pairs of splits that share texts, and with `by_speaker` speakers; clips without a split don't count."""
    sets = {split: [clip for clip in placed if clip.split == split] for split in SPLITS}
    problems = []
    for by in ("text", "speaker") if by_speaker else ("text",):
        for first, second, shared in _shared(sets, by):
            listed = ", ".join(repr(value) for value in shared[:3]) + (", …" if len(shared) > 3 else "")
            share = f"{first} and {second} share {counted(len(shared), by)} ({listed})"
            message = f"{share}: there are too few {by}s, or the clips came with these splits"
            problems.append(Problem(_WHERE, "split-overlap", message))
    return problems


def assert_disjoint(clips_by_split: Mapping[str, Iterable[Clip]], by: By) -> None:
    """Raise a `DataError` that names what two of the sets share, if they share an id, text, speaker or sound file.

    Texts are compared by `normalise_text`; clips without a text share none.
    """
    for first, second, shared in _shared(clips_by_split, by):
        listed = ", ".join(repr(value) for value in shared[:5]) + (", …" if len(shared) > 5 else "")
        raise DataError(f"{first} and {second} share {counted(len(shared), by)}: {listed}; split them apart")


def _shares(validation: float, test: float) -> dict[str, float]:
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise DataError(
            f"validation {validation} and test {test} must be shares from 0 that leave some clips for training"
        )
    return {
        split: share
        for split, share in zip(SPLITS, (1 - validation - test, validation, test), strict=True)
        if share > 0
    }


def _allowed(
    clips: Sequence[Clip],
    keys: Callable[[Clip], Iterable[str]],
    shares: Mapping[str, float],
    seed: str,
    *,
    single: frozenset[str],
    narrow: Mapping[str, frozenset[str]],
) -> dict[str, frozenset[str]]:
    """Allowed splits by clip id. A clip's own split binds its group; so does `narrow` if it leaves any split."""
    groups = [_bound(group, narrow, frozenset(shares)) for group in connected(clips, keys)]
    total = sum(shares.values())
    plan = allocate(groups, {split: share / total for split, share in shares.items()}, seed, single)
    return {clip.id: plan[group.name] for group in groups for clip in group.clips}


def _bound(group: Group, narrow: Mapping[str, frozenset[str]], splits: frozenset[str]) -> Group:
    given = frozenset(clip.split for clip in group.clips if clip.split)
    common = _EVERY.intersection(*(narrow[clip.id] for clip in group.clips))
    if given:
        return replace(group, allowed=given)
    return replace(group, allowed=common if common and not common >= splits else None)


def _text_keys(clip: Clip) -> list[str]:
    words = normalise_text(clip.text) if clip.text else ""
    said = [f"text:{words}"] if words else []
    # Groups are named and drawn by their smallest key, which must not be a path: paths differ between machines.
    # Speakers on separate channels talk with each other: all that is cut from one file is one conversation.
    sound = str(clip.audio) if clip.channel is not None else f"{clip.audio}:{clip.start_s}:{clip.end_s}"
    return [*said, f"~sound:{sound}", *_context_keys(clip)]


def _speaker_keys(clip: Clip) -> list[str]:
    return [f"speaker:{clip.speaker}", *_context_keys(clip)]


def _both_keys(clip: Clip) -> list[str]:
    return [*_speaker_keys(clip), *_text_keys(clip)]


def _context_keys(clip: Clip) -> list[str]:
    return [f"turn:{name}" for name in (clip.id, *clip.context)]


def _gaps(clips: Sequence[Clip], placed: Sequence[Clip], splits: Sequence[str]) -> list[Problem]:
    """Emotions that lack a split although some of their clips came without one, and clips left without a split."""
    problems = []
    for emotion in sorted({clip.emotion or "" for clip in clips if clip.split is None}):
        inside = [clip for clip in placed if (clip.emotion or "") == emotion]
        missing = [split for split in splits if not any(clip.split == split for clip in inside)]
        if missing:
            num_texts = len({normalise_text(clip.text) for clip in inside if clip.text})
            num_speakers = len({clip.speaker for clip in inside})
            message = (
                f"{emotion or 'general speech'} has no {' and no '.join(missing)} clips: "
                f"{counted(len(inside), 'clip')} with {counted(num_texts, 'text')} and "
                f"{counted(num_speakers, 'speaker')} can't be split further; add clips of other texts"
            )
            problems.append(Problem(_WHERE, "missing-split", message))
    num_left = sum(clip.split is None for clip in placed)
    if num_left:
        are = "is" if num_left == 1 else "are"
        message = (
            f"{num_left} of {counted(len(placed), 'clip')} {are} not used: their speaker is in one split and their "
            "text in another; split without by_speaker to use them"
        )
        problems.append(Problem(_WHERE, "unplaced", message))
    return problems


def _shared(sets: Mapping[str, Iterable[Clip]], by: str) -> list[tuple[str, str, list[str]]]:
    """(first, second, what they share) for each pair of sets that share something."""
    values = {name: {value for clip in clips if (value := _value(clip, by))} for name, clips in sets.items()}
    names = list(values)
    pairs = [(first, second) for index, first in enumerate(names) for second in names[index + 1 :]]
    shared = ((first, second, sorted(values[first] & values[second])) for first, second in pairs)
    return [(first, second, common) for first, second, common in shared if common]


def _value(clip: Clip, by: str) -> str:
    if by == "text":
        return normalise_text(clip.text) if clip.text else ""
    return {"id": clip.id, "speaker": clip.speaker, "audio": str(clip.audio)}[by]
