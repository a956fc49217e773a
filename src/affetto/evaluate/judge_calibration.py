"""Tests all judges on real, labelled recordings: `affetto evaluate --calibrate-judges`.

A class's recall has Wilson's interval, and must beat two things before the judge may score that class: chance (one over
the judge's number of classes) and the judge's own false alarms (how often it gives that label to recordings of other
classes), because a judge that calls everything sad recalls every sad clip. Classes that the judge lacks are listed and
never mapped. Word error rates and mean scores are per corpus. Intervals take speakers as independent if there are
several, else texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from affetto.audio.corpora import load_clips
from affetto.audio.sound import read_clip
from affetto.errors import DataError
from affetto.evaluate.expectations import against_neutral
from affetto.evaluate.judge_facts import judge_facts
from affetto.evaluate.results import FileRow, to_metric
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.similarity import Embedded, embed_files
from affetto.evaluate.summary import measures
from affetto.evaluate.voice_calibration import above_chance, tell_voices
from affetto.files import write_json
from affetto.judges.choice import Judges
from affetto.judges.kinds import VoiceJudge
from affetto.metrics import statistics
from affetto.progress import progress
from affetto.provenance import versions
from affetto.types import Clip

SCHEMA = "affetto.judge-calibration/1"
MOST_FALSE_ALARMS = 0.5
"""A judge that gives the label to most other recordings would also give it to a system that never tried."""
_CHUNK = 64
_SEGMENT_RATE = 48_000


def calibrate_judges(
    source: Path, judges: Judges, output: Path | None = None, *, command: str = "", most: int | None = None
) -> dict[str, Any]:
    """Judge the recordings of `source` (what `--data` takes); returns the document, and writes it to `output` if given.

    `most` limits the clips of each class in each corpus, spread evenly. Raises DataError if no recording has an emotion
    or a text.
    """
    clips, problems = load_clips([source])
    chosen = _spread(clips, most)
    if not any(clip.emotion or clip.text for clip in chosen):
        raise DataError(f"{source}: no recording has an emotion or a text, so the judges' answers can't be checked")
    rows = _judge(chosen, judges)
    document = {
        "schema": SCHEMA,
        "command": command,
        "versions": versions(),
        "judges": judge_facts(judges),
        "num_clips": len(chosen),
        "num_failed": sum(row["error"] is not None for row in rows),
        "problems": [f"{problem.where}: {problem.message}" for problem in problems],
        "left_out": [f"{problem.where}: {problem.message}" for problem in problems if not problem.costs_no_clip],
        "emotion": _emotion(chosen, rows, judges),
        "words": _words(chosen, rows) if judges.words else None,
        "quality": _quality(chosen, rows) if judges.quality else None,
        "voice": _voices(chosen, rows, judges.voice) if judges.voice else None,
        "dimensions": _dimensions(chosen, rows) if judges.dimensions else None,
        "files": [
            {**row, "corpus": clip.corpus, "emotion": clip.emotion} for clip, row in zip(chosen, rows, strict=True)
        ],
    }
    if output is not None:
        write_json(output, document)
    return document


def verdict(
    recall: statistics.Estimate, false_alarms: float | None, chance: float
) -> tuple[Literal["yes", "no"] | None, str | None]:
    """(whether the class is heard, why not): the recall's interval must lie above chance and above the false alarms.

    False alarms may be at most `MOST_FALSE_ALARMS`. With fewer than `statistics.MIN_PAIRS` recordings it isn't decided.
    """
    answer, reason = above_chance(recall, chance)
    if answer != "yes" or false_alarms is None or recall.low is None:
        return answer, reason
    if recall.low <= false_alarms or false_alarms > MOST_FALSE_ALARMS:
        return "no", f"it gives this label to {false_alarms:.0%} of the others as well"
    return "yes", None


def _spread(clips: Sequence[Clip], most: int | None) -> list[Clip]:
    if most is None:
        return list(clips)
    groups: dict[tuple[str, str | None], list[Clip]] = {}
    for clip in clips:
        groups.setdefault((clip.corpus, clip.emotion), []).append(clip)
    return [
        group[index * len(group) // most] if len(group) > most else group[index]
        for group in groups.values()
        for index in range(min(most, len(group)))
    ]


def _judge(clips: Sequence[Clip], judges: Judges) -> list[FileRow]:
    """A row per clip, each scored for its own emotion."""
    labels = judges.emotion.labels if judges.emotion else ()
    rows: dict[str, FileRow] = {}
    with progress("Calibrating judges", len(clips)) as bar:
        for emotion in dict.fromkeys(clip.emotion for clip in clips):
            group = [clip for clip in clips if clip.emotion == emotion]
            has_label = emotion is not None and emotion in labels
            used = judges if has_label else replace(judges, emotion=None)
            for start in range(0, len(group), _CHUNK):
                part = group[start : start + _CHUNK]
                scored = score_files([_item(clip) for clip in part], used, emotion or "")
                rows |= {clip.id: row for clip, row in zip(part, scored, strict=True)}
                bar.advance(len(part))
    return [rows[clip.id] for clip in clips]


def _item(clip: Clip) -> Item:
    if clip.start_s is None and clip.end_s is None and clip.channel is None:
        return Item(clip.id, clip.audio, text=clip.text, speaker=clip.speaker)
    try:
        samples = read_clip(clip, _SEGMENT_RATE)
    except DataError as error:
        return Item(clip.id, clip.audio, text=clip.text, speaker=clip.speaker, error=str(error))
    return Item(clip.id, samples, _SEGMENT_RATE, text=clip.text, speaker=clip.speaker)


def _emotion(clips: Sequence[Clip], rows: Sequence[FileRow], judges: Judges) -> dict[str, Any] | None:
    if judges.emotion is None or not any(clip.emotion for clip in clips):
        return None
    labels = judges.emotion.labels
    chance = 1 / len(labels)
    heard = [
        (clip.emotion, str(row["values"]["first_choice"]), row)
        for clip, row in zip(clips, rows, strict=True)
        if row["values"]["first_choice"] is not None
    ]
    classes, lacking = {}, {}
    for emotion in dict.fromkeys(clip.emotion for clip in clips if clip.emotion):
        if emotion not in labels:
            lacking[emotion] = sum(clip.emotion == emotion for clip in clips)
            continue
        own = [choice for truth, choice, _ in heard if truth == emotion]
        others = [choice == emotion for truth, choice, _ in heard if truth != emotion]
        clusters = _resampled([row for truth, _, row in heard if truth == emotion])
        recall = statistics.share([choice == emotion for choice in own], clusters)
        alarms = sum(others) / len(others) if others else None
        answer, reason = verdict(recall, alarms, chance)
        classes[emotion] = {
            "recall": to_metric(recall, "share"), "false_alarms": alarms, "heard": answer, "reason": reason,
            "heard_as": {label: own.count(label) for label in labels},
        }  # fmt: skip
    return {"chance": chance, "classes": classes, "lacking": lacking}


def _by_corpus(clips: Sequence[Clip], rows: Sequence[FileRow]) -> dict[str, list[FileRow]]:
    by_corpus: dict[str, list[FileRow]] = {}
    for clip, row in zip(clips, rows, strict=True):
        by_corpus.setdefault(clip.corpus, []).append(row)
    return by_corpus


def _resampled(rows: Sequence[FileRow]) -> list[str]:
    """The clusters that intervals take as independent: speakers if there are several, else texts."""
    speakers = [str(row["speaker"]) for row in rows]
    return speakers if len(set(speakers)) > 1 else [str(row["text"]) for row in rows]


def _words(clips: Sequence[Clip], rows: Sequence[FileRow]) -> dict[str, Any]:
    rates = {}
    for corpus, chosen in _by_corpus(clips, rows).items():
        rates[corpus] = {
            name: to_metric(_error_rate(chosen, top, bottom), "share")
            for name, top, bottom in (("wer", "word_edits", "num_words"), ("cer", "char_edits", "num_chars"))
        }
    return rates


def _error_rate(rows: Sequence[FileRow], top: str, bottom: str) -> statistics.Estimate:
    judged = [row for row in rows if row["values"][bottom] is not None]
    if not judged:
        has_texts = any(row["text"] for row in rows)
        reason = "no recording with a text could be judged" if has_texts else "these recordings have no texts"
        return statistics.Estimate(None, None, None, 0, reason)
    edits, sizes = ([float(row["values"][name] or 0) for row in judged] for name in (top, bottom))
    return statistics.bootstrap_ratio(edits, sizes, _resampled(judged), is_count=True)


def _voices(clips: Sequence[Clip], rows: Sequence[FileRow], judge: VoiceJudge) -> dict[str, Any]:
    """Whether the judge can tell speakers apart, per corpus; sounds of segments are loaded a few at a time."""
    vectors: dict[str, list[Embedded]] = {clip.corpus: [] for clip in clips}
    with progress("Telling voices apart", len(clips)) as bar:
        for start in range(0, len(clips), _CHUNK):
            part = clips[start : start + _CHUNK]
            corpus_of = {id(row): clip.corpus for clip, row in zip(part, rows[start : start + _CHUNK], strict=True)}
            for embedded in embed_files([_item(clip) for clip in part], rows[start : start + _CHUNK], judge):
                vectors[corpus_of[id(embedded.row)]].append(embedded)
            bar.advance(len(part))
    return {corpus: tell_voices(embedded) for corpus, embedded in vectors.items()}


def _quality(clips: Sequence[Clip], rows: Sequence[FileRow]) -> dict[str, Any]:
    """The mean of every score on real speech, as a reference for a system's scores."""
    units = {name: measure.unit for name, measure in measures(rows).items() if measure.source == "quality"}
    means: dict[str, Any] = {}
    for corpus, chosen in _by_corpus(clips, rows).items():
        means[corpus] = {}
        for name, unit in units.items():
            judged = [row for row in chosen if row["values"].get(name) is not None]
            if judged:
                scores = [float(row["values"][name] or 0) for row in judged]
                means[corpus][name] = to_metric(statistics.bootstrap_mean(scores, _resampled(judged)), unit)
    return means


def _dimensions(clips: Sequence[Clip], rows: Sequence[FileRow]) -> dict[str, Any]:
    """Differences from the same speakers' neutral in the dimensions that each emotion should move, by emotion."""
    by_emotion: dict[str, list[FileRow]] = {}
    for clip, row in zip(clips, rows, strict=True):
        by_emotion.setdefault(clip.emotion or "", []).append(row)
    neutral = by_emotion.get("neutral", [])
    differences: dict[str, Any] = {}
    for emotion, chosen in by_emotion.items():
        metrics = against_neutral(chosen, neutral, system="real", emotion=emotion)["metrics"]
        kept = {
            name: metric
            for name, metric in metrics.items()
            if name in ("arousal", "dominance", "valence") and metric.get("expected")
        }
        differences |= {emotion: kept} if kept else {}
    return differences
