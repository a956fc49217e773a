"""`affetto prepare`: sound files to checked, split and coded clips. All is cached; a second run computes nothing."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affetto.audio.checks import check_clips, good_clips, problem_table
from affetto.audio.corpora import load_clips
from affetto.audio.labels import KNOWN_LABELS
from affetto.audio.manifest import broken_context
from affetto.audio.sound import read_clip, sound_info
from affetto.audio.speakers import speaker_numbers
from affetto.audio.splits import assign_splits
from affetto.codes.cache import CodeCache
from affetto.codes.codec import codec_hash
from affetto.codes.silence import SILENT_FRAMES, code_silence, save_silence, silence_path
from affetto.codes.timing import Beside, Word
from affetto.codes.workers import coders, is_vocoder, told
from affetto.errors import DataError, counted
from affetto.file_hashes import HashMemory
from affetto.files import cache_root, hash_text
from affetto.progress import console, progress
from affetto.types import BatchCodec, Clip, Codec, Problem

_SHARD_CLIPS = 256
_WORK_CLIPS = 16
"""Clips that a worker process gets at once."""
_PILE_S = 600.0
"""Sound in memory at once, to be coded in batches of clips of similar length: some 60 MB."""
_Coded = tuple[str, NDArray[np.int64]]
"""Clip id and codes (T, K)."""


@dataclass(frozen=True)
class Prepared:
    """Clips that can be trained on, and their codes."""

    clips: tuple[Clip, ...]
    problems: tuple[Problem, ...]
    """All problems, warnings included."""
    warnings: tuple[Problem, ...]
    """The problems that exclude no clip: those of the splits, and corrected labels."""
    speakers: Mapping[str, int]
    """The base's speaker number by speaker name; the same whichever emotions are prepared."""
    keys: Mapping[str, str]
    """Code-cache key by clip id."""
    cache: CodeCache
    is_checked: bool = True
    """False if unusable clips were skipped without being checked."""
    words: Mapping[str, tuple[Word, ...]] = field(default_factory=dict)
    """When each word is said, by clip id; only for bases that listen while they speak."""
    user_keys: Mapping[str, str] = field(default_factory=dict)
    """Code-cache key of the other speaker, by the id of clips that have one."""
    labels: tuple[str, ...] = ()
    """All emotion labels of the sources' clips, prepared or not; sorted."""

    @property
    def num_bad(self) -> int:
        """Number of clips or rows that were left out; warnings don't count."""
        return len({problem.where for problem in {*self.problems} - {*self.warnings}})

    def codes(self, clip: Clip) -> NDArray[np.int16]:
        """Codes (T, K) of a clip."""
        return self.cache[self.keys[clip.id]]

    def beside(self, clip: Clip) -> Beside | None:
        """The streams that run in parallel with a clip's codes; None if they aren't known."""
        if clip.id not in self.words:
            return None
        user = self.user_keys.get(clip.id)
        return Beside(self.words[clip.id], None if user is None else self.cache[user])

    def num_frames(self) -> dict[str, int]:
        """Length of every clip in frames."""
        return {clip.id: self.cache.num_frames(self.keys[clip.id]) for clip in self.clips}

    def select(self, emotion: str | None, split: str) -> list[Clip]:
        """Clips of one emotion (None is general speech) and split that have a text."""
        return [
            clip for clip in self.clips if clip.emotion == emotion and clip.split == split and clip.text is not None
        ]


def prepare(
    sources: Sequence[Path],
    base_folder: Path,
    *,
    emotions: Sequence[str],
    only: Sequence[str] | None = None,
    seed: int = 0,
    by_speaker: bool = False,
    workers: int = 0,
    use_cached_only: bool = False,
    use_general: bool = True,
    needs_silence: bool = False,
) -> Prepared:
    """Load, check, split and code the clips of `sources`.

    `emotions` are the configured names; `only` restricts coding to some of them and general speech. Splits are made
    from all clips, so they don't depend on what is trained; `by_speaker` keeps speakers apart as well as texts. Clips
    with a problem are left out and listed; whether that stops the run is the caller's choice. `use_cached_only` neither
    checks nor codes: clips that aren't in the cache are left out silently. Without `use_general` clips without emotion
    are left out, except those that others hear as context. With `needs_silence` silence is coded too. A network codes
    in a separate process, which has ended when this returns (`codes.workers`). Raises `DataError` if no clip is left,
    after printing a table of all problems.
    """
    clips, problems = load_clips(sources, emotions=emotions)
    labels = {*KNOWN_LABELS, *emotions}
    speakers = speaker_numbers({clip.speaker for clip in clips})
    clips, warnings = assign_splits(clips, seed=seed, by_speaker=by_speaker)
    all_labels = tuple(sorted({clip.emotion for clip in clips if clip.emotion}))
    unwanted: set[str | None] = set() if only is None else {*(labels - {*only})}
    if not use_general:
        unwanted.add(None)
    clips = _without(clips, unwanted)
    warnings = [warning for warning in warnings if not _is_about(warning, unwanted)]
    cache = CodeCache(cache_root() / "codes" / codec_hash(base_folder)[:24])
    keys = _keys(clips)
    is_cached = {clip.id: clip.id in keys and keys[clip.id] in cache for clip in clips}
    if use_cached_only:
        usable = [clip for clip in clips if is_cached[clip.id] and clip.emotion in (None, *labels)]
        broken = broken_context({clip.id: clip for clip in usable})
        clips, problems = [clip for clip in usable if clip.id not in broken], []
    else:
        unseen = [clip for clip in clips if not is_cached[clip.id] or clip.emotion not in (None, *labels)]
        problems = [*problems, *_check(clips, unseen, sorted(labels), workers)]
        clips = good_clips(clips, problems)
    clips = [clip for clip in clips if clip.split is not None]
    if not clips:
        raise _no_clip_error(sources, problems, use_cached_only)
    uncoded = [clip for clip in clips if not is_cached[clip.id]]
    _encode_all(uncoded, keys, cache, base_folder, workers=workers, needs_silence=needs_silence)
    warnings = [*(problem for problem in problems if problem.costs_no_clip), *warnings]
    is_warned = {*warnings}
    problems = [problem for problem in problems if problem not in is_warned]
    return Prepared(
        tuple(clips), (*problems, *warnings), tuple(warnings), speakers, keys, cache,
        is_checked=not use_cached_only, labels=all_labels,
    )  # fmt: skip


def _without(clips: Sequence[Clip], emotions: Collection[str | None]) -> list[Clip]:
    """`clips` without those of `emotions` (None is general speech), except turns that others hear as context."""
    by_id = {clip.id: clip for clip in clips}
    wanted = {clip.id for clip in clips if clip.emotion not in emotions}
    waiting = list(wanted)
    while waiting:
        new = {name for name in by_id[waiting.pop()].context if name in by_id and name not in wanted}
        wanted |= new
        waiting += new
    return [clip for clip in clips if clip.id in wanted]


def _is_about(warning: Problem, emotions: Collection[str | None]) -> bool:
    """Whether a warning of `assign_splits` is only about one of `emotions`."""
    about = {emotion or "general speech" for emotion in emotions}
    return warning.kind == "missing-split" and warning.message.partition(" has no ")[0] in about


def _check(clips: Sequence[Clip], unseen: Sequence[Clip], labels: Sequence[str], workers: int) -> list[Problem]:
    """Problems of the clips that aren't in the cache, and of all clips that hear a bad one as context."""
    without_context = [replace(clip, context=()) for clip in unseen]
    problems = check_clips(without_context, emotions=labels, workers=workers or os.cpu_count() or 1)
    broken = broken_context({clip.id: clip for clip in clips}, {problem.where for problem in problems})
    return [*problems, *(Problem(name, "bad-context", message) for name, message in broken.items())]


def _no_clip_error(sources: Sequence[Path], problems: Sequence[Problem], use_cached_only: bool) -> DataError:
    """The error for when no clip is left; prints a table of all problems first."""
    where = ", ".join(map(str, sources))
    if use_cached_only:
        return DataError(f"nothing in {where} is prepared for this base: run once without --skip-datasets")
    if not problems:
        return DataError(f"no clip in {where} has one of the wanted emotions or is general speech")
    console.print(problem_table(problems))
    return DataError(f"no usable clip in {where}: {counted(len(problems), 'problem')} (table above)")


def _keys(clips: Sequence[Clip]) -> dict[str, str]:
    """Cache key of every clip whose file exists, from contents, segment and text. See `HashMemory`.

    The text doesn't affect the codes, but checks compare it with the sound: a clip with a new text is checked again.
    """
    keys = {}
    with HashMemory("sounds.json") as hash_of:
        for clip in clips:
            try:
                content = hash_of(clip.audio)
            except OSError:
                continue
            channel = [] if clip.channel is None else [str(clip.channel)]
            keys[clip.id] = hash_text(content, str(clip.start_s), str(clip.end_s), clip.text or "", *channel)
    return keys


def _encode_all(
    clips: Sequence[Clip],
    keys: Mapping[str, str],
    cache: CodeCache,
    base_folder: Path,
    *,
    workers: int,
    needs_silence: bool,
) -> None:
    """Code `clips` shard by shard, and silence; a shard that is written stays, even if the process dies.

    No process is started if there is nothing to code.
    """
    needs_silence = needs_silence and not silence_path(base_folder).is_file()
    if not clips and not needs_silence:
        return
    size = _WORK_CLIPS if is_vocoder(base_folder) else _SHARD_CLIPS
    with coders(base_folder, len(clips), workers) as run:
        if needs_silence:
            for codes_TK in run(code_silence, [SILENT_FRAMES]):
                save_silence(base_folder, codes_TK)
        if not clips:
            return
        with progress("Coding clips", len(clips)) as bar:
            for shard in _chunks(clips, _SHARD_CLIPS):
                parts = run(_work, list(_chunks(shard, size)))
                cache.add({keys[name]: codes for part in parts for name, codes in part})
                bar.advance(len(shard))


def _work(codec: Codec, clips: Sequence[Clip]) -> list[_Coded]:
    def read(clip: Clip) -> NDArray[np.float32]:
        with told():
            return read_clip(clip, codec.sample_rate)

    if not isinstance(codec, BatchCodec):
        return [(clip.id, codec.encode(read(clip))) for clip in clips]
    coded: list[_Coded] = []
    with ThreadPoolExecutor() as pool:
        for pile in _piles(clips):
            sounds = list(pool.map(read, pile))
            coded += zip([clip.id for clip in pile], codec.encode_batch(sounds), strict=True)
    return coded


def _piles(clips: Sequence[Clip]) -> Iterator[list[Clip]]:
    """`clips` in order, in piles that last at most `_PILE_S`; a longer clip is a pile of its own."""
    pile: list[Clip] = []
    pile_s = 0.0
    for clip in clips:
        with told():
            whole_s = sound_info(clip.audio).duration_s
        duration_s = (whole_s if clip.end_s is None else clip.end_s) - (clip.start_s or 0.0)
        if pile and pile_s + duration_s > _PILE_S:
            yield pile
            pile, pile_s = [], 0.0
        pile.append(clip)
        pile_s += duration_s
    yield pile


def _chunks(clips: Sequence[Clip], size: int) -> Iterator[list[Clip]]:
    rest = iter(clips)
    while part := list(islice(rest, size)):
        yield part
