"""A plan against a run, and what the command says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from affetto import hub
from affetto.config import Config, load_config
from affetto.errors import BaseModelError, ConfigError
from affetto.files import read_json
from affetto.planning import plan as plan_module
from affetto.planning.plan import Plan, base_config, plan
from affetto.planning.rate import measured_rate, stated_rate
from affetto.planning.table import duration, size
from affetto.planning.workload import Data, workload
from made_up_clips import made_up_clips


@pytest.fixture(scope="module")
def made(tiny_base_folder: Path) -> Plan:
    config = Config(base=str(tiny_base_folder), fisher_clips=4, rehearsal_buffer_size=6, validation_clips=4)
    return plan(config, Data(20, 1.0), device="cpu", tflops=0.01)


def test_stages_hold_what_stays_and_what_they_need(made: Plan) -> None:
    assert [stage.name for stage in made.stages] == ["fisher", "teacher", "training", "validation"]
    there = made.parts["runtime"] + made.parts["weights"]
    assert all(stage.peak_bytes > there for stage in made.stages)
    assert made.peak_bytes == max(stage.peak_bytes for stage in made.stages)
    assert made.parts["runtime"] > 2e8, "torch and transformers alone take more"
    assert made.parts["optimizer"] == 2 * made.parts["adapter"]
    training = made.stages[2]
    assert training.time_s == pytest.approx(training.flops / 1e10)
    assert made.time_s == pytest.approx(sum(stage.time_s for stage in made.stages))


def test_the_document_is_strict_json(made: Plan) -> None:
    document = json.loads(json.dumps(made.to_document(), allow_nan=False))
    assert document["schema"] == "affetto.plan/1"
    assert document["peak_bytes"] == made.peak_bytes
    assert document["disk_bytes"] == sum(v for k, v in made.disk.items() if k != "codes_per_hour")
    assert any("evaluation" in told for told in document["assumptions"])


def test_csm_1b_as_the_guide_promises_it_is_planned_without_its_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Layers are made fewer, for time; what is left out scales."""
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path))
    full = plan_module.random_config("random:csm-1b")
    full.num_hidden_layers = full.depth_decoder_config.num_hidden_layers = 1
    monkeypatch.setattr(plan_module, "random_config", lambda _: full)
    settings: dict[str, Any] = {
        "base": "random:csm-1b", "base_precision": "bf16", "activation_checkpointing": True, "batch_size": 2,
        "depth_frames_share": 1 / 16, "ewc_curvature": "rank1",
    }  # fmt: skip
    on_gpu = plan(Config(**settings), Data(10, 2.0), device="cuda", tflops=100.0)
    backbone = 2048 * (2048 + 512 + 512 + 2048) + 3 * 2048 * 8192 + 3 * 2048
    depth = 1024 * (1024 + 256 + 256 + 1024) + 3 * 1024 * 8192 + 3 * 1024 + 1024 * 2048
    codes, heads = 32 * 2051 * 2048, 31 * 1024 * 2051 + 2048 * 2051
    assert on_gpu.parts["weights"] == pytest.approx(2 * (backbone + depth + codes + heads), rel=1e-3)
    assert on_gpu.parts["runtime"] == 0
    assert any("text's embeddings" in told for told in on_gpu.assumptions)
    on_cpu = plan(Config(**settings), Data(10, 2.0), device="cpu", tflops=1.0)
    assert on_cpu.parts["weights"] - on_gpu.parts["weights"] == 2 * 128256 * 2048
    assert list(tmp_path.iterdir()) == [], "no weights were made"


@pytest.mark.parametrize(("precision", "most_gb"), [("bf16", 4.0), ("nf4", 2.5)])
def test_csm_1b_on_a_gpu_keeps_the_promise(precision: str, most_gb: float) -> None:
    """Eight rows of 10 s with everything on, the Fisher's whole clips included."""
    path = Path(__file__).parents[2] / "configs" / "csm_1b.yaml"
    config = load_config(path, base="random:csm-1b", base_precision=precision)
    assert (config.batch_size, config.ewc_lambda > 0, config.distillation_alpha > 0) == (8, True, True)
    told = plan(config, Data(200, 10.0), device="cuda", tflops=150.0)
    assert told.parts["weights"] + 5e8 < told.peak_bytes < most_gb * 1e9
    peaks = {stage.name: stage.peak_bytes for stage in told.stages}
    assert peaks["fisher"] > peaks["teacher"]


def test_the_time_told_for_csm_1b_is_the_measured_one() -> None:
    """At the rate that the documented commands give, held to steps that were timed on a GPU."""
    root = Path(__file__).parents[2]
    case = read_json(root / "benchmarks/results/training_speed.json")["cases"]["random:csm-1b on cuda, 8 rows of 10 s"]
    config = load_config(root / "configs" / "csm_1b.yaml", base="random:csm-1b")
    # Half of a batch is rehearsed.
    step_s = case["contestants"]["full_checkpointed"]["ms_per_clip"] / 1e3 * config.batch_size / 2
    pages = [(root / "docs" / page).read_text() for page in ("csm.md", "training.md")]
    rates = [re.findall(r"affetto plan --config configs/csm_1b.*--tflops (\d+)", page) for page in pages]
    assert rates[0] == rates[1] != []
    told = plan(config, Data(200, 10.0), device="cuda", tflops=float(rates[0][0]))
    training = next(stage for stage in told.stages if stage.name == "training")
    assert training.time_s / told.work.micro_batches == pytest.approx(step_s, rel=0.15)


def test_disk_is_what_a_run_writes(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from affetto.training.loop import train

    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    config = Config(
        emotions=("happy",), base=str(tiny_base_folder), output_dir=tmp_path, fisher_clips=4, rehearsal_buffer_size=6,
        validation_clips=4, num_epochs=1, trackers=(), num_checkpoints=1,
    )  # fmt: skip
    prepared = made_up_clips(tmp_path, 25, 256, 8)
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    folder = train(config, "happy", prepared)
    told = plan(config, Data(8, 2.0), device="cpu", tflops=1.0).disk

    def bytes_of(place: Path, pattern: str) -> int:
        return sum(path.stat().st_size for path in place.rglob(pattern))

    assert told["best"] == pytest.approx(bytes_of(folder / "best", "*.safetensors"), rel=0.15)
    assert told["checkpoints"] == pytest.approx(bytes_of(folder / "checkpoints", "*.safetensors"), rel=0.15)
    assert told["last"] == pytest.approx(bytes_of(folder / "last", "*.safetensors"), rel=0.15)
    assert told["fisher"] == pytest.approx(bytes_of(tmp_path / "cache" / "fisher", "*"), rel=0.15)
    assert told["teacher"] == pytest.approx(bytes_of(tmp_path / "cache" / "teacher", "*"), rel=0.15)


def test_a_measured_rate_is_a_machines(tiny_base_folder: Path) -> None:
    config = Config(base=str(tiny_base_folder))
    found = measured_rate(base_config(config.base), config, workload(config, Data(20, 1.0), 12.5), "cpu")
    assert 1e7 < found.flops_per_s < 1e14
    assert "measured" in found.source
    assert stated_rate(2.0).flops_per_s == 2e12


def test_of_a_hub_id_only_the_configuration_is_fetched(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def one_file(hub_id: str, name: str, revision: str | None = None) -> str:
        asked.append((hub_id, name, revision))
        return str(tiny_base_folder / name)

    monkeypatch.setattr(hub, "_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one_file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("weights were asked for"))
    assert base_config("sesame/csm-1b@v1").num_codebooks == 8
    assert asked == [("sesame/csm-1b", "config.json", "v1")]


def test_what_cannot_be_planned_is_said(tiny_base_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BaseModelError, match=r"config\.json: model_type 'llama' is not supported; supported: csm"):
        base_config(str(tmp_path))
    with pytest.raises(ConfigError, match=r"no GPU here to be timed.*--tflops"):
        plan(Config(base=str(tiny_base_folder)), Data(10, 1.0), device="cuda")


def test_sizes_and_durations_for_people() -> None:
    assert [size(n) for n in (1_500_000, 3.25e9)] == ["1.5 MB", "3.25 GB"]
    assert [duration(s) for s in (45, 600, 7300)] == ["45 s", "10 min", "2.0 h"]


def test_the_command_prints_a_table_or_json(
    affetto: Callable[..., tuple[int, str, str]], tiny_base_folder: Path
) -> None:
    options = ("--base", tiny_base_folder, "--clips", 20, "--seconds", 1, "--device", "cpu", "--tflops", 0.01)
    status, out, _ = affetto("plan", *options)
    assert status == 0
    for word in ("resident memory", "peak: training", "EWC's curvature", "codes of an hour", "evaluation"):
        assert word in out
    status, out, _ = affetto("plan", *options, "--json")
    assert status == 0
    assert json.loads(out)["work"]["num_steps"] == 3 * 4
    status, _, err = affetto("plan", "--device", "tpu")
    assert (status, "cpu or cuda" in err) == (1, True)
