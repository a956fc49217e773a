from __future__ import annotations

import json
import sys
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

import tiny_judges
from affetto.errors import JudgeError, MissingDependencyError
from affetto.evaluate.judge_facts import judge_facts
from affetto.evaluate.results import build_results, to_csv
from affetto.evaluate.results_schema import results_schema
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.summary import build_system, compare
from affetto.judges import predictors
from affetto.judges.choice import KNOWN_JUDGES, Judges, load_judge
from affetto.judges.predictors import QualityPanel, load_quality, members_of
from evaluate_fakes import RATE, LevelQuality, voice
from schema_check import problems

SOUNDS = [voice(120, 0.6), voice(200, 0.4, level=0.3)]


class _Loudness(torch.nn.Module):
    """Ten times the RMS, and the peak: far from 1 to 5 on purpose."""

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        samples = samples.float()
        return torch.stack([10 * samples.square().mean(dim=1).sqrt(), samples.abs().amax(dim=1)], dim=1)


class _Peak(torch.nn.Module):
    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return samples.abs().amax(dim=1)


class _Five(torch.nn.Module):
    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return torch.stack([samples.mean(dim=1)] * 5, dim=1)


def _script(path: Path, module: torch.nn.Module | None = None, **about: object) -> Path:
    torch.jit.save(torch.jit.trace(module or _Loudness(), torch.zeros(1, 8)), str(path))
    if about:
        _say(path.with_suffix(".json"), **about)
    return path


def _say(path: Path, **about: object) -> None:
    path.write_text(json.dumps(about))


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


def test_a_regressors_folder_may_say_what_it_is(tmp_path: Path) -> None:
    folder = tiny_judges.regressor(tmp_path / "regressor")
    assert load_quality(str(folder)).scale is None  # type: ignore[attr-defined]
    _say(folder / "judge.json", name="Ears", scale="0 to 100", licence="MIT")
    judge = load_quality(str(folder))
    assert list(judge.score(SOUNDS)[0]) == ["mos_ears"]
    facts = judge_facts(Judges(quality=judge))["quality"]
    assert facts is not None
    assert (facts["scale"], facts["licence"], facts["tier"]) == ("0 to 100", "MIT", "local")
    _say(folder / "judge.json", outputs=["a", "b"])
    with pytest.raises(JudgeError, match="2 outputs"):
        load_quality(str(folder))
    _say(folder / "judge.json", sample_rate=8000)
    with pytest.raises(JudgeError, match="keys from name, outputs, scale, licence"):
        load_quality(str(folder))


def test_a_folder_says_what_its_torchscript_file_is(tmp_path: Path) -> None:
    _script(tmp_path / "loud.jit")
    _say(tmp_path / "judge.json", name="Loud", outputs=["rms", "peak"], scale="0 to 10")
    judge = load_quality(str(tmp_path))
    assert (set(judge.score(SOUNDS)[0]), judge.scale) == ({"mos_loud_rms", "mos_loud_peak"}, "0 to 10")  # type: ignore[attr-defined]
    _say(tmp_path / "loud.json", outputs=["a", "b"])
    assert set(load_quality(str(tmp_path)).score(SOUNDS)[0]) == {"mos_loud_a", "mos_loud_b"}, "its own JSON comes first"
    (tmp_path / "state_dict.pt").write_bytes(b"weights of something")
    assert set(load_quality(str(tmp_path)).score(SOUNDS)[0]) == {"mos_loud_a", "mos_loud_b"}, "the one that is told of"


def test_distillmos_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(predictors.importlib.metadata, "version", absent)
    with pytest.raises(MissingDependencyError, match="pip install distillmos"):
        load_quality("distillmos")
    module = types.ModuleType("distillmos")
    module.ConvTransformerSQAModel = type(  # type: ignore[attr-defined]
        "Model", (torch.nn.Module,), {"forward": lambda _self, samples: samples.abs().amax(dim=1) + 5}
    )
    monkeypatch.setitem(sys.modules, "distillmos", module)
    monkeypatch.setattr(predictors.importlib.metadata, "version", {"distillmos": "0.9.1"}.__getitem__)
    judge = load_quality("distillmos")
    assert judge.score(SOUNDS)[0] == {"mos_distillmos": pytest.approx(5 + float(np.abs(SOUNDS[0]).max()))}
    assert (judge.id, judge.tier, judge.licence) == ("distillmos@0.9.1", "package", "MIT")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which can't be reached; see `_snapshot`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _snapshot(hub: Path, name: str, commit: str = COMMIT) -> Path:
    """The folder of a repository's snapshot, which is `main` and that commit."""
    folder = hub / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text(commit)
    return folder


def test_utmos_is_the_torchscript_file_on_the_hub(hub: Path) -> None:
    known = KNOWN_JUDGES["Blinorot/UTMOS-PyTorch"]
    with pytest.raises(JudgeError, match="can't fetch the judge Blinorot/UTMOS-PyTorch"):
        load_quality("utmos")
    folder = _snapshot(hub, "Blinorot/UTMOS-PyTorch")
    (folder / "utmos_state_dict.pt").write_bytes(b"no script")
    with pytest.raises(JudgeError, match=r"lacks utmos_scripted\.pt"):
        load_quality("utmos")
    _script(folder / "utmos_scripted.pt", _Peak())
    judge = load_quality("utmos")
    assert (judge.id, judge.tier) == (f"Blinorot/UTMOS-PyTorch@{COMMIT}", "hub")
    assert judge.score(SOUNDS)[0] == {"mos_utmos": pytest.approx(np.abs(SOUNDS[0]).max())}
    facts = judge_facts(Judges(quality=judge))["quality"]
    assert facts is not None
    assert (facts["licence"], facts["scale"], facts["languages"]) == ("mit", known.scale, ["en"])
    assert "heard" not in facts
    assert load_quality("Blinorot/UTMOS-PyTorch").id == load_quality(f"utmos@{COMMIT}").id == judge.id


def test_a_known_file_that_wants_whole_numbers_gets_them(hub: Path) -> None:
    known = KNOWN_JUDGES["balacoon/utmos"]
    _script(_snapshot(hub, "balacoon/utmos", str(known.revision)) / "utmos.jit", _Peak())
    judge = load_quality("balacoon/utmos")
    whole = {"mos_utmos": round(float(np.abs(SOUNDS[0]).max()) * 32767)}
    assert judge.score(SOUNDS)[0] == whole
    folder = hub.parent / "downloaded"
    folder.mkdir()
    local = load_quality(f"utmos:{_script(folder / 'utmos.jit', _Peak())}")
    assert (local.tier, local.licence, local.score(SOUNDS)[0]) == ("local", "mit", whole)
    assert load_quality(f"utmos:{folder}").score(SOUNDS)[0] == whole
    other = load_quality(f"utmos:{_script(folder / 'exported.jit', _Peak())}")
    assert other.score(SOUNDS)[0]["mos_utmos"] < 1, "under another name it hears what most do: ±1"


def test_any_hub_id_may_hold_a_torchscript_file(hub: Path) -> None:
    folder = _snapshot(hub, "someone/ears")
    with pytest.raises(JudgeError, match=r"neither a config\.json nor a TorchScript file"):
        load_quality("someone/ears")
    _script(folder / "ears.ts")
    _say(folder / "judge.json", outputs=["rms", "peak"], scale="0 to 10", sample_rate=8000)
    for name in ("someone/ears", f"someone/ears@{COMMIT}", "someone/ears@main"):
        judge = load_quality(name)
        assert (judge.id, judge.tier, judge.licence) == (f"someone/ears@{COMMIT}", "hub", None)
        assert (judge.sample_rate, judge.scale) == (8000, "0 to 10")  # type: ignore[attr-defined]
    assert set(judge.score(SOUNDS)[0]) == {"mos_ears_rms", "mos_ears_peak"}


def test_a_hub_id_that_holds_a_transformers_model_is_a_regressor(hub: Path) -> None:
    folder = tiny_judges.regressor(_snapshot(hub, "someone/regressor"))
    _say(folder / "judge.json", scale="1 to 5")
    judge = load_quality("someone/regressor")
    assert (judge.id, judge.scale) == (f"someone/regressor@{COMMIT}", "1 to 5")  # type: ignore[attr-defined]
    assert judge.score(SOUNDS) == [
        {"mos_regressor": pytest.approx(scores["mos_0123456789abcdef0123456789abcdef01234567"])}
        for scores in load_quality(str(folder)).score(SOUNDS)
    ]


def test_nisqa_has_to_be_exported_and_is_known_then(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"48000 Hz and gives mos, noisiness.*--judge quality=nisqa:nisqa.jit"):
        load_quality("nisqa")
    judge = load_quality(f"nisqa:{_script(tmp_path / 'mine.jit', _Five())}")
    assert set(judge.score(SOUNDS)[0]) == {
        f"mos_nisqa_{name}" for name in ("mos", "noisiness", "discontinuity", "coloration", "loudness")
    }
    facts = judge_facts(Judges(quality=judge))["quality"]
    assert facts is not None
    assert (facts["id"].split("@")[0], facts["tier"]) == ("local/mine.jit", "local")
    assert (facts["licence"], facts["sample_rate"]) == ("cc-by-nc-sa-4.0", 48_000)
    assert "languages" not in facts
    assert "1 to 5" in facts["scale"]
    assert "non-commercial" in facts["note"]
    assert load_quality(f"nisqa:{tmp_path}").id == judge.id
    with pytest.raises(JudgeError, match="no file"):
        load_quality("nisqa:absent.jit")
    _say(tmp_path / "mine.json", outputs=["naturalness"], sample_rate=16_000)
    _script(tmp_path / "mine.jit", _Peak())
    judge = load_quality(f"nisqa:{tmp_path / 'mine.jit'}")
    assert (list(judge.score(SOUNDS)[0]), judge.sample_rate) == (["mos_nisqa"], 16_000), (
        "what its JSON says comes first"
    )
    assert judge.licence == "cc-by-nc-sa-4.0"


def test_a_panels_members_keep_their_facts(tmp_path: Path) -> None:
    script = _script(tmp_path / "loud.jit", outputs=["rms", "peak"], sample_rate=8000, licence="CC0")
    panel = load_quality(f"dnsmos,{script}")
    facts = judge_facts(Judges(quality=panel))["quality"]
    assert facts is not None
    assert facts["tier"] == "mixed"
    assert [(one["tier"], one["licence"], one["sample_rate"]) for one in facts["members"]] == [
        ("bundled", "MIT", RATE), ("local", "CC0", 8000),
    ]  # fmt: skip
    assert QualityPanel([LevelQuality(), load_quality(str(script))]).tier == "local"
    _script(tmp_path / "utmos.jit", _Peak())
    _script(tmp_path / "other.jit", name="utmos")
    with pytest.raises(JudgeError, match="call a score mos_utmos"):
        load_quality(f"{tmp_path / 'utmos.jit'},{tmp_path / 'other.jit'}")


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
    assert problems(json.loads(json.dumps(results)), results_schema()) == []
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
        ("nosuch", "there is no quality judge nosuch; there are dnsmos"),
        ("dnsmos,", "comma"),
        ("dnsmos,none", "none"),
        ("dnsmos,dnsmos", "named twice"),
        (str(tmp_path / "absent.jit"), "no file"),
        ("openai/whisper-small", "judges words, not quality"),
    ):
        with pytest.raises(JudgeError, match=match):
            load_quality(choice)
    (tmp_path / "pickled.pt").write_bytes(b"not a script")
    with pytest.raises(JudgeError, match="isn't a TorchScript file"):
        load_quality(str(tmp_path / "pickled.pt"))
    _script(tmp_path / "second.jit")
    with pytest.raises(JudgeError, match="2 TorchScript files"):
        load_quality(str(tmp_path))


@pytest.mark.parametrize(
    ("about", "match"),
    [
        ({"scales": "x"}, "keys from"),
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
    with pytest.raises(JudgeError, match="but 1 finite scores"):
        judge.score(SOUNDS)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(JudgeError, match="can't read"):
        load_quality(str(tmp_path / "x.jit"))
