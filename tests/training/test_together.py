"""Adapters trained in one run become what they become alone; emotions may build on an expressive base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import COUNTS, TINY, assert_equal_runs, make_prepared, results, stop_at_step

from affetto.adapters.bank import AdapterBank
from affetto.adapters.peft_files import insert_adapter, read_adapter
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import CheckpointError, ConfigError, Interrupted
from affetto.files import read_json
from affetto.model.base import load_base
from affetto.model.batch import collate
from affetto.pipeline import train_emotions
from affetto.training import loop, step
from affetto.training.expressive import lacks_expressive_base, own_gate
from affetto.training.log import read_log
from affetto.training.loop import train, train_together
from affetto.training.run import check_together
from affetto.training.streams import build_streams

Make = Callable[..., Config]
EMOTIONS = ("happy", "sad")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """More happy clips than sad ones, so that one run is longer."""
    return make_prepared(tmp_path / "clips", {**COUNTS, ("happy", "train"): 11})


@pytest.mark.parametrize("changes", [{}, {"grad_accumulation_steps": 2}, {"forgetting_budget": 0.02}])
def test_pitfall_22_adapters_trained_together_equal_those_trained_alone(
    config_of: Make, prepared: Prepared, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips of other lengths, another number of steps, clipping that bites: nothing of one reaches the other."""
    # All rows in one pass, as on a GPU.
    passes = step._passes
    monkeypatch.setattr(step, "_passes", lambda batches, _: passes(batches, torch.device("cuda")))
    settings = TINY | {"max_grad_norm": 0.05} | changes
    together, alone = config_of("together", **settings), config_of("alone", **settings)
    folders = train_together(together, EMOTIONS, prepared)
    for emotion, folder in zip(EMOTIONS, folders, strict=True):
        expected = train(alone, emotion, prepared)
        for found, wanted in zip(results(folder)[:2], results(expected)[:2], strict=True):
            assert found.keys() == wanted.keys()
            for name, tensor in wanted.items():
                torch.testing.assert_close(found[name], tensor, rtol=2e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        told, wanted_log = read_log(folder / "training_log.jsonl"), read_log(expected / "training_log.jsonl")
        assert [row["step"] for row in told] == [row["step"] for row in wanted_log]
        for row, other in zip(told, wanted_log, strict=True):
            assert row["terms"] == pytest.approx(other["terms"], rel=1e-3, abs=1e-6)
    steps = {emotion: results(folder)[2][-1]["step"] for emotion, folder in zip(EMOTIONS, folders, strict=True)}
    assert steps["happy"] > steps["sad"], "the fixture's runs differ in length"


def test_on_a_cpu_adapters_trained_together_are_those_trained_alone_bit_for_bit(
    config_of: Make, prepared: Prepared
) -> None:
    """Each has its rows, and its ranks alone, to itself."""
    together, alone = config_of("together", **TINY), config_of("alone", **TINY)
    for emotion, folder in zip(EMOTIONS, train_together(together, EMOTIONS, prepared), strict=True):
        expected = train(alone, emotion, prepared)
        for found, wanted in zip(results(folder)[:2], results(expected)[:2], strict=True):
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_run_of_several_goes_on_where_it_stopped(
    config_of: Make, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = config_of("straight", **TINY)
    expected = train_together(straight, EMOTIONS, prepared)
    stopped = config_of("stopped", **TINY)
    with monkeypatch.context() as patched:
        stop_at_step(patched, 3)
        with pytest.raises(Interrupted, match="SIGTERM"):
            train_together(stopped, EMOTIONS, prepared)
    folders = train_together(stopped, EMOTIONS, prepared, resume=True)
    for folder, wanted in zip(folders, expected, strict=True):
        assert_equal_runs(folder, wanted)


@pytest.mark.parametrize(
    ("changes", "scaler", "cause"), [({}, object(), "precision fp16"), ({"adapter_dropout": 0.1}, None, "dropout")]
)
def test_what_would_couple_adapters_trains_one_at_a_time(
    config_of: Make, changes: dict[str, Any], scaler: Any, cause: str
) -> None:
    class Accelerator:
        pass

    accelerator = Accelerator()
    accelerator.scaler = scaler  # type: ignore[attr-defined]
    config = config_of("coupled", **changes)
    with pytest.raises(ConfigError, match=f"{cause}.* one emotion at a time"):
        check_together(config, accelerator, EMOTIONS)
    check_together(config, accelerator, EMOTIONS[:1])


def test_trackers_tell_runs_apart(config_of: Make, prepared: Prepared) -> None:
    from training_helpers import read_scalars

    config = config_of(**TINY, trackers=("tensorboard",))
    train_together(config, EMOTIONS, prepared)
    scalars = read_scalars(next((config.output_dir / "runs").iterdir()))
    assert {"happy/train/total", "sad/train/total", "happy/lr", "sad/validation/value"} <= set(scalars)


def expressive_run(config: Config, prepared: Prepared) -> tuple[Path, Path]:
    """Folders of the expressive base and of happy on it."""
    folders = list(train_emotions(config, ["happy"], prepared))
    return config.output_dir / "emotion_models" / "base", folders[0]


def test_the_expressive_base_learns_from_every_emotion(config_of: Make, prepared: Prepared) -> None:
    config = config_of(**TINY)
    folder = train(config, "base", prepared)
    facts = read_json(folder / "best" / "affetto.json")
    assert facts["data"]["emotional_clips"] == 11 + 4
    assert facts["emotion"] == "base"
    assert facts["expressive_base"] is None
    base = load_base(config.base)
    streams = build_streams(config, "base", prepared, base)
    assert {row.clip_id.split("-")[0] for row in streams.emotional} == {"happy", "sad"}
    assert {row.clip_id.split("-")[0] for row in streams.validation_emotional} == {"happy", "sad"}


def test_an_emotion_on_the_expressive_base_is_written_as_their_exact_sum(config_of: Make, prepared: Prepared) -> None:
    config = config_of(**TINY, expressive_base=True)
    below, folder = expressive_run(config, prepared)
    written, expressive = read_adapter(folder / "best"), read_adapter(below / "best")
    own = load_file(folder / "last" / "training_state.safetensors")
    assert read_json(folder / "best" / "affetto.json")["expressive_base"]
    for site, (a_RI, b_OR) in written.tensors.items():
        assert len(a_RI) == 2 * config.adapter_r
        # The first half is the expressive base, bit for bit; the state to resume from holds the emotion's own half.
        assert torch.equal(a_RI[: config.adapter_r], expressive.tensors[site][0])
        assert torch.equal(b_OR[:, : config.adapter_r], expressive.tensors[site][1])
        assert own[f"weight/{site}.lora_A"].shape == (config.adapter_r, a_RI.shape[1])
    # Logits with both adapters on are those of the one file on an untouched base.
    logits = []
    for names in (("base", "happy"), ("sum",)):
        base = load_base(config.base)
        bank = AdapterBank(base.model, base.network.gates, config.target_modules)
        if names == ("sum",):
            insert_adapter(bank, "sum", written, base.hash)
        else:
            insert_adapter(bank, "base", expressive, base.hash)
            rank = config.adapter_r
            parts = {site: (a[rank:], b[:, rank:]) for site, (a, b) in written.tensors.items()}
            bank.insert("happy", parts, written.scales)
        rows = build_streams(config, "happy", prepared, base, tuple(1.0 for _ in names)).emotional
        with torch.no_grad():
            logits.append(base.network(collate(rows, 8)).c0_NV)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


def test_training_on_the_expressive_base_leaves_it_as_it_is(config_of: Make, prepared: Prepared) -> None:
    config = config_of(**TINY, expressive_base=True)
    below = train(config, "base", prepared)
    before = (below / "best" / "adapter_model.safetensors").read_bytes()
    expressive_run(config, prepared)
    assert (below / "best" / "adapter_model.safetensors").read_bytes() == before
    bank_names = {"base": 1.0, "happy": 1.0, "sad": 0.0}
    base = load_base(config.base)
    bank = AdapterBank(base.model, base.network.gates, config.target_modules)
    for name in bank_names:
        bank.add(name, 2, 4.0, 0)
    assert own_gate(bank, "happy") == tuple(bank_names.values())


def test_the_penalty_is_of_the_sum(config_of: Make, prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """EWC of an emotion on the expressive base counts what both change together."""
    config = config_of(**TINY, expressive_base=True)
    train(config, "base", prepared)
    seen = []
    real = loop._step

    def watched(runs: Any, states: Any, batches: Any) -> Any:
        if not seen:
            run = runs[0]
            ranks = [len(a_RI) for _, a_RI, _, _ in run.bank.summed(run.adapters)]
            seen.append((run.penalty().item(), run.adapters, ranks))
        return real(runs, states, batches)

    monkeypatch.setattr(loop, "_step", watched)
    train(config, "happy", prepared)
    penalty, adapters, ranks = seen[0]
    assert adapters == ["base", "happy"]
    assert set(ranks) == {2 * config.adapter_r}
    assert penalty > 0, "a fresh adapter changes nothing, but the expressive base does"


def test_an_expressive_base_that_was_stopped_is_trained_to_its_end(
    config_of: Make, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its best adapter so far is on disk, but nothing is built on half a base."""
    straight, stopped = config_of("straight", **TINY, expressive_base=True), config_of(**TINY, expressive_base=True)
    expected, _ = expressive_run(straight, prepared)
    assert not lacks_expressive_base(straight)
    assert lacks_expressive_base(stopped)
    ends = {row["step"] for row in read_log(expected / "training_log.jsonl") if row["split"] == "validation"}
    with monkeypatch.context() as patched:
        stop_at_step(patched, min(ends) + 1)
        with pytest.raises(Interrupted):
            expressive_run(stopped, prepared)
    assert stopped.expressive_folder.is_dir()
    assert lacks_expressive_base(stopped)
    assert_equal_runs(expressive_run(stopped, prepared)[0], expected)
    # Someone else's, which says nothing of its training, counts as it is.
    (stopped.expressive_folder / "affetto.json").unlink()
    assert not lacks_expressive_base(stopped)
    assert not lacks_expressive_base(config_of(**TINY))


def test_without_an_expressive_base_the_error_says_how_to_train_it(config_of: Make, prepared: Prepared) -> None:
    config = config_of(**TINY, expressive_base=True)
    with pytest.raises(CheckpointError, match="affetto train --emotion base"):
        train(config, "happy", prepared)


def test_another_expressive_base_is_another_run(config_of: Make, tmp_path: Path, prepared: Prepared) -> None:
    config = config_of(**TINY, expressive_base=True)
    expressive_run(config, prepared)
    train(config, "base", make_prepared(tmp_path / "others", seed=3))
    with pytest.raises(CheckpointError):
        train(config, "happy", prepared, resume=True)
