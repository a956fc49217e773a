"""Scores files: one row of numbers per file, and no file is ever dropped.

A file that can't be scored keeps its row, with an `error` and every value null, so that a system can't improve by
breaking files. A file's values don't depend on other files or their order: each judge gets the files sorted by length
and contents, and values are rounded to six decimals, far coarser than the effect of batching (1e-7).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from affetto.audio.sound import read_sound
from affetto.errors import DataError, JudgeError
from affetto.evaluate.results import VALUE_NAMES, FileRow, Prompt, Value, is_predicted
from affetto.files import as_text, hash_bytes
from affetto.judges.choice import Judges, require_label
from affetto.judges.predictors import members_of
from affetto.metrics.activity import Activity, find_activity
from affetto.metrics.emotion import first_choices, target_posteriors
from affetto.metrics.prosody import measure_pitch
from affetto.metrics.words import rate_values, score_words

SAMPLE_RATE = 16_000
"""Sample rate of all measurements except the judges'."""
MIN_DURATION_S = 0.1
_DECIMALS = 6
_CHUNK = 64
"""Sounds held in memory for the judges at once."""


@dataclass(frozen=True)
class Item:
    """One sound to be scored, with the known facts about it."""

    file: str
    """Name in the results; unique within a system."""
    sound: Path | NDArray[np.floating]
    """A file, or mono samples at `sample_rate`."""
    sample_rate: int | None = None
    """Only for samples; None for a file."""
    text: str | None = None
    """The text to be spoken; None if unknown, and then words aren't scored."""
    speaker: str | None = None
    prompt: Prompt | None = None
    seed: int | None = None
    hit_cap: bool | None = None
    """Whether the frame cap ended generation; None if the sound wasn't generated here."""
    error: str | None = None
    """Why it can't be scored, if that is known in advance."""


@dataclass(frozen=True)
class _Usable:
    """A file that can be judged."""

    row: FileRow
    item: Item
    order: tuple[int, str]
    """Number of samples and their hash: the order in which judges get the files."""


def score_files(items: Sequence[Item], judges: Judges, emotion: str) -> list[FileRow]:
    """One row per item, in the given order; `emotion` is the target.

    Raises JudgeError if the emotion judge has no label for the target or a judge's answer isn't a finite number;
    DataError if two items share a name.
    """
    if judges.emotion is not None:
        require_label(judges.emotion, emotion)
    if repeated := sorted(name for name, times in Counter(item.file for item in items).items() if times > 1):
        raise DataError(f"these files are named twice: {', '.join(repeated[:5])}")
    with ThreadPoolExecutor() as pool:
        measured = list(pool.map(_measure, items))
    rows = [row for row, _ in measured]
    usable = [
        _Usable(row, item, order) for item, (row, order) in zip(items, measured, strict=True) if order is not None
    ]
    usable.sort(key=lambda file: file.order)
    _judge_emotion(usable, judges, emotion)
    _judge_words(usable, judges)
    _judge_quality(usable, judges)
    _judge_dimensions(usable, judges)
    return rows


def _measure(item: Item) -> tuple[FileRow, tuple[int, str] | None]:
    """The row with all values that need no judge, and its place in the judges' order (None if it has an error)."""
    row = FileRow(
        file=item.file, prompt=item.prompt, text=item.text, speaker=item.speaker, seed=item.seed, duration_s=None,
        error=None, values=dict.fromkeys(VALUE_NAMES),
    )  # fmt: skip
    if item.error is not None:
        row["error"] = item.error
        return row, None
    try:
        samples = load(item, SAMPLE_RATE)
    except DataError as error:
        kind = getattr(error, "kind", "unusable")
        row["error"] = as_text(f"{kind}: {str(error).removeprefix(f'{item.sound}: ')}")
        _fill_stop(row, item, is_empty=kind == "empty")
        return row, None
    duration_s = len(samples) / SAMPLE_RATE
    row["duration_s"] = round(duration_s, _DECIMALS)
    error_text, activity = _find_error(samples)
    _fill_stop(row, item, is_empty=duration_s < MIN_DURATION_S)
    if error_text is not None or activity is None:
        row["error"] = error_text or "silent"
        return row, None
    _fill(row, _signal_values(samples, activity, item.text))
    return row, (len(samples), hash_bytes(samples.tobytes()))


def _fill_stop(row: FileRow, item: Item, is_empty: bool) -> None:
    """Set whether the model failed to stop in time: for generated files only, broken ones included."""
    if item.hit_cap is not None:
        row["values"]["stop_failures"] = int(item.hit_cap or is_empty)


def _find_error(samples: NDArray[np.float32]) -> tuple[str | None, Activity | None]:
    """Why these samples can't be scored; else their activity."""
    if len(samples) == 0:
        return "empty: the file has no samples", None
    if not np.isfinite(samples).all():
        return "not-finite: the file holds NaN or infinite samples", None
    duration_s = len(samples) / SAMPLE_RATE
    if duration_s < MIN_DURATION_S:
        return f"too-short: {duration_s:.3f} s, at least {MIN_DURATION_S} s are needed", None
    activity = find_activity(samples, SAMPLE_RATE)
    return ("silent: nothing in the file is louder than -70 dBFS" if activity is None else None), activity


def _signal_values(samples: NDArray[np.float32], activity: Activity, text: str | None) -> dict[str, float | None]:
    rates = {} if text is None else rate_values(text, activity.end_s - activity.start_s)
    return {**measure_pitch(samples, SAMPLE_RATE).to_values(), **rates, **activity.to_values()}


def _judge_emotion(usable: Sequence[_Usable], judges: Judges, emotion: str) -> None:
    if judges.emotion is None:
        return
    labels = judges.emotion.labels
    for files, sounds in _chunks(usable, judges.emotion.sample_rate):
        posteriors_NL = judges.emotion.posteriors(sounds)
        assert posteriors_NL.shape == (len(files), len(labels)), posteriors_NL.shape
        choices = first_choices(posteriors_NL, labels)
        targets = target_posteriors(posteriors_NL, labels, emotion)
        for file, row_L, choice, target in zip(files, posteriors_NL, choices, targets, strict=True):
            if not np.isfinite(row_L).all():
                raise JudgeError(f"the emotion judge {judges.emotion.id} gave no number for {file.item.file}")
            _fill(file.row, {"recall": int(choice == emotion), "posterior": target, "first_choice": choice})


def _judge_words(usable: Sequence[_Usable], judges: Judges) -> None:
    if judges.words is None:
        return
    for files, sounds in _chunks(usable, judges.words.sample_rate):
        for file, heard in zip(files, judges.words.transcribe(sounds), strict=True):
            _fill(file.row, {"heard": heard})
            score = None if file.item.text is None else score_words(file.item.text, heard)
            if score is not None:
                _fill(file.row, score.to_values())


def _judge_quality(usable: Sequence[_Usable], judges: Judges) -> None:
    """Score chunks of sounds, since some judges run several sounds in parallel."""
    for judge in members_of(judges.quality) if judges.quality else ():
        for files, sounds in _chunks(usable, judge.sample_rate):
            for file, scores in zip(files, judge.score(sounds), strict=True):
                _fill(file.row, scores)


def _judge_dimensions(usable: Sequence[_Usable], judges: Judges) -> None:
    if judges.dimensions is None:
        return
    for files, sounds in _chunks(usable, judges.dimensions.sample_rate):
        for file, values in zip(files, judges.dimensions.measure(sounds), strict=True):
            if not all(np.isfinite(value) for value in values.values()):
                raise JudgeError(f"the dimensional judge {judges.dimensions.id} gave no number for {file.item.file}")
            _fill(file.row, values)


def _chunks(
    usable: Sequence[_Usable], sample_rate: int
) -> Iterator[tuple[Sequence[_Usable], list[NDArray[np.float32]]]]:
    for start in range(0, len(usable), _CHUNK):
        files = usable[start : start + _CHUNK]
        yield files, [load(file.item, sample_rate) for file in files]


def load(item: Item, sample_rate: int) -> NDArray[np.float32]:
    """Mono samples of an item at `sample_rate`; DataError if the file can't be read."""
    if isinstance(item.sound, Path):
        return read_sound(item.sound, sample_rate)
    if item.sample_rate is None:
        raise DataError(f"{item.file}: samples need a sample_rate")
    samples = np.asarray(item.sound, dtype=np.float32)
    if samples.ndim != 1:
        raise DataError(f"{item.file}: samples must be mono, shape (num_samples,), not {samples.shape}")
    if item.sample_rate == sample_rate or len(samples) == 0 or not np.isfinite(samples).all():
        return samples
    resampled: NDArray[np.float32] = soxr.resample(samples, item.sample_rate, sample_rate, quality="HQ")
    return resampled


def _fill(row: FileRow, values: Mapping[str, Value]) -> None:
    """Set rounded values; their names must be known or a further quality judge's."""
    for name, value in values.items():
        assert name in row["values"] or is_predicted(name), name
        row["values"][name] = round(value, _DECIMALS) if isinstance(value, float) else value
