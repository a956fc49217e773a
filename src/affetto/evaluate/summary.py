"""Computes metrics with intervals from rows, and compares systems on the same prompts, speakers and seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from affetto.errors import DataError, counted
from affetto.evaluate.expectations import mark_expected
from affetto.evaluate.results import (
    ComparedMetric,
    Comparison,
    FileRow,
    Metric,
    Prompt,
    Role,
    System,
    is_predicted,
    to_metric,
)
from affetto.judges.kinds import KINDS, Judges, Kind
from affetto.metrics import emotion as emotion_metrics
from affetto.metrics import statistics
from affetto.metrics.resampling import jackknifed
from affetto.metrics.statistics import Difference, Estimate, Worse


@dataclass(frozen=True)
class Measure:
    """How a metric is computed from the rows' values."""

    unit: str
    source: Kind | Literal["signal", "pitch", "rate", "generation"]
    """What the metric needs; decides the reason given when that is missing."""
    ratio: tuple[str, str] | None = None
    """Values whose sums are divided; None: the mean of the value with the metric's name."""
    is_share: bool = False
    """Whether it is 0 or 1 per file, with Wilson's interval."""
    is_of_pairs: bool = False
    """Whether each file's value is its mean over pairs with the others (`resampling.jackknifed`)."""
    lacking: str = "no file has enough voiced sound"
    """The reason when there are files and a judge, but no file has the value."""

    @property
    def is_count(self) -> bool:
        """Whether it counts events, so that having seen none doesn't mean that none are possible."""
        return self.is_share or self.ratio is not None


_NO_TEXT = "no text is known for these files"
_DIMENSION = "the judge's own scale"

METRICS: dict[str, Measure] = {
    "recall": Measure("share", "emotion", is_share=True),
    "posterior": Measure("share", "emotion"),
    "arousal": Measure(_DIMENSION, "dimensions"),
    "dominance": Measure(_DIMENSION, "dimensions"),
    "valence": Measure(_DIMENSION, "dimensions"),
    "wer": Measure("share", "words", ratio=("word_edits", "num_words"), lacking=_NO_TEXT),
    "cer": Measure("share", "words", ratio=("char_edits", "num_chars"), lacking=_NO_TEXT),
    "substitutions": Measure("per word", "words", ratio=("substitutions", "num_words"), lacking=_NO_TEXT),
    "deletions": Measure("per word", "words", ratio=("deletions", "num_words"), lacking=_NO_TEXT),
    "insertions": Measure("per word", "words", ratio=("insertions", "num_words"), lacking=_NO_TEXT),
    "intelligible": Measure("share", "words", is_share=True, lacking=_NO_TEXT),
    "truncated": Measure("share", "words", is_share=True, lacking=_NO_TEXT),
    "repeated": Measure("share", "words", is_share=True, lacking=_NO_TEXT),
    "runaway": Measure("share", "words", is_share=True, lacking=_NO_TEXT),
    "mos_overall": Measure("1 to 5", "quality", lacking="the quality judge gives no such score"),
    "mos_signal": Measure("1 to 5", "quality", lacking="the quality judge gives no such score"),
    "mos_background": Measure("1 to 5", "quality", lacking="the quality judge gives no such score"),
    "speaker_similarity": Measure("cosine", "voice", lacking="no base speaks in the same voice"),
    "similarity_same_prompt": Measure("cosine", "voice", lacking="no base spoke the same prompts"),
    "similarity_to_reference": Measure("cosine", "voice", lacking="there are no reference clips of these speakers"),
    "voice_consistency": Measure("cosine", "voice", is_of_pairs=True, lacking="no voice speaks two texts"),
    "emotion_similarity": Measure(
        "cosine", "embedding", lacking="there are no real recordings of the emotion, with other texts, to compare with"
    ),
    "f0_median_st": Measure("semitones re 100 Hz", "pitch"),
    "f0_range_st": Measure("semitones", "pitch"),
    "jitter": Measure("share of the period", "pitch"),
    "words_per_s": Measure("1/s", "rate", lacking=_NO_TEXT),
    "syllables_per_s": Measure("1/s", "rate", lacking=_NO_TEXT),
    "seconds_per_word": Measure("s", "rate", lacking=_NO_TEXT),
    "level_db": Measure("dBFS", "signal"),
    "pause_share": Measure("share", "signal"),
    "longest_silence_s": Measure("s", "signal"),
    "stop_failures": Measure("share", "generation", is_share=True),
}
"""Every metric; further quality judges add theirs (`measures`)."""


def measures(rows: Sequence[FileRow]) -> dict[str, Measure]:
    """`METRICS`, and the scores that further quality judges gave these rows."""
    predicted = sorted({name for row in rows for name in row["values"] if is_predicted(name)} - set(METRICS))
    return METRICS | {name: Measure("score", "quality") for name in predicted}


@dataclass(frozen=True)
class Margin:
    """How much harm still counts as preserved, fixed before anything is measured."""

    size: float
    worse: Worse


MARGINS: dict[str, Margin] = {
    "wer": Margin(0.01, "higher"),
    "mos_overall": Margin(0.1, "lower"),
    "delta_nll": Margin(0.01, "higher"),
    "speaker_similarity": Margin(0.02, "lower"),
}
PLAIN_MARGINS: dict[str, Margin] = {**MARGINS, "posterior": Margin(0.05, "higher")}
"""The same for plain prompts, where the emotion must not leak."""


_AMONG_THEMSELVES: dict[Role | None, str] = {"base": "speaker_similarity", "real": "emotion_similarity"}
"""Metrics that compare these systems' files with each other, and another system's files with theirs."""


def summarise(rows: Sequence[FileRow], judges: Judges, role: Role | None = None) -> dict[str, Metric]:
    """Every metric over `rows`, with its interval; one that can't be computed is null with a reason.

    Prompts (texts, or files if the text isn't known) are resampled. Files with an error are left out of every mean and
    only count in `stop_failures` and in the system's `num_failed`. `role` is the system's.
    """
    found = measures(rows)
    if own := _AMONG_THEMSELVES.get(role):
        found[own] = replace(found[own], is_of_pairs=True)
    return {name: to_metric(_estimate(rows, name, measure, judges), measure.unit) for name, measure in found.items()}


def build_system(
    name: str, role: Role, rows: Sequence[FileRow], judges: Judges, intensity: float | None = None
) -> System:
    """A SYSTEM: rows whose prompt is plain go into `plain_metrics`, all others into `metrics` and `confusion`."""
    plain = [row for row in rows if row["prompt"] == "plain"]
    others = [row for row in rows if row["prompt"] != "plain"]
    choosing = [row for row in others if row["values"]["first_choice"] is not None]
    choices = [str(row["values"]["first_choice"]) for row in choosing]
    return System(
        name=name,
        role=role,
        intensity=intensity,
        num_files=len(rows),
        num_failed=sum(row["error"] is not None for row in rows),
        metrics=summarise(others, judges, role),
        plain_metrics=summarise(plain, judges, role) if plain else None,
        confusion=emotion_metrics.confusion(choices, judges.emotion.labels) if judges.emotion else None,
        confusion_shares=_shares(choices, list(map(_prompt_of, choosing)), judges.emotion.labels)
        if judges.emotion
        else None,
        files=list(rows),
    )


def compare(
    system_rows: Sequence[FileRow],
    base_rows: Sequence[FileRow],
    *,
    system: str,
    against: str,
    prompt: Prompt | None,
    emotion: str | None = None,
    by_seed: bool = True,
) -> Comparison:
    """System minus base over the pairs with equal (text, speaker, seed) among the rows of `prompt`; without `by_seed`
    seeds may differ.

    A metric with a margin gets a verdict; one that `emotion` should move gets `expected` and `holds`, where the base's
    plain reading serves as the speaker's neutral one. `flips_lost` and `flips_gained` are the shares of the pairs that
    only the base, or only the system, spoke intelligibly. If the system lost a prompt that the base spoke, `preserved`
    becomes `undecided`, because the remaining pairs are survivors. Raises DataError if a pair isn't unique.
    """
    margins = PLAIN_MARGINS if prompt == "plain" else MARGINS
    ours = rows_by_prompt(system_rows, prompt, system, by_seed)
    theirs = rows_by_prompt(base_rows, prompt, against, by_seed)
    pairs = [(ours[key], theirs[key]) for key in sorted(set(ours) & set(theirs), key=str)]
    num_lost = sum(row["error"] is None and _is_lost(ours.get(key)) for key, row in theirs.items())
    is_same = bool(pairs) and all(our_row["values"] == their_row["values"] for our_row, their_row in pairs)
    differences = {
        name: _difference(pairs, name, measure, is_same)
        for name, measure in measures([*system_rows, *base_rows]).items()
    }
    known = [name for name, difference in differences.items() if difference.p_value is not None]
    adjusted = dict(zip(known, statistics.holm([differences[name].p_value or 0.0 for name in known]), strict=True))
    metrics = {
        name: _compared(difference, margins.get(name), num_lost, adjusted.get(name))
        for name, difference in differences.items()
    }
    if emotion is not None:
        mark_expected(metrics, emotion)
    return Comparison(system=system, against=against, prompt=prompt, metrics=metrics | _flips(pairs))


def _shares(choices: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> dict[str, Metric]:
    return {
        label: to_metric(statistics.share([choice == label for choice in choices], prompts), "share")
        for label in dict.fromkeys(labels)
    }


def _flips(pairs: Sequence[tuple[FileRow, FileRow]]) -> dict[str, ComparedMetric]:
    """Pairs that only one side spoke intelligibly, as shares of all pairs, with Wilson's intervals."""
    heard = [tuple(row["values"].get("intelligible") for row in pair) for pair in pairs]
    known = [side for side in heard if None not in side]
    prompts = [_prompt_of(theirs) for (_, theirs), side in zip(pairs, heard, strict=True) if None not in side]
    counted = {"flips_lost": [side == (0, 1) for side in known], "flips_gained": [side == (1, 0) for side in known]}
    return {
        name: ComparedMetric(
            difference=share.value, low=share.low, high=share.high, n=share.n, margin=None, verdict=None,
            reason="no margin was stated for this metric" if known else "no pair has words on both sides", p_holm=None,
        )
        for name, share in ((name, statistics.share(events, prompts)) for name, events in counted.items())
    }  # fmt: skip


def _estimate(rows: Sequence[FileRow], name: str, measure: Measure, judges: Judges) -> Estimate:
    names = measure.ratio or (name,)
    known = [row for row in rows if all(row["values"].get(value) is not None for value in names)]
    if not known:
        return Estimate(None, None, None, 0, _reason(rows, measure, judges))
    columns = [[_number(row, value) for row in known] for value in names]
    prompts = [_prompt_of(row) for row in known]
    if measure.is_share:
        return statistics.share([value == 1 for value in columns[0]], prompts)
    if measure.ratio:
        return statistics.bootstrap_ratio(columns[0], columns[1], prompts, is_count=True)
    if measure.is_of_pairs:
        jackknife = statistics.bootstrap_mean(_pseudo_values(known, name), prompts)
        return replace(jackknife, value=sum(columns[0]) / len(known))
    return statistics.bootstrap_mean(columns[0], prompts)


def _pseudo_values(rows: Sequence[FileRow], name: str) -> list[float]:
    """Jackknife pseudo-values, which count as independent, of files whose values are means over pairs among them."""
    voices = [(row["speaker"], row["prompt"]) for row in rows]
    return jackknifed([_number(row, name) for row in rows], voices, [_prompt_of(row) for row in rows])


def _difference(pairs: Sequence[tuple[FileRow, FileRow]], name: str, measure: Measure, is_same: bool) -> Difference:
    names = measure.ratio or (name,)
    known = [pair for pair in pairs if all(row["values"].get(value) is not None for row in pair for value in names)]
    if not known:
        return Difference(None, None, None, 0, "no pairs" if not pairs else "no pair has this value on both sides")
    if is_same:
        return Difference(0.0, 0.0, 0.0, len(known), p_value=1.0)
    ones = [1.0] * len(known)
    sides = [[[_number(pair[side], value) for pair in known] for value in names] for side in (0, 1)]
    (top, bottom), (base_top, base_bottom) = ((side[0], side[1] if measure.ratio else ones) for side in sides)
    prompts = [_prompt_of(base) for _, base in known]
    if measure.is_of_pairs:
        ours, theirs = (_pseudo_values([pair[side] for pair in known], name) for side in (0, 1))
        jackknife = statistics.paired_difference((ours, ones), (theirs, ones), prompts)
        return replace(jackknife, value=(sum(top) - sum(base_top)) / len(known))
    return statistics.paired_difference((top, bottom), (base_top, base_bottom), prompts, is_count=measure.is_count)


def _compared(difference: Difference, margin: Margin | None, num_lost: int, p_holm: float | None) -> ComparedMetric:
    verdict, reason = None, difference.reason or "no margin was stated for this metric"
    if margin is not None and difference.value is not None:
        verdict, why = statistics.non_inferiority(difference, margin.size, margin.worse)
        reason = why or ""
        if verdict == "preserved" and num_lost:
            lost = counted(num_lost, "prompt that the base spoke is", "prompts that the base spoke are")
            verdict, reason = "undecided", f"{lost} lost in the system"
    return ComparedMetric(
        difference=difference.value, low=difference.low, high=difference.high, n=difference.n,
        margin=margin.size if margin else None, verdict=verdict, reason=reason or None, p_holm=p_holm,
    )  # fmt: skip


def _reason(rows: Sequence[FileRow], measure: Measure, judges: Judges) -> str:
    """Why no row has the value."""
    if not rows:
        return "there are no such files"
    if measure.source == "generation":
        return "these files weren't generated here, so it isn't known how they stopped"
    if measure.source in KINDS and getattr(judges, measure.source, None) is None:
        return judges.reason(measure.source)
    if all(row["error"] is not None for row in rows):
        return "every file failed"
    return measure.lacking


def rows_by_prompt(
    rows: Sequence[FileRow], prompt: Prompt | None, name: str, by_seed: bool = True
) -> dict[tuple[object, ...], FileRow]:  # fmt: skip
    """Rows of `prompt` by what they are paired by: (text, speaker, seed). Rows without a text can't be paired.

    Raises DataError if two rows of the system `name` would be in the same pair.
    """
    chosen = [row for row in rows if row["prompt"] == prompt and row["text"] is not None]
    keys = [(row["text"], row["speaker"], row["seed"] if by_seed else None) for row in chosen]
    if repeated := [key for key, times in Counter(keys).items() if times > 1]:
        raise DataError(
            f"{name} has {counted(len(repeated), 'prompt')} more than once, for example {repeated[0]}: can't pair them"
        )
    return dict(zip(keys, chosen, strict=True))


def _is_lost(row: FileRow | None) -> bool:
    return row is None or row["error"] is not None


def _prompt_of(row: FileRow) -> str:
    return f"text:{row['text']}" if row["text"] is not None else f"file:{row['file']}"


def _number(row: FileRow, name: str) -> float:
    value = row["values"][name]
    assert isinstance(value, (int, float)), (name, value)
    return float(value)
