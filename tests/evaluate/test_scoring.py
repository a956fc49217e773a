from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from affetto.errors import DataError, JudgeError
from affetto.evaluate.results import VALUE_NAMES
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.summary import METRICS, build_system, summarise
from affetto.files import to_json
from affetto.judges.choice import Judges
from affetto.metrics.words import score_words
from evaluate_fakes import RATE, LevelQuality, PitchJudge, PitchWords, fake_judges, silence, voice

SIMILARITIES = {name for name, measure in METRICS.items() if measure.source in ("voice", "embedding")}


def _spoken(index: int) -> NDArray[np.float32]:
    """A sound unlike that of any other index in every respect that is measured."""
    pause = silence(0.12 + 0.03 * index)
    first = voice(
        110 + 20 * index, 0.5 + 0.07 * index, 0.05 + 0.01 * index, end_hz=(110 + 20 * index) * (1.1 + 0.1 * index)
    )
    noise = np.random.default_rng(index).normal(0, 1e-4, len(first)).astype(np.float32)
    return np.concatenate([silence(0.1), first + noise, pause, voice(110 + 20 * index, 0.4, 0.05), silence(0.1)])


TEXTS = ["twelve", "fourteen times", "one two three", "eighteen", "seven hundred and four"]


def _items() -> list[Item]:
    return [
        Item(
            f"{index}.wav", _spoken(index), RATE, text=text, speaker="a", prompt="emotional", seed=index, hit_cap=False
        )
        for index, text in enumerate(TEXTS)
    ]


def test_every_file_has_a_row_with_every_value_in_the_given_order() -> None:
    rows = score_files(_items(), fake_judges(), "happy")
    assert [row["file"] for row in rows] == [f"{index}.wav" for index in range(5)]
    for row in rows:
        assert tuple(row["values"]) == VALUE_NAMES
        assert {name for name, value in row["values"].items() if value is None} == SIMILARITIES, "they need others"
        assert row["error"] is None


def test_values_are_what_the_judges_said() -> None:
    rows = score_files(_items(), fake_judges(), "happy")
    for index, row in enumerate(rows):
        sound, values = _spoken(index), row["values"]
        happy = float(PitchJudge().posteriors([sound])[0, 1])
        assert values["posterior"] == pytest.approx(happy, abs=1e-6)
        assert values["recall"] == int(happy > 0.5)
        assert values["first_choice"] == ("happy" if happy > 0.5 else "sad")
        assert values["heard"] == PitchWords().transcribe([sound])[0]
        score = score_words(TEXTS[index], str(values["heard"]))
        assert score is not None
        assert (values["word_edits"], values["num_words"]) == (score.word_edits, score.num_words)
        assert values["mos_overall"] == pytest.approx(LevelQuality().score([sound])[0]["mos_overall"], abs=1e-6)
        assert row["duration_s"] == pytest.approx(len(sound) / RATE)
        sounding_s = len(sound) / RATE - 0.2
        assert values["words_per_s"] == pytest.approx(score.num_words / sounding_s, rel=0.03)
    assert {row["values"]["recall"] for row in rows} == {0, 1}


def test_pitfall_25_permuting_the_audio_changes_every_score() -> None:
    items = _items()
    moved = [replace(item, sound=items[(index + 1) % 5].sound) for index, item in enumerate(items)]
    before, after = score_files(items, fake_judges(), "happy"), score_files(moved, fake_judges(), "happy")
    counts = {"substitutions", "deletions", "insertions", "intelligible", "truncated", "repeated", "runaway"}
    continuous = set(METRICS) - {"recall", "wer", "cer", "stop_failures"} - counts - SIMILARITIES
    for one, other in zip(before, after, strict=True):
        same = {name for name in continuous if one["values"][name] == other["values"][name]}
        assert not same, f"{one['file']}: {same} don't depend on the sound"
    for name in ("recall", "wer", "cer", "substitutions", "deletions", "insertions"):
        changed = [one["values"][name] != other["values"][name] for one, other in zip(before, after, strict=True)]
        assert any(changed), name


def test_scores_do_not_depend_on_order_or_company() -> None:
    items, judges = _items(), fake_judges()
    rows = score_files(items, judges, "happy")
    assert score_files(items[::-1], judges, "happy") == rows[::-1]
    assert [score_files([item], judges, "happy")[0] for item in items] == rows


class _ByPlace(PitchJudge):
    """What this one says depends on where a sound stands in its batch."""

    def posteriors(self, sounds: list[NDArray[np.float32]]) -> NDArray[np.float64]:
        happy = (np.arange(len(sounds)) + 1) / (len(sounds) + 1)
        return np.stack([1 - happy, happy], axis=1)


def test_the_queue_before_a_judge_does_not_depend_on_the_files_order() -> None:
    items, judges = _items(), Judges(_ByPlace())
    rows = score_files(items, judges, "happy")
    assert len({row["values"]["posterior"] for row in rows}) == 5
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        shuffled = score_files([items[index] for index in order], judges, "happy")
        assert shuffled == [rows[index] for index in order]


def test_the_metrics_do_not_depend_on_order() -> None:
    judges = fake_judges()
    rows = score_files(_items(), judges, "happy")
    assert to_json(summarise(rows, judges)) == to_json(summarise(rows[::-1], judges))


def test_pitfall_28_scoring_twice_gives_the_same_bytes() -> None:
    judges = fake_judges()
    first, second = (build_system("x", "files", score_files(_items(), judges, "happy"), judges) for _ in range(2))
    assert to_json(first) == to_json(second)


def _write_broken(folder: Path) -> dict[str, str]:
    """Files that can't be scored, and a word of the error each must give."""
    (folder / "corrupt.wav").write_bytes(b"RIFF no sound at all")
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "no-samples.wav", silence(0), RATE)
    soundfile.write(folder / "silent.wav", silence(1.0), RATE)
    soundfile.write(folder / "short.wav", voice(150, 0.05), RATE)
    with_nan = voice(150, 0.5)
    with_nan[100] = np.nan
    soundfile.write(folder / "nan.wav", with_nan, RATE, subtype="FLOAT")
    return {
        "corrupt.wav": "unreadable", "empty.wav": "empty", "no-samples.wav": "empty", "silent.wav": "silent",
        "short.wav": "too-short", "nan.wav": "not-finite", "absent.wav": "missing",
    }  # fmt: skip


def test_pitfall_26_what_cannot_be_scored_is_named_and_counted(tmp_path: Path) -> None:
    broken, judges = _write_broken(tmp_path), fake_judges()
    items = [*_items(), *(Item(name, tmp_path / name, text="hello", prompt="emotional") for name in broken)]
    rows = score_files(items, judges, "happy")
    system = build_system("x", "files", rows, judges)
    assert (system["num_files"], system["num_failed"]) == (5 + len(broken), len(broken))
    for row in rows[5:]:
        assert row["error"] is not None
        assert row["error"].startswith(broken[row["file"]])
        assert str(tmp_path) not in row["error"], "results of two machines must agree"
        assert set(row["values"].values()) == {None}
    assert system["metrics"]["recall"]["n"] == 5
    assert rows[:5] == score_files(_items(), judges, "happy"), "broken neighbours change nothing"


def test_samples_can_be_broken_too() -> None:
    bad = voice(150, 0.5)
    bad[3] = np.inf
    sounds = {"empty": silence(0), "not-finite": bad, "too-short": voice(100, 0.02), "silent": silence(1.0)}
    rows = score_files([Item(name, sound, RATE) for name, sound in sounds.items()], fake_judges(), "happy")
    assert [str(row["error"]).split(":")[0] for row in rows] == list(sounds)


def test_a_model_that_says_nothing_or_never_stops_failed_to_stop(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    items = [
        Item("nothing", silence(0), RATE, hit_cap=False),
        Item("empty file", tmp_path / "empty.wav", hit_cap=False),
        Item("endless", voice(150, 2.0), RATE, hit_cap=True),
        Item("fine", voice(160, 1.0), RATE, hit_cap=False),
        Item("recording", voice(170, 1.0), RATE),
    ]
    judges = fake_judges()
    rows = score_files(items, judges, "happy")
    assert [row["values"]["stop_failures"] for row in rows] == [1, 1, 1, 0, None]
    metric = summarise(rows, judges)["stop_failures"]
    assert (metric["value"], metric["n"]) == (0.75, 4)
    assert "weren't generated" in str(summarise(rows[4:], judges)["stop_failures"]["reason"])


def test_pitfall_25_missing_judges_and_texts_give_null_with_a_reason_and_never_zero() -> None:
    items = [replace(item, text=None) for item in _items()]
    judges = Judges(words=PitchWords(), reasons={"quality": "onnxruntime isn't installed"})
    metrics = summarise(score_files(items, judges, "happy"), judges)
    reasons = {name: metric["reason"] for name, metric in metrics.items() if metric["value"] is None}
    assert set(reasons) == {
        *(name for name, measure in METRICS.items() if measure.source in ("emotion", "words", "quality", "rate")),
        *(name for name, measure in METRICS.items() if measure.source in ("voice", "dimensions", "embedding")),
    }
    assert reasons["mos_overall"] == "onnxruntime isn't installed"
    assert reasons["wer"] == reasons["words_per_s"] == "no text is known for these files"
    assert reasons["recall"] == "no emotion judge was given"


def test_unvoiced_sounds_have_no_pitch_but_all_else() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, RATE // 8).astype(np.float32)
    judges = Judges()
    row = score_files([Item("noise", noise, RATE)], judges, "happy")[0]
    assert row["error"] is None
    assert row["values"]["level_db"] == pytest.approx(-20, abs=0.5)
    assert summarise([row], judges)["f0_median_st"]["reason"] == "no file has enough voiced sound"
    assert summarise([row], judges)["level_db"]["n"] == 1


def test_pitfall_25_a_judge_without_the_target_is_refused_before_anything_is_scored() -> None:
    with pytest.raises(JudgeError, match="surprised"):
        score_files(_items(), fake_judges(), "surprised")


class _Broken(PitchJudge):
    """No number for the other label alone."""

    def posteriors(self, sounds: list[NDArray[np.float32]]) -> NDArray[np.float64]:
        return np.array([[np.nan, 0.5]] * len(sounds))


@pytest.mark.parametrize("emotion", ["happy", "sad"])
def test_a_judge_that_gives_no_number_is_an_error(emotion: str) -> None:
    with pytest.raises(JudgeError, match="gave no number"):
        score_files(_items(), Judges(_Broken()), emotion)


def test_judges_hear_at_their_own_rate(tmp_path: Path) -> None:
    heard: list[int] = []

    class Slow(PitchWords):
        sample_rate = 8000

        def transcribe(self, sounds: list[NDArray[np.float32]]) -> list[str]:
            heard.extend(len(sound) for sound in sounds)
            return ["x"] * len(sounds)

    soundfile.write(tmp_path / "a.wav", voice(150, 1.5, rate=24_000), 24_000)
    items = [Item("file", tmp_path / "a.wav"), Item("samples", voice(150, 1.25, rate=24_000), 24_000)]
    rows = score_files(items, Judges(words=Slow()), "happy")
    assert sorted(heard) == [10_000, 12_000]
    assert [row["duration_s"] for row in rows] == [1.5, 1.25]
    assert rows[0]["values"]["f0_median_st"] == pytest.approx(12 * np.log2(1.5), abs=0.1)


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="named twice: a"):
        score_files([Item("a", voice(100), RATE), Item("a", voice(200), RATE)], Judges(), "happy")


def test_samples_without_a_rate_are_an_error_in_their_row() -> None:
    rows = score_files([Item("a", voice(100)), Item("b", np.zeros((2, 100)), RATE)], Judges(), "happy")
    assert "sample_rate" in str(rows[0]["error"])
    assert "mono" in str(rows[1]["error"])
