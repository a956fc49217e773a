from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

import tiny_judges
from affetto.errors import JudgeError, MissingDependencyError
from affetto.evaluate.judge_facts import judge_facts
from affetto.evaluate.results import build_results, to_csv
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.summary import build_system, compare
from affetto.judges import predictors
from affetto.judges.choice import Judges, load_judge
from affetto.judges.predictors import QualityPanel, load_quality, members_of
from evaluate_fakes import RATE, LevelQuality, voice

SOUNDS = [voice(120, 0.6), voice(200, 0.4, level=0.3)]


class _Loudness(torch.nn.Module):
    """Ten times the RMS, and the peak: far from 1 to 5 on purpose."""

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        samples = samples.float()
        return torch.stack([10 * samples.square().mean(dim=1).sqrt(), samples.abs().amax(dim=1)], dim=1)


def _script(path: Path, **about: object) -> Path:
    torch.jit.save(torch.jit.trace(_Loudness(), torch.zeros(1, 8)), str(path))
    if about:
        path.with_suffix(".json").write_text(json.dumps(about))
    return path


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def test_a_torchscript_file_scores_as_it_is_and_says_what_it_is(tmp_path: Path) -> None:
    path = _script(tmp_path / "loud.jit", name="Loud-1", outputs=["rms", "peak"], scale="0 to 10", licence="CC-BY-4.0")
    judge = load_judge("quality", path)
    assert (judge.tier, judge.licence, judge.scale) == ("local", "CC-BY-4.0", "0 to 10")  # type: ignore[attr-defined]
    for sound, scores in zip(SOUNDS, judge.score(SOUNDS), strict=True):
        assert set(scores) == {"mos_loud_1_rms", "mos_loud_1_peak"}
        assert scores["mos_loud_1_rms"] == pytest.approx(10 * np.sqrt(np.mean(sound**2)), rel=1e-4)
        assert scores["mos_loud_1_peak"] == pytest.approx(np.abs(sound).max(), rel=1e-5)
    assert judge.score(SOUNDS)[0]["mos_loud_1_peak"] < 1, "scores outside 1 to 5 stay as they are"
    folder = load_judge("quality", tmp_path)
    assert folder.id == judge.id


def test_whole_number_input(tmp_path: Path) -> None:
    judge = load_quality(str(_script(tmp_path / "x.pt", input="int16", outputs=["a", "b"])))
    assert judge.score(SOUNDS)[1]["mos_x_b"] == round(float(np.abs(SOUNDS[1]).max()) * 32767)


def test_a_transformers_regressor_is_its_own_call(tmp_path: Path) -> None:
    folder = tiny_judges.regressor(tmp_path / "regressor")
    judge = load_judge("quality", folder)
    model = Wav2Vec2ForSequenceClassification.from_pretrained(folder).eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    for sound, scores in zip(SOUNDS, judge.score(SOUNDS), strict=True):
        with torch.inference_mode():
            theirs = model(**extractor(sound, sampling_rate=RATE, return_tensors="pt")).logits.item()
        assert scores == {"mos_regressor": pytest.approx(theirs, abs=1e-5)}
    assert judge.score(SOUNDS)[0] != judge.score(SOUNDS)[1]


def test_distillmos_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictors.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match="pip install distillmos"):
        load_quality("distillmos")
    module = types.ModuleType("distillmos")
    module.ConvTransformerSQAModel = type(  # type: ignore[attr-defined]
        "Model", (torch.nn.Module,), {"forward": lambda _self, samples: samples.abs().amax(dim=1) + 5}
    )
    monkeypatch.setitem(sys.modules, "distillmos", module)
    monkeypatch.setattr(predictors.importlib.util, "find_spec", lambda _name: object())
    judge = load_quality("distillmos")
    assert judge.score(SOUNDS)[0] == {"mos_distillmos": pytest.approx(5 + float(np.abs(SOUNDS[0]).max()))}
    assert judge.licence == "MIT"


def test_several_judges_score_side_by_side_down_to_the_results(tmp_path: Path) -> None:
    script = _script(tmp_path / "loud.jit", outputs=["rms", "peak"], sample_rate=8000, scale="0 to 10")
    panel = QualityPanel([LevelQuality(), load_quality(str(script))])
    assert members_of(panel) == panel.members
    judges = Judges(quality=panel)
    items = [Item(f"{i}.wav", sound, RATE, text=str(i), prompt="emotional") for i, sound in enumerate(SOUNDS)]
    rows = score_files(items, judges, "happy")
    for row, sound in zip(rows, SOUNDS, strict=True):
        assert row["values"]["mos_overall"] == pytest.approx(LevelQuality().score([sound])[0]["mos_overall"], abs=1e-6)
        assert row["values"]["mos_loud_rms"] == pytest.approx(10 * np.sqrt(np.mean(sound**2)), rel=0.02)
    system = build_system("x", "files", rows, judges)
    assert (system["metrics"]["mos_loud_rms"]["unit"], system["metrics"]["mos_loud_rms"]["n"]) == ("score", 2)
    comparison = compare(rows, rows, system="x", against="x", prompt="emotional")
    assert comparison["metrics"]["mos_loud_peak"]["difference"] == 0
    results = build_results("happy", "x", judge_facts(judges), [system], [comparison])
    assert results["judges"]["quality"]["scale"].endswith("0 to 10")  # type: ignore[index]
    header, first, *_ = to_csv(results).splitlines()
    assert header.endswith("mos_loud_peak,mos_loud_rms")
    assert float(first.split(",")[-1]) == rows[0]["values"]["mos_loud_rms"]
    with pytest.raises(JudgeError, match="different rates"):
        panel.score(SOUNDS)


def test_dnsmos_stays_what_it_is_in_company(tmp_path: Path) -> None:
    panel = load_quality(f"dnsmos,{_script(tmp_path / 'loud.jit', outputs=['rms', 'peak'])}")
    alone = load_quality("dnsmos").score(SOUNDS[:1])[0]
    assert alone.items() < panel.score(SOUNDS[:1])[0].items()


def test_wrong_names_and_files_say_what_to_do(tmp_path: Path) -> None:
    for choice, match in (
        ("nisqa", "there is no quality judge nisqa; there are dnsmos"),
        ("dnsmos,", "comma"),
        ("dnsmos,none", "none"),
        ("dnsmos,dnsmos", "named twice"),
        (str(tmp_path / "absent.jit"), "no file"),
        ("openai/whisper-small", "judges words, not quality"),
    ):
        with pytest.raises(JudgeError, match=match):
            load_quality(choice)
    (tmp_path / "pickled.pt").write_bytes(b"not a script")
    with pytest.raises(JudgeError, match="no TorchScript file"):
        load_quality(str(tmp_path / "pickled.pt"))
    _script(tmp_path / "second.jit")
    with pytest.raises(JudgeError, match="2 TorchScript files"):
        load_quality(str(tmp_path))


@pytest.mark.parametrize(
    ("about", "match"),
    [
        ({"scales": "x"}, "keys out of"),
        ({"input": "int8"}, "float32, int16"),
        ({"sample_rate": 0}, "whole number"),
        ({"outputs": []}, "list of names"),
    ],
)
def test_what_a_file_says_of_itself_is_checked(tmp_path: Path, about: dict[str, object], match: str) -> None:
    with pytest.raises(JudgeError, match=match):
        load_quality(str(_script(tmp_path / "x.jit", **about)))


def test_other_numbers_of_outputs_than_stated_are_an_error(tmp_path: Path) -> None:
    judge = load_quality(str(_script(tmp_path / "x.jit", outputs=["one"])))
    with pytest.raises(JudgeError, match="where 1 finite scores"):
        judge.score(SOUNDS)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(JudgeError, match="can't read"):
        load_quality(str(tmp_path / "x.jit"))
