from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from affetto.errors import DataError
from affetto.evaluate.results import VALUE_NAMES, FileRow, to_metric
from affetto.evaluate.summary import MARGINS, METRICS, build_system, compare, summarise
from affetto.judges.choice import Judges
from affetto.metrics import emotion
from affetto.metrics.statistics import wilson_interval
from evaluate_fakes import PitchJudge, PitchWords

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
JUDGES = Judges(PitchJudge(), PitchWords())


def row(index: int, error: str | None = None, prompt: str | None = "emotional", **values: Any) -> FileRow:
    filled = {**dict.fromkeys(VALUE_NAMES), **values}
    return FileRow(
        file=f"{index}.wav", prompt=prompt, text=f"text {index}", speaker="a", seed=0, duration_s=1.0, error=error,
        values=filled,
    )  # type: ignore[typeddict-item]  # fmt: skip


def _rows(edits: list[int], num_words: int = 10) -> list[FileRow]:
    return [row(i, word_edits=e, num_words=num_words, level_db=-20.0 - i) for i, e in enumerate(edits)]


def test_metrics_are_the_documented_ones() -> None:
    documented = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", DOCUMENT.read_text(), flags=re.MULTILINE)))
    assert set(METRICS) - set(documented) == set(), "docs/evaluation.md has a row for each"
    assert (MARGINS["wer"].size, MARGINS["delta_nll"].size) == (0.01, 0.01)


def test_recall_has_wilsons_interval_and_posterior_a_mean() -> None:
    rows = [row(i, recall=int(i < 7), posterior=i / 10) for i in range(10)]
    metrics = summarise(rows, JUDGES)
    theirs = stats.binomtest(7, 10).proportion_ci(method="wilson")
    assert metrics["recall"] == {
        "value": 0.7, "low": pytest.approx(theirs.low), "high": pytest.approx(theirs.high), "n": 10, "unit": "share",
        "reason": None,
    }  # fmt: skip
    assert metrics["posterior"]["value"] == pytest.approx(0.45)


def test_files_that_share_prompts_tell_less_whoever_counts_them() -> None:
    """A run's summary and the metric on its own give the same estimates of the same files."""
    posteriors_NL = np.random.default_rng(0).dirichlet([1, 1], size=24)
    texts = [f"text {index % 4}" for index in range(24)]
    rows = [
        row(index, recall=int(happy > sad), posterior=float(happy)) | {"text": text}
        for index, ((sad, happy), text) in enumerate(zip(posteriors_NL, texts, strict=True))
    ]
    metrics, alone = summarise(rows, JUDGES), emotion.evaluate(posteriors_NL, ("sad", "happy"), "happy", texts)  # type: ignore[arg-type]
    for name in ("recall", "posterior"):
        assert metrics[name] == to_metric(alone[name], "share")
    low, high = wilson_interval(sum(happy > sad for sad, happy in posteriors_NL), 24)
    assert (metrics["recall"]["high"] or 0) - (metrics["recall"]["low"] or 1) > high - low


def test_pitfall_27_wer_is_the_corpus_rate() -> None:
    rows = [row(0, word_edits=1, num_words=1, wer=1.0), row(1, word_edits=0, num_words=9, wer=0.0)]
    assert summarise(rows, JUDGES)["wer"]["value"] == 0.1


def test_plain_prompts_are_kept_apart() -> None:
    rows = [row(0, recall=1, first_choice="happy"), row(1, prompt="plain", recall=0, first_choice="sad")]
    system = build_system("x", "adapter", rows, JUDGES, 0.8)
    assert system["metrics"]["recall"]["value"] == 1.0
    assert system["plain_metrics"] is not None
    assert system["plain_metrics"]["recall"]["value"] == 0.0
    assert system["confusion"] == {"sad": 0, "happy": 1}
    assert build_system("x", "base", rows[:1], JUDGES)["plain_metrics"] is None
    assert build_system("x", "files", rows, Judges())["confusion"] is None


def test_when_all_failed_the_reason_says_so() -> None:
    metrics = summarise([row(0, error="silent")], JUDGES)
    assert metrics["wer"]["reason"] == metrics["level_db"]["reason"] == "every file failed"
    assert summarise([], JUDGES)["wer"]["reason"] == "there are no such files"


def _compare(system: list[FileRow], base: list[FileRow]) -> dict[str, Any]:
    return dict(compare(system, base, system="happy", against="base", prompt="emotional")["metrics"])


def test_pairs_are_by_text_speaker_and_seed_and_not_by_place() -> None:
    base, system = _rows([0] * 15 + [1] * 15), _rows([1] * 15 + [2] * 15)
    straight, turned = _compare(system, base), _compare(system[::-1], base)
    assert straight == turned
    assert straight["wer"]["difference"] == pytest.approx(0.1)
    assert (straight["wer"]["low"], straight["wer"]["high"]) == pytest.approx((0.1, 0.1)), "one edit in every pair"
    other_seed = [FileRow(**{**one, "seed": 1}) for one in system]
    assert _compare(other_seed, base)["wer"]["reason"] == "no pairs"
    reseeded = compare(other_seed, base, system="again", against="base", prompt="emotional", by_seed=False)
    assert dict(reseeded["metrics"]) == straight, "the base with other seeds is paired by text and speaker"
    with pytest.raises(DataError, match="more than once"):
        compare([*system, *other_seed], base, system="again", against="base", prompt="emotional", by_seed=False)


def test_the_margin_decides_the_verdict() -> None:
    base = _rows([0, 1] * 20)
    worse = _compare(_rows([1, 2] * 20), base)["wer"]
    assert (worse["verdict"], worse["margin"], worse["n"]) == ("worse", 0.01, 40)
    better = _compare(base, _rows([1, 2] * 20))["wer"]
    assert better["verdict"] == "preserved"
    mixed = _compare(_rows([1, 0, 0, 2] * 10), base)["wer"]
    assert mixed["verdict"] == "undecided"


def test_no_verdict_under_twenty_pairs_or_without_a_margin() -> None:
    few = _compare(_rows([1] * 19), _rows([0] * 19))
    assert few["wer"]["verdict"] is None
    assert "19 pairs" in few["wer"]["reason"]
    assert few["level_db"]["verdict"] is None
    assert few["level_db"]["reason"] == "no margin was stated for this metric"


def test_the_same_files_are_preserved_but_equal_counts_on_a_few_prompts_are_not_proof() -> None:
    base = _rows([0] * 20)
    assert _compare(base, base)["wer"]["verdict"] == "preserved"
    assert _compare(base, base)["wer"]["high"] == 0.0
    other = [row(i, word_edits=0, num_words=10, level_db=-30.0) for i in range(20)]
    assert _compare(other, base)["wer"]["verdict"] == "undecided"
    many, others = _rows([0] * 200), [row(i, word_edits=0, num_words=10, level_db=-30.0) for i in range(200)]
    assert _compare(others, many)["wer"]["verdict"] == "preserved"


def test_pitfall_26_survivors_do_not_prove_preservation() -> None:
    base = _rows([1] * 40)
    failed = [*_rows([0] * 39), row(39, error="empty: the file has no samples")]
    lost = _compare(failed, base)["wer"]
    assert lost["n"] == 39
    assert lost["verdict"] == "undecided"
    assert "1 prompt that" in lost["reason"]
    assert _compare(failed[:39], base)["wer"]["verdict"] == "undecided", "a missing row is no better than a failed one"
    assert _compare(_rows([0] * 40), base)["wer"]["verdict"] == "preserved"


def test_holm_is_over_the_metrics_of_the_comparison() -> None:
    rng = np.random.default_rng(0)
    base = [row(i, level_db=-20 + rng.normal(), f0_median_st=5 + rng.normal()) for i in range(30)]
    moved = [{**one["values"], "f0_median_st": one["values"]["f0_median_st"] + 1 + 0.1 * rng.normal()} for one in base]  # type: ignore[operator]
    system = [row(i, **{**values, "level_db": values["level_db"] + rng.normal()}) for i, values in enumerate(moved)]
    metrics = _compare(system, base)
    assert metrics["f0_median_st"]["p_holm"] < 0.01 < metrics["level_db"]["p_holm"]
    assert metrics["wer"]["p_holm"] is None
    alone = _compare(
        [row(i, f0_median_st=one["values"]["f0_median_st"]) for i, one in enumerate(system)],
        [row(i, f0_median_st=one["values"]["f0_median_st"]) for i, one in enumerate(base)],
    )
    assert metrics["f0_median_st"]["p_holm"] == pytest.approx(2 * alone["f0_median_st"]["p_holm"])


def test_differences_are_of_the_paired_rows_only() -> None:
    base = [row(i, posterior=0.1 * i) for i in range(5)]
    system = [row(i, posterior=0.1 * i + 0.3) for i in range(2, 8)]
    difference = _compare(system, base)["posterior"]
    assert difference["n"] == 3
    assert math.isclose(difference["difference"], 0.3)


def test_leaking_into_plain_prompts_has_a_margin_and_expressing_when_asked_has_none() -> None:
    base = [row(i, prompt="plain", posterior=0.1) for i in range(25)]
    leaking = [row(i, prompt="plain", posterior=0.3) for i in range(25)]
    plain = compare(leaking, base, system="happy", against="base", prompt="plain")["metrics"]["posterior"]
    assert (plain["margin"], plain["verdict"]) == (0.05, "worse")
    asked = [[row(i, posterior=value) for i in range(25)] for value in (0.3, 0.1)]
    emotional = _compare(*asked)["posterior"]
    assert (emotional["margin"], emotional["verdict"]) == (None, None)


def test_a_prompt_that_comes_twice_cannot_be_paired() -> None:
    rows = _rows([1, 2])
    twice = [*rows, FileRow(**{**rows[0], "file": "again.wav"})]
    with pytest.raises(DataError, match="more than once"):
        _compare(twice, rows)


def test_files_without_text_are_not_paired() -> None:
    rows = [FileRow(**{**one, "text": None}) for one in _rows([1, 2])]
    assert _compare(rows, rows)["wer"]["reason"] == "no pairs"


def test_what_was_understood_before_and_is_not_after_is_counted() -> None:
    base = [row(i, intelligible=int(i < 30)) for i in range(40)]
    system = [row(i, intelligible=int(i < 20 or i >= 38)) for i in range(40)]
    metrics = _compare(system, base)
    lost, gained = metrics["flips_lost"], metrics["flips_gained"]
    assert (lost["difference"], gained["difference"]) == (10 / 40, 2 / 40)
    theirs = stats.binomtest(10, 40).proportion_ci(method="wilson")
    assert (lost["low"], lost["high"]) == pytest.approx((theirs.low, theirs.high))
    assert metrics["intelligible"]["difference"] == pytest.approx(-8 / 40), "what was gained less what was lost"
    assert _compare(_rows([1]), _rows([1]))["flips_lost"]["reason"] == "no pair has words on both sides"


def test_confusion_has_wilsons_intervals() -> None:
    rows = [row(i, first_choice="happy" if i < 7 else "sad") for i in range(10)]
    system = build_system("x", "files", rows, JUDGES)
    shares = system["confusion_shares"]
    assert shares is not None
    assert list(shares) == ["sad", "happy"]
    theirs = stats.binomtest(3, 10).proportion_ci(method="wilson")
    assert (shares["sad"]["value"], shares["sad"]["n"]) == (0.3, 10)
    assert (shares["sad"]["low"], shares["sad"]["high"]) == pytest.approx((theirs.low, theirs.high))


def _voices(points: np.ndarray[Any, np.dtype[np.float64]]) -> list[FileRow]:
    """A voice's files as points; a pair's cosine is their product, a file's value its mean over the others."""
    values = points * (points.sum() - points) / (len(points) - 1)
    return [row(i, voice_consistency=float(value), speaker_similarity=float(value)) for i, value in enumerate(values)]


def test_differences_of_means_over_pairs_are_as_sure_as_they_say() -> None:
    """Two systems that differ by chance alone: taken for independent values, 65 of a hundred intervals hold 0."""
    rng, holds, num_worlds = np.random.default_rng(5), 0, 150
    for _ in range(num_worlds):
        ours, theirs = (_voices(rng.normal(1, 0.3, 24)) for _ in range(2))
        found = compare(ours, theirs, system="x", against="y", prompt="emotional")["metrics"]["voice_consistency"]
        means = [np.mean([one["values"]["voice_consistency"] for one in rows]) for rows in (ours, theirs)]
        assert found["difference"] == pytest.approx(means[0] - means[1])
        assert found["low"] is not None
        assert found["high"] is not None
        assert found["low"] < (found["difference"] or 0) < found["high"]
        holds += found["low"] <= 0 <= found["high"]
    assert holds / num_worlds >= 0.9


def test_the_base_is_as_sure_of_its_own_voice_whichever_metric_tells() -> None:
    rows = _voices(np.random.default_rng(6).normal(1, 0.3, 24))
    base, adapter = (build_system("x", role, rows, JUDGES)["metrics"] for role in ("base", "adapter"))
    assert base["speaker_similarity"] == base["voice_consistency"]
    assert base["speaker_similarity"]["value"] == adapter["speaker_similarity"]["value"]
    wide, narrow = ((one["speaker_similarity"]["high"] or 0) - (one["speaker_similarity"]["low"] or 0)
                    for one in (base, adapter))  # fmt: skip
    assert wide > 1.5 * narrow, "another's files are likened to the base's, which are given"
