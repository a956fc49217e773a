"""What the adapter's card says of its data; the card as a whole is read in the main road's tests."""

from __future__ import annotations

from affetto.report.adapter_card import by_intensity, texts_by_machine


def test_texts_that_a_machine_wrote_are_told() -> None:
    counts = {"emotional_clips": 12, "rehearsed_clips": 0, "by_model": {"openai/whisper-base.en@911407f": 12}}
    told = texts_by_machine({"machine_texts": counts})
    assert "12 of the emotional clips and 0 of the general ones" in told
    assert "openai/whisper-base.en@911407f" in told


def test_nothing_is_said_where_people_wrote_all_or_nobody_knows() -> None:
    assert texts_by_machine({"machine_texts": {"emotional_clips": 0, "rehearsed_clips": 0, "by_model": {}}}) == ""
    assert texts_by_machine({}) == "", "an adapter of an earlier affetto"


def test_how_strongly_the_clips_are_acted_is_told_where_it_differs() -> None:
    assert "2 clips at 0.6, 4 clips at 1" in by_intensity({"intensities": {"0.6": 2, "1": 4}})
    assert by_intensity({"intensities": {"1": 6}}) == by_intensity({}) == ""
