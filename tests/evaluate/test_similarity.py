from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from affetto.evaluate.results import VALUE_NAMES, FileRow
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.similarity import (
    Embedded,
    compare_emotions,
    embed_files,
    reference_rows,
    set_emotion_similarity,
    set_similarities,
)
from affetto.evaluate.summary import MARGINS, METRICS, PLAIN_MARGINS, build_system, compare, summarise
from affetto.judges.choice import Judges
from evaluate_fakes import RATE, PitchVoice, voice


def _one(text: str | None, unit: NDArray[np.float64], speaker: str | None = "a", seed: int = 0) -> Embedded:
    row = FileRow(
        file=f"{text}{speaker}{seed}", prompt="emotional", text=text, speaker=speaker, seed=seed, duration_s=1.0,
        error=None, values=dict.fromkeys(VALUE_NAMES),
    )  # fmt: skip
    return Embedded(row, unit / np.linalg.norm(unit))


def _many(rng: np.random.Generator, shift: float = 0.0, num_texts: int = 6) -> list[Embedded]:
    centres = {"a": np.array([3.0, 0, 0, 0]), "b": np.array([0, 3.0, 0, 0])}
    return [
        _one(f"t{index}", centres[speaker] + [0, 0, shift, 0] + rng.normal(0, 0.5, 4), speaker)
        for index in range(num_texts)
        for speaker in "ab"
    ]


def test_means_are_over_other_texts_of_the_same_speaker() -> None:
    base, system = _many(np.random.default_rng(0)), _many(np.random.default_rng(1), shift=1.0)
    references = _many(np.random.default_rng(2), num_texts=3)
    set_similarities(system, base, references)
    for one in system:
        values, text, speaker = one.row["values"], one.row["text"], one.row["speaker"]
        for name, others in (
            ("speaker_similarity", base), ("similarity_to_reference", references), ("voice_consistency", system),
        ):  # fmt: skip
            alike = [o for o in others if o.row["speaker"] == speaker and o.row["text"] != text]
            assert values[name] == pytest.approx(np.mean([one.unit_D @ o.unit_D for o in alike]), abs=1e-6), name
        twin = next(o for o in base if (o.row["text"], o.row["speaker"]) == (text, speaker))
        assert values["similarity_same_prompt"] == pytest.approx(float(one.unit_D @ twin.unit_D), abs=1e-6)


def test_other_seeds_have_a_twin_only_where_seeds_may_differ() -> None:
    base = [_one("t", np.array([1.0, 0.0]), seed=1)]
    for by_seed, expected in ((True, None), (False, 0.6)):
        again = [_one("t", np.array([0.6, 0.8]), seed=2)]
        set_similarities(again, base, by_seed=by_seed)
        assert again[0].row["values"]["similarity_same_prompt"] == expected


def test_the_base_is_held_against_itself_without_the_same_words() -> None:
    base = _many(np.random.default_rng(0))
    set_similarities(base, base, is_base=True)
    for one in base:
        assert one.row["values"]["speaker_similarity"] == one.row["values"]["voice_consistency"]
        assert one.row["values"]["similarity_same_prompt"] is None
        assert one.row["values"]["similarity_to_reference"] is None


def test_order_changes_nothing() -> None:
    base, system = _many(np.random.default_rng(0)), _many(np.random.default_rng(1))
    set_similarities(system, base)
    before = [dict(one.row["values"]) for one in system]
    set_similarities(system[::-1], base[::-1])
    assert [one.row["values"] for one in system] == before


def test_one_voice_alone_says_nothing_of_itself() -> None:
    alone = [_one("hello", np.ones(4), speaker) for speaker in ("a", "b")]
    set_similarities(alone, [_one("hello", np.ones(4), "c")])
    for one in alone:
        assert {one.row["values"][name] for name in ("voice_consistency", "speaker_similarity")} == {None}


def test_files_without_text_or_speaker_are_one_voice_and_texts_of_their_own() -> None:
    files = [_one(None, np.eye(4)[0] + np.eye(4)[k], None, seed=k) for k in range(3)]
    set_similarities(files)
    cosine = float(files[0].unit_D @ files[1].unit_D)
    assert files[0].row["values"]["voice_consistency"] == pytest.approx(
        (cosine + files[0].unit_D @ files[2].unit_D) / 2
    )


def _verdict(shift: float) -> tuple[str | None, float]:
    base, system = (
        _many(np.random.default_rng(seed), shift=moved, num_texts=60) for seed, moved in ((0, 0.0), (1, shift))
    )
    set_similarities(base, base, is_base=True)
    set_similarities(system, base)
    rows = [[one.row for one in side] for side in (system, base)]
    metric = compare(*rows, system="s", against="base", prompt="emotional")["metrics"]["speaker_similarity"]
    assert metric["difference"] is not None
    assert metric["margin"] == MARGINS["speaker_similarity"].size == 0.02
    return metric["verdict"], metric["difference"]


def test_a_changed_voice_is_worse_and_the_same_voice_said_again_is_not() -> None:
    assert _verdict(1.5)[0] == "worse"
    verdict, difference = _verdict(0.0)
    assert verdict != "worse"
    assert abs(difference) < 0.02


def test_files_are_heard_in_their_own_rows() -> None:
    items = [
        Item(f"{hz}.wav", voice(hz, 0.5), RATE, text=f"text {hz}", speaker="a", prompt="plain")
        for hz in (100, 150, 200)
    ]
    items.insert(1, Item("broken.wav", voice(100, 0.01), RATE, text="x", speaker="a", prompt="plain"))
    judges = Judges(voice=PitchVoice())
    rows = score_files(items, judges, "happy")
    voiced = embed_files(items, rows, judges.voice)
    assert [one.row["file"] for one in voiced] == ["100.wav", "150.wav", "200.wav"]
    cosines = [float(one.unit_D @ other.unit_D) for one, other in pairwise(voiced)]
    assert cosines == pytest.approx(
        [np.cos(np.pi / 2 * np.log2(1.5)), np.cos(np.pi / 2 * np.log2(200 / 150))], abs=0.01
    )
    clips = reference_rows(items[:1])
    set_similarities(voiced, references=embed_files(items[:1], clips, judges.voice))
    metrics = summarise(rows, judges)
    assert metrics["voice_consistency"]["n"] == 3
    assert metrics["similarity_to_reference"]["n"] == 2, "not to the same text"
    assert metrics["speaker_similarity"]["reason"] == "no base speaks in the same voice"
    assert embed_files(items, rows, None) == []


class PitchEmotions(PitchVoice):
    """Emotions an octave apart are at right angles."""

    labels = ("happy", "sad")


def _emotion_of(one: Embedded) -> object:
    return one.row["values"]["emotion_similarity"]


def test_likeness_to_recordings_is_by_hand() -> None:
    """Recordings at 0, 90 and 180 degrees; each text of theirs weighs the same, however often it was spoken."""
    real = [
        _one("x", np.array([1.0, 0])), _one("x", np.array([0, 1.0]), seed=1), _one("y", np.array([-1.0, 0])),
        _one("z", np.array([1.0, 0]), "b"),
    ]  # fmt: skip
    at_60 = _one("other", np.array([0.5, np.sqrt(0.75)]))
    same_text = _one("y", np.array([0.5, np.sqrt(0.75)]))
    stranger = _one("other", np.array([0.0, 1.0]), "c")
    nobody = _one("other", np.array([0.0, 1.0]), None)
    set_emotion_similarity([at_60, same_text, stranger, nobody], real)
    of_x = (0.5 + np.sqrt(0.75)) / 2
    assert _emotion_of(at_60) == pytest.approx((of_x - 0.5) / 2, abs=1e-6)
    assert _emotion_of(same_text) == pytest.approx(of_x, abs=1e-6), "not to what says the same"
    assert _emotion_of(stranger) == pytest.approx((0.5 + 0 + 0) / 3, abs=1e-6), "to all, where the speaker has none"
    assert _emotion_of(nobody) == _emotion_of(stranger)


def test_recordings_are_held_against_each_other_without_their_own_text() -> None:
    real = [_one("x", np.array([1.0, 0])), _one("x", np.array([1.0, 0]), seed=1), _one("y", np.array([0.6, 0.8]))]
    set_emotion_similarity(real, real)
    assert [_emotion_of(one) for one in real] == pytest.approx([0.6, 0.6, 0.6])
    alone = [_one("x", np.array([1.0, 0])), _one("x", np.array([1.0, 0]), seed=1)]
    set_emotion_similarity(alone, alone)
    assert [_emotion_of(one) for one in alone] == [None, None]


def test_a_speaker_whose_only_recording_says_the_same_is_held_against_the_others() -> None:
    real = [_one("x", np.array([1.0, 0]), "a"), _one("y", np.array([0.6, 0.8]), "b")]
    set_emotion_similarity(real, real)
    assert [_emotion_of(one) for one in real] == pytest.approx([0.6, 0.6])


def test_order_changes_no_likeness_to_recordings() -> None:
    real, system = _many(np.random.default_rng(0)), _many(np.random.default_rng(1))
    set_emotion_similarity(system, real)
    before = [_emotion_of(one) for one in system]
    set_emotion_similarity(system[::-1], real[::-1])
    assert [_emotion_of(one) for one in system] == before


def _items(hz: tuple[int, ...]) -> list[Item]:
    return [Item(f"{each}.wav", voice(each, 0.5), RATE, text=f"text {each}", speaker="a") for each in hz]


def test_base_adapter_and_recordings_are_compared_in_their_own_rows() -> None:
    judge = PitchEmotions()
    judges = Judges(embedding=judge)
    scored = {name: (items, score_files(items, judges, "happy")) for name, items in (
        ("base", _items((100, 110))), ("happy", [*_items((185, 190)), Item("silent.wav", np.zeros(RATE), RATE)]),
        ("real", _items((190, 200, 210))),
    )}  # fmt: skip
    rows = {name: rows for name, (_, rows) in scored.items()}
    assert {row["values"]["emotion_similarity"] for each in rows.values() for row in each} == {None}
    compare_emotions(judge, (scored["base"], scored["happy"]), scored["real"])
    base, happy, real = (summarise(rows[name], judges)["emotion_similarity"] for name in ("base", "happy", "real"))
    assert (base["n"], happy["n"], real["n"]) == (2, 2, 3), "a file with an error has none"
    assert base["value"] is not None
    assert happy["value"] is not None
    assert real["value"] is not None
    assert base["value"] < 0.3 < 0.9 < happy["value"]
    assert real["unit"] == "cosine"
    angle = [np.pi / 2 * np.log2(hz / 100) for hz in (190, 200, 210)]
    wanted = [np.mean([np.cos(one - other) for other in angle if other != one]) for one in angle]
    assert real["value"] == pytest.approx(np.mean(wanted), abs=0.01)
    alone = summarise(rows["happy"][2:], judges)["emotion_similarity"]
    assert (alone["value"], alone["reason"]) == (None, "every file failed")


def test_without_recordings_or_without_a_judge_there_is_a_reason() -> None:
    judges = Judges(embedding=PitchEmotions())
    items = _items((185, 190))
    rows = score_files(items, judges, "happy")
    compare_emotions(PitchEmotions(), ((items, rows),), ([], []))
    assert summarise(rows, judges)["emotion_similarity"]["reason"] == METRICS["emotion_similarity"].lacking
    none = build_system("s", "files", rows, Judges())["metrics"]["emotion_similarity"]
    assert (none["value"], none["reason"]) == (None, "no embedding judge was given")


def test_it_has_no_margin_so_that_no_verdict_rests_on_it() -> None:
    assert "emotion_similarity" not in MARGINS
    assert "emotion_similarity" not in PLAIN_MARGINS
