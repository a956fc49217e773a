"""Oddities of usable clips: tempo, duration, duplicates, balance. A doubt removes no clip; the user decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from affetto.audio.sound import SoundError, read_clip, sound_info
from affetto.errors import counted
from affetto.files import hash_bytes
from affetto.types import Clip, Problem

OUTLIER = 6.0
"""A clip whose logarithm is more than this many robust standard deviations (1.4826 MAD) off is doubtful."""
_FEW = 8
"""With fewer clips there is no usual value."""
_LEAST_SPREAD = 0.05
"""Least robust standard deviation, 5 %: synthetic clips may all last equally long."""
LARGEST_RATIO = 5.0
"""An emotion with more than this many times the minutes of another is reported."""
LARGEST_SHARE = 0.8
"""A speaker with more than this share of an emotion that several speak is reported."""


def odd_tempos(clips: Sequence[Clip], seconds: dict[str, float]) -> list[Problem]:
    """Clips much slower or faster than their speaker usually reads: often another text, or silence left in."""
    doubts = []
    for mine in _groups((clip for clip in clips if clip.text and seconds.get(clip.id, 0.0) > 0), _voice):
        tempo = np.log([seconds[clip.id] / max(1, len(clip.text or "")) for clip in mine])
        for clip, score, distance in _outliers(mine, tempo):
            how = "slower" if score > 0 else "faster"
            message = (
                f"{np.exp(abs(distance)):.1f} times {how} than {clip.speaker} usually reads; "
                "listen whether the text fits the sound"
            )
            doubts.append(Problem(clip.id, "odd-tempo", message))
    return doubts


def odd_durations(clips: Sequence[Clip], seconds: dict[str, float]) -> list[Problem]:
    """Clips much longer or shorter than the others of their corpus, by the robust z-score of log seconds."""
    doubts = []
    for mine in _groups((clip for clip in clips if seconds.get(clip.id, 0.0) > 0), lambda clip: clip.corpus):
        lengths = np.log([seconds[clip.id] for clip in mine])
        usual_s = float(np.exp(np.median(lengths)))
        for clip, score, _ in _outliers(mine, lengths):
            how = "longer" if score > 0 else "shorter"
            message = (
                f"{seconds[clip.id]:.1f} s, far {how} than {clip.corpus}'s usual {usual_s:.1f} s "
                f"(robust z {score:+.0f}); cut it, or leave it out"
            )
            doubts.append(Problem(clip.id, "odd-duration", message))
    return doubts


def duplicates(clips: Sequence[Clip]) -> list[list[Clip]]:
    """Groups of clips with the same samples, whatever file holds them.

    Only clips of equal length are read. Unreadable clips are in no group.
    """
    by_length: dict[Hashable, list[Clip]] = {}
    for clip in clips:
        try:
            info = sound_info(clip.audio)
        except SoundError:
            continue
        length_s = (info.duration_s if clip.end_s is None else clip.end_s) - (clip.start_s or 0.0)
        by_length.setdefault((round(length_s * info.sample_rate), info.sample_rate), []).append(clip)
    alike = [clip for group in by_length.values() if len(group) > 1 for clip in group]
    by_sound: dict[str, list[Clip]] = {}
    with ThreadPoolExecutor() as pool:
        for clip, digest in zip(alike, pool.map(_digest, alike), strict=True):
            if digest is not None:
                by_sound.setdefault(digest, []).append(clip)
    return [group for group in by_sound.values() if len(group) > 1]


def _digest(clip: Clip) -> str | None:
    try:
        rate = sound_info(clip.audio).sample_rate
        return hash_bytes(read_clip(clip, rate).tobytes())
    except SoundError:
        return None


def duplicate_doubts(groups: Iterable[Sequence[Clip]]) -> list[Problem]:
    """A doubt for each duplicate: the clip that it repeats, and the fields in which they differ."""
    doubts = []
    for first, *others in groups:
        for clip in others:
            fields = ("text", "emotion", "speaker", "split")
            different = [name for name in fields if getattr(clip, name) != getattr(first, name)]
            but = f", but with another {' and another '.join(different)}" if different else ""
            doubts.append(Problem(clip.id, "duplicate-sound", f"the same sound as {first.id}{but}; keep one of them"))
    return doubts


def balance(clips: Sequence[Clip], seconds: dict[str, float]) -> list[Problem]:
    """Imbalance between emotions and speakers, and emotions that can't be separated from voices."""
    minutes: dict[str, float] = {}
    speakers: dict[str, Counter[str]] = {}
    for clip in clips:
        if clip.emotion is not None:
            minutes[clip.emotion] = minutes.get(clip.emotion, 0.0) + seconds.get(clip.id, 0.0) / 60
            speakers.setdefault(clip.emotion, Counter())[clip.speaker] += 1
    doubts = []
    if len(minutes) > 1 and (ratio := max(minutes.values()) / max(min(minutes.values()), 1e-9)) > LARGEST_RATIO:
        listed = ", ".join(f"{name} {value:.1f}" for name, value in sorted(minutes.items(), key=lambda item: -item[1]))
        message = f"the largest emotion has {ratio:.0f} times the minutes of the smallest ({listed})"
        doubts.append(Problem("emotions", "unbalanced", message))
    for emotion, counts in sorted(speakers.items()):
        (most, number), total = counts.most_common(1)[0], sum(counts.values())
        if len(counts) > 1 and total >= _FEW and number / total > LARGEST_SHARE:
            message = f"{most} speaks {number} of {counted(total, f'{emotion} clip')}; the others will hardly be heard"
            doubts.append(Problem(emotion, "unbalanced", message))
        elsewhere = {clip.speaker for clip in clips if clip.emotion != emotion}
        if elsewhere and not counts.keys() & elsewhere:
            are = counted(len(counts), "speaker is", "speakers are")
            message = (
                f"its {are} heard only in {emotion}, so voice and emotion can't be told apart; "
                "add other clips of these speakers"
            )
            doubts.append(Problem(emotion, "confounded", message))
    return doubts


def _voice(clip: Clip) -> tuple[str, str]:
    return clip.corpus, clip.speaker


def _groups(clips: Iterable[Clip], key: Callable[[Clip], Hashable]) -> list[list[Clip]]:
    groups: dict[Hashable, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(key(clip), []).append(clip)
    return [group for group in groups.values() if len(group) >= _FEW]


def _outliers(clips: Sequence[Clip], values: NDArray[np.float64]) -> list[tuple[Clip, float, float]]:
    """(clip, robust z-score, distance from the median) of the clips beyond `OUTLIER`."""
    distances = values - np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(distances))), _LEAST_SPREAD)
    return [
        (clip, float(distance / spread), float(distance))
        for clip, distance in zip(clips, distances, strict=True)
        if abs(distance) > OUTLIER * spread
    ]
