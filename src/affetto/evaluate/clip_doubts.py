"""Clips whose text or emotion a judge doubts, and whether that judge is reliable.

A judge is first tested on all clips: most texts and labels of a collection are right, so a judge that misses most of
them, or most of an emotion's, doesn't understand these voices. This is reported, and the judge's doubts are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from affetto.evaluate.transcription import heard_batches
from affetto.judges.choice import EmotionJudge, WordJudge
from affetto.metrics.emotion import first_choices
from affetto.metrics.statistics import wilson_interval
from affetto.metrics.words import score_words
from affetto.types import Clip, Problem

MISMATCH = 0.5
"""Character error rate above which a text is doubted; another sentence has at least 0.7."""
UNDERSTOOD = 0.3
"""Highest median character error rate of a recogniser that understands the voices."""
BELIEVED = 0.5
"""Share of an emotion's clips that a judge must recognise to be believed about it."""
SURE, UNLIKELY = 0.8, 0.05
"""A label is doubted if the judge gives another at least SURE and this one at most UNLIKELY."""


@dataclass(frozen=True)
class Hearing:
    """A judge's findings about the clips."""

    judge: str
    num_clips: int
    """Number of clips judged."""
    measure: float | None
    """Median character error rate, or mean recall over the classes."""
    doubts: tuple[Problem, ...]
    reason: str | None = None
    """Why it isn't believed, or what it can't judge."""

    def to_json(self) -> dict[str, Any]:
        """The fields, without the doubts."""
        return {key: value for key, value in asdict(self).items() if key != "doubts"}


def doubt_texts(clips: Sequence[Clip], judge: WordJudge) -> Hearing:
    """Clips in which `judge` hears something very different from their text. Texts that it wrote itself are skipped."""
    wanted = [clip for clip in clips if clip.text and clip.transcribed_by != judge.id]
    rates: dict[str, float] = {}
    heard: dict[str, str] = {}
    for batch, sounds in heard_batches(wanted, judge.sample_rate, [], "Comparing texts with what is heard"):
        for clip, text in zip(batch, judge.transcribe(sounds), strict=True):
            score = score_words(clip.text or "", text)
            if score is not None:
                rates[clip.id], heard[clip.id] = score.char_edits / score.num_chars, text
    if not rates:
        return Hearing(judge.id, 0, None, (), "no clip has a text that the judge didn't write itself")
    median = float(np.median(list(rates.values())))
    if median > UNDERSTOOD:
        reason = f"it doesn't understand these voices (median character error rate {median:.2f}), so no text is doubted"
        return Hearing(judge.id, len(rates), median, (), reason)
    doubts = [
        Problem(
            clip.id,
            "text-mismatch",
            f"says {_short(clip.text or '')!r}, but {_short(heard[clip.id])!r} is heard; listen",
        )
        for clip in wanted
        if rates.get(clip.id, 0.0) > MISMATCH
    ]
    return Hearing(judge.id, len(rates), median, tuple(doubts))


def doubt_labels(clips: Sequence[Clip], judge: EmotionJudge) -> Hearing:
    """Clips in which `judge` is sure of another emotion. Emotions without a label of the judge are skipped.

    It is believed about an emotion if its recall is at least `BELIEVED` and the lower end of the recall's Wilson
    interval is above guessing among its labels; a doubt needs this for both emotions.
    """
    wanted = [clip for clip in clips if clip.emotion in judge.labels]
    unknown = sorted({clip.emotion for clip in clips if clip.emotion is not None} - {*judge.labels})
    reasons = [f"it has no label for {', '.join(unknown)}"] if unknown else []
    heard: dict[str, tuple[str, float, float]] = {}
    for batch, sounds in heard_batches(wanted, judge.sample_rate, [], "Comparing emotions with what is heard"):
        posteriors_NL = judge.posteriors(sounds)
        choices = first_choices(posteriors_NL, judge.labels)
        for clip, choice, row_L in zip(batch, choices, posteriors_NL, strict=True):
            heard[clip.id] = choice, float(row_L.max()), float(row_L[judge.labels.index(str(clip.emotion))])
    judged = [clip for clip in wanted if clip.id in heard]
    if not judged:
        return Hearing(judge.id, 0, None, (), "; ".join(reasons) or "no clip has an emotion")
    hits: dict[str, list[bool]] = {}
    for clip in judged:
        hits.setdefault(str(clip.emotion), []).append(heard[clip.id][0] == clip.emotion)
    believed = {emotion for emotion, recognised in hits.items() if _is_believed(recognised, len(judge.labels))}
    if missed := sorted(hits.keys() - believed):
        recalls = ", ".join(f"{emotion} ({sum(hits[emotion])} of {len(hits[emotion])})" for emotion in missed)
        reasons.append(f"it isn't believed about {recalls}")
    doubts = []
    for clip in judged:
        choice, sure, own = heard[clip.id]
        if {choice, clip.emotion} <= believed and sure >= SURE and own <= UNLIKELY:
            message = f"labelled {clip.emotion} ({own:.2f}), but heard as {choice} ({sure:.2f}); listen"
            doubts.append(Problem(clip.id, "label-doubt", message))
    recall = float(np.mean([np.mean(recognised) for recognised in hits.values()]))
    return Hearing(judge.id, len(judged), recall, tuple(doubts), "; ".join(reasons) or None)


def _is_believed(hits: Sequence[bool], num_labels: int) -> bool:
    low, _ = wilson_interval(sum(hits), len(hits))
    return sum(hits) >= BELIEVED * len(hits) and low > 1 / num_labels


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
