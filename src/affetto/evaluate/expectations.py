"""Where an emotion should move the voice, and whether it did: directions against the same speaker's neutral.

Prosody is from two reviews: Murray & Arnott 1993 (J. Acoust. Soc. Am. 93, 1097: the table of human vocal emotion
effects) and Juslin & Laukka 2003 (Psychol. Bull. 129, 770: patterns of cues over studies). Where they differ there is
no direction: fear's F0 range and level (wide and normal against narrow and low). Happiness' rate, which the first finds
either way, is the second's. Longer pauses are expected of sadness alone (the second), disgust is the first's alone.
Neither has surprise. Jitter has no direction: it was seldom measured, and `prosody`'s is another quantity.
Dimensions: signs of the mean ratings of Russell & Mehrabian 1977 (J. Res. Pers. 11, 273), where these reach 0.2 of 1.
Directions describe groups of speakers; a portrayal that breaks one isn't wrong, and one that holds all isn't proven.
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
"""What is held against neutral speech."""


def expected(emotion: str, metric: str) -> Worse | None:
    """Direction that `emotion` should move `metric` in, from neutral; None where none is agreed on."""
    return PROSODY.get(emotion, {}).get(metric) or DIMENSIONS.get(emotion, {}).get(metric)


def holds(low: float | None, high: float | None, n: int, direction: Worse) -> Literal["yes", "no", "undecided"] | None:
    """Whether a difference's interval lies on the expected side of 0; None without one, or under `MIN_PAIRS` pairs."""
    if low is None or high is None or n < MIN_PAIRS:
        return None
    if low <= 0 <= high:
        return "undecided"
    return "yes" if (low > 0) == (direction == "higher") else "no"


def mark_expected(metrics: Mapping[str, ComparedMetric], emotion: str) -> None:
    """Set `expected` and `holds` of those metrics that `emotion` should move."""
    for name, metric in metrics.items():
        direction = expected(emotion, name)
        if direction is not None:
            metric["expected"] = direction
            metric["holds"] = holds(metric["low"], metric["high"], metric["n"], direction)


def against_neutral(
    rows: Sequence[FileRow], neutral_rows: Sequence[FileRow], *, system: str, emotion: str
) -> Comparison:
    """`MEASURED` of each speaker's rows less that speaker's neutral rows, for speech whose texts or seeds differ.

    A speaker's mean over neutral files is taken from each of the speaker's files, and whole speakers are resampled, so
    that what is said is about speakers like these. Under `MIN_CLUSTERS` speakers it is about these alone, files within
    each being what was sampled, and the reason says so. Where both sides speak the same prompts, `summary.compare`
    pairs them and sees smaller differences.
    """
    metrics = {}
    for name in MEASURED:
        ours, theirs = _by_speaker(rows, name), _by_speaker(neutral_rows, name)
        found, reason = _less_neutral(ours, theirs)
        metrics[name] = ComparedMetric(
            difference=found.value, low=found.low, high=found.high, n=found.n, margin=None, verdict=None,
            reason=reason, p_holm=None,
        )  # fmt: skip
    mark_expected(metrics, emotion)
    return Comparison(system=system, against="neutral speech of the same speakers", prompt=None, metrics=metrics)


def _less_neutral(
    ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]
) -> tuple[statistics.Difference, str]:
    """The difference, and the reason for what it lacks."""
    shared = [speaker for speaker in ours if speaker in theirs]
    if not shared:
        return statistics.Difference(None, None, None, 0), "no speaker has this value in both"
    if len(shared) < MIN_CLUSTERS:
        found = statistics.stratified_difference(ours, theirs)
        these = f"{'this' if len(shared) == 1 else 'these'} {counted(len(shared), 'speaker')}"
        return found, found.reason or f"about {these} alone: of others at least {MIN_CLUSTERS} could tell"
    speakers = [speaker for speaker in shared for _ in ours[speaker]]
    values = [value for speaker in shared for value in ours[speaker]]
    means = [sum(theirs[speaker]) / len(theirs[speaker]) for speaker in speakers]
    ones = [1.0] * len(values)
    found = statistics.paired_difference((values, ones), (means, ones), speakers)
    return found, found.reason or "no margin was stated for this metric"


def _by_speaker(rows: Sequence[FileRow], name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        value = row["values"].get(name)
        if row["speaker"] is not None and isinstance(value, int | float):
            found.setdefault(row["speaker"], []).append(float(value))
    return found
