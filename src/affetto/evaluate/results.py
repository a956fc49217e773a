"""The results document of docs/results.md: typed dictionaries, checked whenever a document is written or read.

It is strict JSON: a number that can't be computed is null with a reason, and NaN is refused. Beside it is a CSV twin
with one row per file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired

import pydantic
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from affetto.errors import DataError, counted
from affetto.evaluate.own_files import OWN_CSV, OWN_JSON, check_own
from affetto.files import read_json, why_unreadable, write_json, write_text
from affetto.metrics.statistics import Estimate, Verdict, Worse
from affetto.provenance import versions

SCHEMA = "affetto.results/1"

Prompt = Literal["emotional", "plain"]
Role = Literal["base", "adapter", "real", "reseeded", "files"]
"""`reseeded` is the base with other seeds, which differs from the base by chance alone."""
Value = float | int | str | None

VALUE_NAMES = (
    "recall", "posterior", "first_choice", "wer", "cer", "word_edits", "num_words", "char_edits", "num_chars", "heard",
    "truncated", "repeated", "runaway", "mos_overall", "mos_signal", "mos_background", "f0_median_st", "f0_range_st",
    "jitter", "words_per_s", "level_db", "pause_share", "longest_silence_s", "stop_failures", "substitutions",
    "deletions", "insertions", "intelligible", "syllables_per_s", "seconds_per_word", "arousal", "dominance", "valence",
    "speaker_similarity", "similarity_same_prompt", "similarity_to_reference", "voice_consistency",
    "emotion_similarity",
)  # fmt: skip
"""The names in a file's `values`, in the order of the CSV's columns. Shares of one file (recall, stop_failures) and the
flags (truncated, repeated, runaway, intelligible) are 0 or 1; `heard` is the word judge's transcript. Each further
quality judge adds a value, whose name begins with `PREDICTED`; their columns come last."""
AT_STRENGTHS = ("recall", "posterior", "wer", "f0_median_st")
"""Metrics that are stored for every strength."""
PREDICTED = "mos_"

_checked = pydantic.with_config(pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


@_checked
class Metric(TypedDict):
    """A number over files, with its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    reason: str | None


@_checked
class ComparedMetric(TypedDict):
    """A paired difference; `p_holm` is its two-sided p-value after Holm over the comparison's metrics."""

    difference: float | None
    low: float | None
    high: float | None
    n: int
    margin: float | None
    verdict: Verdict | None
    reason: str | None
    p_holm: float | None
    expected: NotRequired[Worse | None]
    """Direction in which the target emotion should move it (`expectations`); absent if none is known."""
    holds: NotRequired[Literal["yes", "no", "undecided"] | None]
    """Whether the interval is wholly on the expected side of 0, wholly on the other, or neither; null below 20."""


@_checked
class JudgeFacts(TypedDict):
    """The judge of one kind."""

    id: str
    tier: Literal["miniature", "bundled", "package", "hub", "local", "mixed"]
    labels: list[str] | None
    licence: str | None
    sample_rate: int
    ceiling: Metric | None
    languages: NotRequired[list[str]]
    heard: NotRequired[list[str]]
    """Corpora that it was trained on, and so judges too kindly. Absent, like the other optional facts, if unknown."""
    scale: NotRequired[str]
    note: NotRequired[str]
    members: NotRequired[list[JudgeFacts]]
    """The facts of each, if there are several quality judges."""


@_checked
class FileRow(TypedDict):
    """One sound file and its values."""

    file: str
    prompt: Prompt | None
    text: str | None
    speaker: str | None
    seed: int | None
    duration_s: float | None
    error: str | None
    values: dict[str, Value]


@_checked
class System(TypedDict):
    """A model at one intensity, or recordings. `folder` has its files, relative to the results' own folder."""

    name: str
    role: Role
    folder: NotRequired[str]
    intensity: float | None
    num_files: int
    num_failed: int
    metrics: dict[str, Metric]
    plain_metrics: dict[str, Metric] | None
    confusion: dict[str, int] | None
    confusion_shares: NotRequired[dict[str, Metric] | None]
    """The confusion as shares of the files that were judged, with Wilson's intervals."""
    files: list[FileRow]


@_checked
class Comparison(TypedDict):
    """One system against another on the same prompts, speakers and seeds (other seeds for a `reseeded` one)."""

    system: str
    against: str
    prompt: Prompt | None
    metrics: dict[str, ComparedMetric]


@_checked
class PerCodebook(TypedDict):
    """Teacher-forced numbers for each of the K codebooks."""

    delta_nll: list[float]
    kl: list[float]


@_checked
class TextRetention(TypedDict):
    """Retention of the text that runs beside the frames, in nats per token."""

    num_tokens: int
    delta_nll: Metric
    kl: Metric


@_checked
class Strength(TypedDict):
    """`AT_STRENGTHS` at one intensity: of the adapter over the same sentences, or of recordings acted at it."""

    intensity: float
    metrics: dict[str, Metric]


@_checked
class Retention(TypedDict):
    """What the model remembers, teacher-forced on held-out general clips."""

    num_clips: int
    num_codes: int
    delta_nll: Metric
    kl: Metric
    per_codebook: PerCodebook
    text: NotRequired[TextRetention]
    """For a base with a text stream (Moshi), whose `delta_nll` and `kl` include it with the codes of its frame."""


@_checked
class Results(TypedDict):
    """The whole document."""

    schema: str
    emotion: str
    command: str
    versions: dict[str, str]
    judges: dict[str, JudgeFacts | None]
    systems: list[System]
    comparisons: list[Comparison]
    retention: Retention | None
    strengths: NotRequired[list[Strength]]
    """The adapter's, weakest first, including the evaluated one; absent if only that was spoken."""
    real_strengths: NotRequired[list[Strength]]
    """Those of held-out recordings, by the intensity of their acting, weakest first; absent if all have the same."""
    notes: NotRequired[list[str]]
    """What a reader must know about how it was measured; absent if there is nothing."""


def to_metric(estimate: Estimate, unit: str) -> Metric:
    """A METRIC of an estimate."""
    return Metric(
        value=estimate.value, low=estimate.low, high=estimate.high, n=estimate.n, unit=unit, reason=estimate.reason
    )


def build_results(
    emotion: str,
    command: str,
    judges: dict[str, JudgeFacts | None],
    systems: Sequence[System],
    comparisons: Sequence[Comparison] = (),
    retention: Retention | None = None,
    strengths: Sequence[Strength] = (),
    real_strengths: Sequence[Strength] = (),
    notes: Sequence[str] = (),
) -> Results:
    """A checked document."""
    return validate_results({
        "schema": SCHEMA, "emotion": emotion, "command": command, "versions": versions(), "judges": judges,
        "systems": list(systems), "comparisons": list(comparisons), "retention": retention,
        **({"strengths": list(strengths)} if strengths else {}),
        **({"real_strengths": list(real_strengths)} if real_strengths else {}),
        **({"notes": list(notes)} if notes else {}),
    })  # fmt: skip


def validate_results(document: Mapping[str, Any]) -> Results:
    """Check types, finite numbers, a reason for every null, and counts that add up (DataError)."""
    if document.get("schema") not in (None, SCHEMA):
        raise DataError(f"results of schema {document['schema']!r} can't be read; this affetto reads {SCHEMA!r}")
    try:
        results = pydantic.TypeAdapter(Results).validate_python(document)
    except pydantic.ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]]
        raise DataError("this is not a results document; " + "; ".join(lines)) from error
    for system in results["systems"]:
        _check_system(system)
    for comparison in results["comparisons"]:
        _check_comparison(comparison)
    return results


def write_results(path: Path, document: Mapping[str, Any]) -> None:
    """Check and write the JSON at `path` and its CSV twin; DataError if either is a file that affetto didn't write."""
    results = validate_results(document)
    check_own(path, OWN_JSON)
    check_own(path.with_suffix(".csv"), OWN_CSV)
    write_json(path, results)
    write_text(path.with_suffix(".csv"), to_csv(results))


def read_results(path: Path) -> Results:
    """Read and check a document (DataError)."""
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"can't read the results {path}: {why_unreadable(error)}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path} holds no results document")
    try:
        return validate_results(document)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def to_csv(results: Results) -> str:
    """CSV with one line per file of every system; null is an empty cell."""
    facts = ("file", "prompt", "text", "speaker", "seed", "duration_s", "error")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rows = [row for system in results["systems"] for row in system["files"]]
    names = (*VALUE_NAMES, *sorted({name for row in rows for name in row["values"]} - set(VALUE_NAMES)))
    writer.writerow(["system", "role", "intensity", *facts, *names])
    for system in results["systems"]:
        about = [system["name"], system["role"], system["intensity"]]
        for row in system["files"]:
            known: dict[str, Any] = {**row, **row["values"]}
            writer.writerow([*about, *(known.get(name) for name in (*facts, *names))])
    return out.getvalue()


def is_predicted(name: str) -> bool:
    """Whether a value is the score of a further quality judge."""
    return name.startswith(PREDICTED) and name not in VALUE_NAMES


def _check_system(system: System) -> None:
    num_failed = sum(row["error"] is not None for row in system["files"])
    if (system["num_files"], system["num_failed"]) != (len(system["files"]), num_failed):
        raise DataError(
            f"{system['name']}: num_files {system['num_files']} and num_failed {system['num_failed']} don't fit its "
            f"{counted(len(system['files']), 'file')}, {num_failed} of them with an error"
        )
    for row in system["files"]:
        if unknown := sorted(name for name in set(row["values"]) - set(VALUE_NAMES) if not is_predicted(name)):
            raise DataError(f"{row['file']}: unknown values {', '.join(unknown)}")
    for metrics in (system["metrics"], system["plain_metrics"] or {}):
        for name, metric in metrics.items():
            if metric["value"] is None and not metric["reason"]:
                raise DataError(f"{system['name']}: {name} is null without a reason")


def _check_comparison(comparison: Comparison) -> None:
    for name, metric in comparison["metrics"].items():
        if (metric["difference"] is None or metric["verdict"] is None) and not metric["reason"]:
            raise DataError(
                f"{comparison['system']} against {comparison['against']}: {name} has no verdict and no reason"
            )
