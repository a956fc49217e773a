"""What the adapter's card says of its data; the card as a whole is read in the main road's tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import pytest

from affetto.errors import DataError
from affetto.evaluate.results import Results
from affetto.report.adapter_card import by_intensity, texts_by_machine, write_adapter_card
from result_samples import result


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


FACTS = {
    "emotion": "happy", "prompt_template": "{text}", "recommended_intensity": 1.0, "ewc_natural_weight": 0.1,
    "base": {"id": "miniature", "hash": "0" * 64}, "command": "affetto run",
    "data": {"emotional_clips": 12, "rehearsed_clips": 8, "fisher_clips": 4},
    "configuration": {
        "adapter_r": 16, "learning_rate": 6e-3, "num_epochs": 3, "ewc_lambda": 5000.0, "distillation_alpha": 1.0,
        "replay_ratio": 0.5,
    },
}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Of one sentence by base and adapter, whose sounds hold their own names."""
    document = result()
    for system in document["systems"]:
        (row,) = system["files"]
        row["file"] = f"evaluation/{system['name']}.wav"
        (tmp_path / "evaluation").mkdir(exist_ok=True)
        (tmp_path / row["file"]).write_text(system["name"])
    return cast("Results", document)


def samples(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((folder / "samples").iterdir())}


def test_samples_are_the_sounds_of_the_sentences(
    tmp_path: Path, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    best = tmp_path / "best"
    (best / "samples").mkdir(parents=True)
    (best / "samples" / "7_old.wav").write_text("of another evaluation")
    write_adapter_card(best, FACTS, results, tmp_path)
    assert samples(best) == {"0_base.wav": "base", "0_happy.wav": "happy"}
    assert sorted(path.name for path in best.iterdir()) == ["README.md", "samples"]
    assert "0. “hello” (speaker 0, seed 1)\n" in (best / "README.md").read_text(encoding="utf-8")
    assert capsys.readouterr().err == ""


def test_a_sound_that_is_gone_is_told_and_passed_over(
    tmp_path: Path, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    best = tmp_path / "best"
    best.mkdir()
    (tmp_path / "evaluation" / "base.wav").unlink()
    write_adapter_card(best, FACTS, results, tmp_path)
    assert samples(best) == {"0_happy.wav": "happy"}
    told = "evaluation/base.wav wasn't there when this page was written"
    assert told in (best / "README.md").read_text(encoding="utf-8")
    assert "there is no evaluation/base.wav" in capsys.readouterr().err


def test_a_folder_that_cant_be_written_is_told(tmp_path: Path, results: Results) -> None:
    with pytest.raises(DataError, match=r"can't write /proc/self \(.*fix its permissions"):
        write_adapter_card(Path("/proc/self"), FACTS, results, tmp_path)


def test_where_all_sounds_are_gone_the_samples_stay(tmp_path: Path, results: Results) -> None:
    best = tmp_path / "best"
    best.mkdir()
    write_adapter_card(best, FACTS, results, tmp_path)
    before = samples(best)
    shutil.rmtree(tmp_path / "evaluation")
    write_adapter_card(best, FACTS, results, tmp_path)
    assert samples(best) == before
    assert sorted(path.name for path in best.iterdir()) == ["README.md", "samples"]
