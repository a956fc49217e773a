"""The lines are held against the results that they come from, and read as VERSA's own summaries read theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

from affetto.evaluate.folder import evaluate_folder
from affetto.evaluate.results import Results, validate_results
from affetto.evaluate.versa import versa_lines, write_versa
from affetto.judges.choice import Judges
from evaluate_fakes import RATE, PitchWords, fake_judges, voice
from result_samples import result


class Whisper(PitchWords):
    id = "openai/whisper-base.en@911407f"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, f0, text in (("a", 120, "twelve"), ("b", 240, "twenty three cats"), ("c", 180, None)):
        soundfile.write(tmp_path / f"{name}.wav", voice(f0), RATE)
        if text:
            (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "d.wav").write_bytes(b"broken")
    return tmp_path


def evaluated(folder: Path, **changes: Any) -> Results:
    judges = Judges(**{"emotion": None, "words": Whisper(), "quality": fake_judges().quality} | changes)
    return evaluate_folder(folder, "happy", folder / "r.json", judges=judges)


def test_one_flat_line_per_file_with_versas_names(folder: Path) -> None:
    results = evaluated(folder)
    write_versa(folder / "scores.jsonl", results)
    text = (folder / "scores.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in text.splitlines()]
    assert [next(iter(line.items())) for line in lines] == [("key", f"{name}.wav") for name in "abcd"]
    assert all(isinstance(value, str | int | float) for line in lines for value in line.values())
    first, second, third, broken = lines
    assert (first["ref_text"], first["whisper_hyp_text"], first["whisper_wer_equal"]) == ("twelve", "twelve", 1)
    edits = {name: second[f"whisper_wer_{name}"] for name in ("delete", "insert", "replace", "equal")}
    assert edits == {"delete": 1, "insert": 0, "replace": 1, "equal": 1}, "twenty four for twenty three cats"
    assert "ref_text" not in third
    assert "whisper_wer_equal" not in third
    assert set(broken) == {"key", "error"}
    assert first["level_db"] == results["systems"][0]["files"][0]["values"]["level_db"]


def test_pooled_counts_give_the_corpus_rates(folder: Path) -> None:
    results = evaluated(folder)
    lines = list(versa_lines(results))
    for rate in ("wer", "cer"):
        total = {
            name: sum(line.get(f"whisper_{rate}_{name}", 0) for line in lines)
            for name in ("delete", "insert", "replace", "equal")
        }
        pooled = (total["delete"] + total["insert"] + total["replace"]) / (
            total["delete"] + total["replace"] + total["equal"]
        )
        assert pooled == pytest.approx(results["systems"][0]["metrics"][rate]["value"])


def test_names_are_versas_only_where_the_measure_is(folder: Path) -> None:
    class Dnsmos:
        id, tier, licence, sample_rate = "speechmos/dnsmos-p835", "bundled", "MIT", RATE

        def score(self, sounds: list[Any]) -> list[dict[str, float]]:
            return [dict.fromkeys(("mos_overall", "mos_signal", "mos_background"), 3.5) for _ in sounds]

    other = next(versa_lines(evaluated(folder, words=PitchWords())))
    assert "dns_overall" not in other
    assert other["asr_hyp_text"] == "twelve"
    assert next(versa_lines(evaluated(folder, quality=Dnsmos())))["dns_overall"] == 3.5


def test_systems_are_told_apart_and_a_file_comes_once_in_each() -> None:
    document = result()
    for system in document["systems"]:
        system["files"] = [{**system["files"][0], "prompt": prompt} for prompt in ("emotional", "plain")]
        system["num_files"] = system["num_failed"] = 2
    lines = list(versa_lines(validate_results(document)))
    assert [line["system"] for line in lines] == ["base", "happy", "real"]


def test_what_versa_calls_by_the_same_name_and_measures_otherwise_has_another_name() -> None:
    document = result()
    for system in document["systems"]:
        system["files"][0] |= {"error": None, "values": {"emotion_similarity": 0.25}}
        system["num_failed"] = 0
    lines = list(versa_lines(validate_results(document)))
    assert [line["emotion_similarity_other_texts"] for line in lines] == [0.25] * 3
    assert not any("emotion_similarity" in line for line in lines)
