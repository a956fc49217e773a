"""What the metric modules' `evaluate` say is what scoring and its summary put into the results."""

from __future__ import annotations

import numpy as np
import pytest

from affetto.evaluate.results import FileRow
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.summary import METRICS, build_system, summarise
from affetto.metrics import activity, emotion, prosody, words
from evaluate_fakes import RATE, PitchJudge, PitchWords, fake_judges, silence, voice

TEXTS = ["twelve", "fourteen times", "eighteen", "…", "one hundred and four"]
SOUNDS = [
    np.concatenate([
        silence(0.1), voice(110 + 20 * index, 0.5, end_hz=130 + 25 * index), silence(0.1 + 0.05 * index),
        voice(140, 0.3),
    ])
    for index in range(len(TEXTS))
]  # fmt: skip
ROUNDED = 1e-6
"""Rows are rounded to six decimals."""


@pytest.fixture(scope="module")
def rows() -> list[FileRow]:
    items = [
        Item(f"{index}.wav", sound, RATE, text=text, prompt="emotional")
        for index, (sound, text) in enumerate(zip(SOUNDS, TEXTS, strict=True))
    ]
    return score_files(items, fake_judges(), "happy")


def test_sounds_have_the_rows_values(rows: list[FileRow]) -> None:
    for row, sound in zip(rows, SOUNDS, strict=True):
        found = {**activity.evaluate(sound, RATE), **prosody.evaluate(sound, RATE)}
        assert set(found) == {name for name, measure in METRICS.items() if measure.source in ("signal", "pitch")}
        assert found == pytest.approx({name: row["values"][name] for name in found}, abs=ROUNDED)


def test_words_have_the_summarys_values(rows: list[FileRow]) -> None:
    found_s = [activity.find_activity(sound, RATE) for sound in SOUNDS]
    sounding_s = [one.end_s - one.start_s for one in found_s if one is not None]
    found = words.evaluate(TEXTS, PitchWords().transcribe(SOUNDS), sounding_s)
    summary = summarise(rows, fake_judges())
    assert set(found) == {name for name, measure in METRICS.items() if measure.source in ("words", "rate")}
    assert found == pytest.approx({name: summary[name]["value"] for name in found}, abs=ROUNDED)
    assert found["wer"], "equal because nothing was misheard"


def test_emotions_have_the_summarys_values(rows: list[FileRow]) -> None:
    judge = PitchJudge()
    found = emotion.evaluate(judge.posteriors(SOUNDS), judge.labels, "happy", TEXTS)
    system = build_system("x", "files", rows, fake_judges())
    assert found["confusion"] == system["confusion"]
    for name, estimate in (("recall", found["recall"]), ("posterior", found["posterior"])):
        metric = system["metrics"][name]
        expected = (metric["value"], metric["low"], metric["high"])
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx(expected, abs=1e-5), name
