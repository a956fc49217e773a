"""How the report names, formats and groups every metric of docs/results.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from affetto.evaluate.summary import METRICS

MINUS = "−"
ABSENT = "—"


@dataclass(frozen=True)
class Scale:
    """How numbers of one unit are formatted."""

    factor: float = 1.0
    decimals: int = 2
    unit: str = ""
    difference_unit: str | None = None
    """The unit of differences, if another: percent become points."""


_PERCENT = Scale(100.0, 1, "%", "pt")
SCALES: dict[str, Scale] = {
    "share": _PERCENT,
    "per word": _PERCENT,
    "share of the period": _PERCENT,
    "1 to 5": Scale(),
    "semitones": Scale(1.0, 1, "st"),
    "semitones re 100 Hz": Scale(1.0, 1, "st"),
    "1/s": Scale(1.0, 2, "/s"),
    "dBFS": Scale(1.0, 1, "dBFS", "dB"),
    "s": Scale(1.0, 2, "s"),
    "nats/code": Scale(1.0, 4, "nats"),
    "nats": Scale(1.0, 4, "nats"),
    "cosine": Scale(1.0, 3),
    "the judge's own scale": Scale(),
}


@dataclass(frozen=True)
class Measure:
    """The report's facts about a metric."""

    label: str
    aspect: str
    unit: str
    meaning: str
    better: Literal["higher", "lower"] | None = None
    is_main: bool = False
    """Shown in the terminal's short table."""
    is_plotted: bool = False
    """Shown among the dot plots."""
    is_on_request: bool = False
    """Its judge runs only if the user names one; not shown if no system has a number."""
    is_of_pairs: bool = False
    """It compares two systems; a single system has no value."""


PLAIN = "When nobody asked"
"""The aspect of all metrics on plain prompts."""
SECONDARY = "Secondary"
"""The aspect of metrics that get no verdict, no picture and no place in the headline."""
ASPECTS = ("Expressivity", "Words", "Quality", "Voice", "Prosody", "Delivery", "Other", "Forgetting", SECONDARY, PLAIN)
MEASURES: dict[str, Measure] = {
    "recall": Measure(
        "Recall", "Expressivity", "share", "how often the emotion judge's first choice is the target",
        "higher", is_main=True, is_plotted=True,
    ),
    "posterior": Measure(
        "Mean posterior", "Expressivity", "share", "mean probability that the judge gives the target",
        "higher", is_main=True, is_plotted=True,
    ),
    "wer": Measure(
        "Word error rate", "Words", "share", "all wrong, missing and extra words over all words",
        "lower", is_main=True, is_plotted=True,
    ),
    "cer": Measure("Character error rate", "Words", "share", "the same over characters", "lower"),
    "substitutions": Measure("Words replaced", "Words", "per word", "over all words of the texts", "lower"),
    "deletions": Measure("Words left out", "Words", "per word", "over all words of the texts", "lower"),
    "insertions": Measure("Words added", "Words", "per word", "over all words of the texts", "lower"),
    "intelligible": Measure(
        "Intelligible", "Words", "share", "sentences of which at most a fifth of the words are wrong", "higher"
    ),
    "flips_lost": Measure(
        "Sentences lost", "Words", "share", "share of the pairs that only the base spoke intelligibly", "lower",
        is_of_pairs=True,
    ),
    "flips_gained": Measure(
        "Sentences gained", "Words", "share", "share of the pairs that only the system spoke intelligibly", "higher",
        is_of_pairs=True,
    ),
    "truncated": Measure("Cut off", "Words", "share", "sentences whose last words are missing", "lower"),
    "repeated": Measure("Repeating", "Words", "share", "sentences that repeat words", "lower"),
    "runaway": Measure("Running on", "Words", "share", "sentences that say far more than their text", "lower"),
    "mos_overall": Measure(
        "DNSMOS overall", "Quality", "1 to 5", "predicted listening score, 1 to 5",
        "higher", is_main=True, is_plotted=True,
    ),
    "mos_signal": Measure("DNSMOS signal", "Quality", "1 to 5", "the same for the voice alone", "higher"),
    "mos_background": Measure("DNSMOS background", "Quality", "1 to 5", "the same for the background", "higher"),
    "f0_median_st": Measure(
        "Median pitch", "Prosody", "semitones re 100 Hz", "semitones above 100 Hz", is_plotted=True
    ),
    "f0_range_st": Measure(
        "Pitch range", "Prosody", "semitones", "10th to 90th percentile, in semitones", is_plotted=True
    ),
    "words_per_s": Measure("Words per second", "Prosody", "1/s", "between first and last sound", is_plotted=True),
    "syllables_per_s": Measure("Syllables per second", "Prosody", "1/s", "between first and last sound"),
    "jitter": Measure("Jitter", "Prosody", "share of the period", "change of the pitch period from cycle to cycle"),
    "level_db": Measure("Level", "Prosody", "dBFS", "loudness of what is not silent", is_plotted=True),
    "seconds_per_word": Measure("Seconds per word", "Delivery", "s", "between first and last sound"),
    "pause_share": Measure("Pauses", "Delivery", "share", "share of silence inside an utterance"),
    "longest_silence_s": Measure("Longest silence", "Delivery", "s", "inside an utterance", "lower"),
    "stop_failures": Measure(
        "Stop failures", "Delivery", "share", "empty, or didn't stop by itself", "lower", is_main=True
    ),
    "speaker_similarity": Measure(
        "Speaker similarity", "Voice", "cosine", "to the base's other texts in the same voice", "higher",
        is_on_request=True,
    ),
    "similarity_same_prompt": Measure(
        "Similarity, same prompt", "Voice", "cosine", "to what the base says with the same text and seed", "higher",
        is_on_request=True,
    ),
    "similarity_to_reference": Measure(
        "Similarity to recordings", "Voice", "cosine", "to plain recordings of the voice", "higher",
        is_on_request=True,
    ),
    "voice_consistency": Measure(
        "Voice consistency", "Voice", "cosine", "between one voice's own outputs", "higher",
        is_on_request=True,
    ),
    "arousal": Measure("Arousal", "Expressivity", "the judge's own scale", "calm to excited", is_on_request=True),
    "dominance": Measure(
        "Dominance", "Expressivity", "the judge's own scale", "submissive to dominant", is_on_request=True
    ),
    "valence": Measure("Valence", "Expressivity", "the judge's own scale", "negative to positive", is_on_request=True),
    "emotion_similarity": Measure(
        "Emotion similarity (secondary)", SECONDARY, "cosine",
        "of emotion embeddings, to real recordings with other texts; secondary: rewards mimicry, arXiv 2604.26347; "
        "never a headline", is_on_request=True,
    ),
    "delta_nll": Measure(
        "ΔNLL", "Forgetting", "nats/code", "how much less likely general speech became", "lower", is_main=True
    ),
    "kl": Measure(
        "KL", "Forgetting", "nats/code", "how far the predictions moved from the base's", "lower", is_main=True
    ),
    "emotion_nll": Measure("Emotion NLL", "Expressivity", "nats/code", "how unexpected acted speech is", "lower"),
    "intensity": Measure("Intensity", "Other", "", "", None),
}  # fmt: skip


def measure_of(name: str, metric: Mapping[str, Any] | None = None) -> Measure:
    """The measure of metric `name`; an unknown metric keeps its own name and unit."""
    unit = str((metric or {}).get("unit") or "")
    return MEASURES.get(name) or Measure(name.replace("_", " "), "Other", unit, "")


def glossary(systems: Iterable[Mapping[str, Any]]) -> list[Measure]:
    """The measures that a page of `systems` explains: all, except those on request without any number."""
    tables = [system.get(key) or {} for system in systems for key in ("metrics", "plain_metrics")]
    with_numbers = {name for table in tables for name, metric in table.items() if metric.get("value") is not None}
    return [
        measure
        for name, measure in MEASURES.items()
        if measure.meaning and (not measure.is_on_request or name in with_numbers)
    ]


def shown_judges(judges: Mapping[str, Any]) -> dict[str, Any]:
    """Judges by kind, None for a missing one; kinds that are only on request are left out if missing."""
    on_request = {METRICS[name].source for name, measure in MEASURES.items() if measure.is_on_request}
    return {kind: judge for kind, judge in judges.items() if judge or kind not in on_request}


def scale_of(unit: str) -> Scale:
    """The scale of numbers in `unit`."""
    return SCALES.get(unit) or Scale(1.0, 3, unit)


def write_number(value: float, scale: Scale, *, is_difference: bool = False, with_unit: bool = True) -> str:
    """`value` in its scale: `78.3 %`, `+69.2 pt`, `−0.0012 nats`."""
    number = round(value * scale.factor, scale.decimals) + 0.0  # no "-0.0"
    text = f"{number:{'+' if is_difference else ''}.{scale.decimals}f}".replace("-", MINUS)
    unit = (scale.difference_unit or scale.unit) if is_difference else scale.unit
    return f"{text} {unit}" if unit and with_unit else text


def write_interval(low: float | None, high: float | None, scale: Scale, *, is_difference: bool = False) -> str:
    """`[70.1, 84.8]`, or empty without an interval."""
    if low is None or high is None:
        return ""
    ends = (write_number(end, scale, is_difference=is_difference, with_unit=False) for end in (low, high))
    return f"[{', '.join(ends)}]"


def write_duration(seconds: float) -> str:
    """`8.4 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
