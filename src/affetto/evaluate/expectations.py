"""The direction in which an emotion should move the voice from the same speaker's neutral, and whether it did.

Prosody is from two reviews: Murray & Arnott 1993 (J. Acoust. Soc. Am. 93, 1097: the table of human vocal emotion
effects) and Juslin & Laukka 2003 (Psychol. Bull. 129, 770: patterns of cues over studies). If they disagree there is no
direction: fear's F0 range and level (wide and normal versus narrow and low). Happiness' rate is from the second, since
the first finds both. Longer pauses are expected for sadness only (from the second); disgust is from the first only.
Neither covers surprise. Jitter has no direction: it was seldom measured, and `prosody`'s is another quantity.
Dimensions: signs of the mean ratings of Russell & Mehrabian 1977 (J. Res. Pers. 11, 273) that reach at least 0.2 of 1.
Directions describe groups of speakers: a portrayal that breaks one isn't wrong, and following all proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from affetto.errors import counted
from affetto.evaluate.results import ComparedMetric, Comparison, FileRow
from affetto.metrics import statistics
from affetto.metrics.statistics import MIN_CLUSTERS, MIN_PAIRS, Worse

_UP: Worse = "higher"
_DOWN: Worse = "lower"

PROSODY: Mapping[str, Mapping[str, Worse]] = {
    "happy": {"f0_median_st": _UP, "f0_range_st": _UP, "syllables_per_s": _UP, "level_db": _UP},
    "angry": {"f0_median_st": _UP, "f0_range_st": _UP, "syllables_per_s": _UP, "level_db": _UP},
    "sad": {
        "f0_median_st": _DOWN, "f0_range_st": _DOWN, "syllables_per_s": _DOWN, "level_db": _DOWN, "pause_share": _UP,
    },
    "fearful": {"f0_median_st": _UP, "syllables_per_s": _UP},
    "disgusted": {"f0_median_st": _DOWN, "f0_range_st": _UP, "syllables_per_s": _DOWN, "level_db": _DOWN},
}  # fmt: skip
DIMENSIONS: Mapping[str, Mapping[str, Worse]] = {
    "happy": {"arousal": _UP, "dominance": _UP, "valence": _UP},
    "angry": {"arousal": _UP, "dominance": _UP, "valence": _DOWN},
    "sad": {"arousal": _DOWN, "dominance": _DOWN, "valence": _DOWN},
    "fearful": {"arousal": _UP, "dominance": _DOWN, "valence": _DOWN},
    "surprised": {"arousal": _UP, "valence": _UP},
    "disgusted": {"arousal": _UP, "valence": _DOWN},
}
MEASURED = (
    "f0_median_st", "f0_range_st", "syllables_per_s", "level_db", "pause_share", "jitter", "arousal", "dominance",
    "valence",
)  # fmt: skip
"""Values that are compared with neutral speech."""


def expected(emotion: str, metric: str) -> Worse | None:
    """The direction in which `emotion` should move `metric` from neutral; None if there is no agreed one."""
    return PROSODY.get(emotion, {}).get(metric) or DIMENSIONS.get(emotion, {}).get(metric)


def holds(low: float | None, high: float | None, n: int, direction: Worse) -> Literal["yes", "no", "undecided"] | None:
    """Whether a difference's interval lies on the expected side of 0; None without one, or under `MIN_PAIRS` pairs."""
    if low is None or high is None or n < MIN_PAIRS:
        return None
    if low <= 0 <= high:
        return "undecided"
    return "yes" if (low > 0) == (direction == "higher") else "no"


def mark_expected(metrics: Mapping[str, ComparedMetric], emotion: str) -> None:
    """Set `expected` and `holds` of the metrics that `emotion` should move."""
    for name, metric in metrics.items():
        direction = expected(emotion, name)
        if direction is not None:
            metric["expected"] = direction
            metric["holds"] = holds(metric["low"], metric["high"], metric["n"], direction)


def against_neutral(
    rows: Sequence[FileRow], neutral_rows: Sequence[FileRow], *, system: str, emotion: str
) -> Comparison:
    """`MEASURED` of each speaker's rows minus the mean of that speaker's neutral rows, if texts or seeds differ.

    Whole speakers are resampled, so the result generalises to similar speakers. With fewer than `MIN_CLUSTERS` speakers
    files are resampled within each, so the result is about these speakers only, and the reason says so. If both sides
    speak the same prompts, `summary.compare` pairs them and detects smaller differences.
    """
    metrics = {}
    for name in MEASURED:
        ours, theirs = _by_speaker(rows, name), _by_speaker(neutral_rows, name)
        difference, reason = _less_neutral(ours, theirs)
        metrics[name] = ComparedMetric(
            difference=difference.value, low=difference.low, high=difference.high, n=difference.n, margin=None,
            verdict=None, reason=reason, p_holm=None,
        )  # fmt: skip
    mark_expected(metrics, emotion)
    return Comparison(system=system, against="neutral speech of the same speakers", prompt=None, metrics=metrics)


def _less_neutral(
    ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]
) -> tuple[statistics.Difference, str]:
    """The difference, and why it has no verdict or value."""
    shared = [speaker for speaker in ours if speaker in theirs]
    if not shared:
        return statistics.Difference(None, None, None, 0), "no speaker has this value in both"
    if len(shared) < MIN_CLUSTERS:
        difference = statistics.stratified_difference(ours, theirs)
        these = f"{'this' if len(shared) == 1 else 'these'} {counted(len(shared), 'speaker')}"
        return difference, difference.reason or f"about {these} only: generalising needs at least {MIN_CLUSTERS}"
    speakers = [speaker for speaker in shared for _ in ours[speaker]]
    values = [value for speaker in shared for value in ours[speaker]]
    means = [sum(theirs[speaker]) / len(theirs[speaker]) for speaker in speakers]
    ones = [1.0] * len(values)
    difference = statistics.paired_difference((values, ones), (means, ones), speakers)
    return difference, difference.reason or "no margin was stated for this metric"


def _by_speaker(rows: Sequence[FileRow], name: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for row in rows:
        value = row["values"].get(name)
        if row["speaker"] is not None and isinstance(value, int | float):
            values.setdefault(row["speaker"], []).append(float(value))
    return values
