"""Whole runs: what is learned, what is kept, what is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_helpers import COUNTS, TINY, assert_equal_runs, make_prepared, read_scalars

from affetto.adapters.bank import AdapterBank
from affetto.adapters.peft_files import insert_adapter, read_adapter
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import DataError, NonFiniteLossError
from affetto.files import read_json
from affetto.model.base import Base, load_base
from affetto.model.batch import Batch, Logits, Row, collate
from affetto.model.csm import CsmNetwork
from affetto.pipeline import speak_general
from affetto.preserve import self_speech
from affetto.speak.generation import generate
from affetto.speak.requests import Request, Spoken
from affetto.training import loop
from affetto.training.log import read_log
from affetto.training.loop import lr_factor, train
from affetto.training.streams import build_streams
from affetto.training.validation import Validation, recommend

Make = Callable[..., Config]


def answers(base_name: str, rows: list[Row], folder: Path | None, emotion: str) -> list[Tensor]:
    """Logits of a base, freshly loaded, with an adapter in its bank and the gate at 0; and of its weights."""
    base = load_base(base_name)
    if folder is not None:
        bank = AdapterBank(base.model, base.network.gates, ("q_proj", "down_proj"))
        insert_adapter(bank, emotion, read_adapter(folder / "best"), base.hash)
        rows = [Row(row.clip_id, row.turns, (0.0,)) for row in rows]
    with torch.no_grad():
        logits = base.network(collate(rows, base.num_codebooks))
    return [logits.c0_NV, logits.depth_MJV]


def test_pitfall_13_the_base_is_the_same_before_between_and_after_two_emotions(
    config_of: Make, prepared: Prepared, make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(**TINY)
    bases = []
    real = loop.load_base

    def remembered(*arguments: Any, **named: Any) -> Any:
        bases.append(real(*arguments, **named))
        return bases[-1]

    monkeypatch.setattr(loop, "load_base", remembered)
    rows = [make_row(1, frames=(4,)), make_row(2, frames=(5,))]
    before = answers(config.base, rows, None, "")
    for emotion in ("happy", "sad"):
        folder = train(config, emotion, prepared)
        for logits in answers(config.base, rows, folder, emotion), answers(config.base, rows, None, ""):
            assert all(torch.equal(one, other) for one, other in zip(logits, before, strict=True))
        # The very network that was trained, gate at 0 and without a gate.
        network = bases[-1].network
        for gate in ((0.0,), ()):
            batch: Batch = collate([Row(row.clip_id, row.turns, gate) for row in rows], 8)
            with torch.no_grad():
                trained = network(batch)
            assert torch.equal(trained.c0_NV, before[0])
            assert torch.equal(trained.depth_MJV, before[1])
        with torch.no_grad():
            on = network(collate([Row(row.clip_id, row.turns, (1.0,)) for row in rows], 8))
        assert not torch.allclose(on.c0_NV, before[0], atol=1e-3), "the adapter does something"
    # The second emotion distilled from the base: training it alone gives the same adapter.
    alone = train(config_of("alone", **TINY), "sad", prepared)
    assert_equal_runs(alone, config.output_dir / "emotion_models" / "sad")


def test_pitfall_28_best_is_the_lowest_validation_and_reads_back(config_of: Make, prepared: Prepared) -> None:
    """Held-out clips that sound otherwise than the trained ones: the longer it trains, the worse it does on them."""
    keys = {**prepared.keys, "happy-validation-0": "key-sad-train-0", "happy-validation-1": "key-sad-train-1"}
    prepared = replace(prepared, keys=keys)
    config = config_of(**TINY | {"num_epochs": 6, "learning_rate": 0.01})
    folder = train(config, "happy", prepared)
    log = [row for row in read_log(folder / "training_log.jsonl") if row["split"] == "validation"]
    assert [row["step"] for row in log] == [2, 4, 6, 8, 10, 12]
    lowest = min(log, key=lambda row: row["terms"]["value"])
    assert lowest["step"] != 12, "the last one is the best: the test tells nothing"
    facts = read_json(folder / "best" / "affetto.json")
    assert facts["validation"] == {"value": lowest["terms"]["value"], "step": lowest["step"]}
    base = load_base(config.base)
    streams = build_streams(config, "happy", prepared, base)
    bank = AdapterBank(base.model, base.network.gates, config.target_modules)
    insert_adapter(bank, "happy", read_adapter(folder / "best"), base.hash)
    validation = Validation(base, streams.validation_emotional, streams.validation_general)
    assert validation() == lowest["terms"]
    assert [point["intensity"] for point in facts["frontier"]] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
    for point in facts["frontier"]:
        assert validation(point["intensity"])["emotion_nll"] == point["emotion_nll"]
    assert facts["recommended_intensity"] == recommend(facts["frontier"])


def test_learning_happens_and_every_term_is_logged(config_of: Make, prepared: Prepared) -> None:
    folder = train(config_of(num_epochs=8, learning_rate=1e-2), "happy", prepared)
    log = read_log(folder / "training_log.jsonl")
    validation = [row["terms"]["emotion_nll"] for row in log if row["split"] == "validation"]
    assert validation[-1] < 4.5 < 5.3 < validation[0]
    train_rows = [row for row in log if row["split"] == "train"]
    assert [row["step"] for row in train_rows] == [1, 5, 10, 15, 16]
    assert train_rows[0]["terms"]["ewc"] == 0.0 < train_rows[-1]["terms"]["ewc"]
    assert set(train_rows[-1]["terms"]) == {
        "emotion_ce_c0", "emotion_ce_depth", "rehearsal_ce_c0", "rehearsal_ce_depth", "rehearsal_kl_c0",
        "rehearsal_kl_depth", "ewc", "total", "gradient_norm",
    }  # fmt: skip
    assert train_rows[0]["lr"] == pytest.approx(1e-2 / 2)
    assert train_rows[-1]["epoch"] == 8.0


@pytest.mark.parametrize("part", ["backbone", "depth"])
def test_one_part_alone_learns(config_of: Make, prepared: Prepared, part: str) -> None:
    """With every term on; codebook zero can't be learned by the depth decoder, and stays as it is."""
    folder = train(config_of(**TINY | {"target_modules": "attention", "adapted_parts": part}), "happy", prepared)
    place = {"backbone": "backbone_model.", "depth": "depth_decoder."}[part]
    tensors = load_file(folder / "best" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 8
    assert all(name.startswith(f"base_model.model.{place}") for name in tensors)
    log = read_log(folder / "training_log.jsonl")
    values = [row["terms"]["value"] for row in log if row["split"] == "validation"]
    assert values[-1] < values[0]
    moved = [row["terms"]["rehearsal_kl_c0"] for row in log if row["split"] == "train"][-1]
    assert (moved > 1e-5) == (part == "backbone"), moved


def test_preservation_keeps_more_of_the_base(config_of: Make, prepared: Prepared) -> None:
    """Same data and epochs: without any term, with EWC alone, with replay and distillation alone."""

    def forgotten(name: str, **changes: Any) -> float:
        off = {"ewc_lambda": 0, "replay_ratio": 0, "distillation_alpha": 0, "num_epochs": 5, "learning_rate": 1e-2}
        folder = train(config_of(name, **off | changes), "happy", prepared)
        return float(read_log(folder / "training_log.jsonl")[-1]["terms"]["general_kl"])

    plain = forgotten("plain")
    assert plain > 0.1
    assert forgotten("ewc", ewc_lambda=1e6) < 0.5 * plain
    assert forgotten("replay", replay_ratio=0.5, distillation_alpha=1.0) < 0.5 * plain


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"ewc_lambda": 0}, "ewc"),
        ({"replay_ratio": 0}, "rehearsal"),
        ({"distillation_alpha": 0}, "kl"),
        ({"distill_on": "emotion"}, "rehearsal_kl"),
        ({"ewc_lambda": 0, "replay_ratio": 0, "distillation_alpha": 0, "rehearsal_buffer_size": 0}, "rehearsal"),
        ({"precision": "bf16", "distill_on": "both"}, "nothing"),
    ],
)
def test_terms_can_be_left_out(config_of: Make, prepared: Prepared, changes: dict[str, Any], absent: str) -> None:
    folder = train(config_of(**TINY | {"num_epochs": 1} | changes), "happy", prepared)
    terms = {
        name for row in read_log(folder / "training_log.jsonl") if row["split"] == "train" for name in row["terms"]
    }
    assert {"emotion_ce_c0", "emotion_ce_depth", "total"} <= terms
    assert not [name for name in terms if absent in name]
    assert (folder / "best" / "adapter_model.safetensors").is_file()


def test_without_general_speech_forgetting_is_unknown(config_of: Make, tmp_path: Path) -> None:
    few = make_prepared(tmp_path / "few", {key: count for key, count in COUNTS.items() if key[0] is not None})
    with pytest.raises(DataError, match="preservation needs general speech"):
        train(config_of(**TINY), "happy", few)
    folder = train(config_of(**TINY, ewc_lambda=0, replay_ratio=0), "happy", few)
    facts = read_json(folder / "best" / "affetto.json")
    assert {point["kl"] for point in facts["frontier"]} == {None}
    terms = read_log(folder / "training_log.jsonl")[-1]["terms"]
    assert terms["general_kl"] is None
    assert terms["value"] == terms["emotion_nll"]


@pytest.mark.parametrize("good_steps", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_state(
    config_of: Make, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, good_steps: int
) -> None:
    """Every good step is on disk, also in the middle of an epoch."""
    config = config_of(**TINY)
    real = loop.accumulate_together
    steps = []

    def spoilt(network: Any, shares: Any, *others: Any) -> Any:
        steps.append(shares)
        if len(steps) == good_steps + 1:
            return real(lambda_network(network), shares, *others)
        return real(network, shares, *others)

    def lambda_network(network: Any) -> Any:
        class Spoilt:
            num_codebooks, gates = network.num_codebooks, network.gates

            def __call__(self, batch: Batch) -> Any:
                logits = network(batch)
                logits.c0_NV.mul_(torch.inf)
                return logits

        return Spoilt()

    monkeypatch.setattr(loop, "accumulate_together", spoilt)
    with pytest.raises(NonFiniteLossError, match="happy-train-"):
        train(config, "happy", prepared)
    state = config.output_dir / "emotion_models" / "happy" / "last" / "training_state.safetensors"
    assert all(tensor.isfinite().all() for tensor in load_file(state).values())
    assert {tensor.item() for name, tensor in load_file(state).items() if name.startswith("step/")} == {
        float(good_steps)
    }


def test_trackers_are_told_what_the_log_says(config_of: Make, prepared: Prepared) -> None:
    config = config_of(**TINY, trackers=("tensorboard",))
    folder = train(config, "happy", prepared)
    scalars = read_scalars(config.output_dir / "runs" / "happy")
    rows = read_log(folder / "training_log.jsonl")
    for split, name in (("train", "total"), ("validation", "value"), ("validation", "general_kl")):
        expected = [(row["step"], pytest.approx(row["terms"][name])) for row in rows if row["split"] == split]
        assert scalars[f"{split}/{name}"] == expected
    train(config_of("silent", **TINY), "happy", prepared)
    assert not (config_of("silent").output_dir / "runs").exists()


def test_facts_say_where_the_adapter_comes_from(config_of: Make, prepared: Prepared) -> None:
    config = config_of(**TINY)
    written = {"happy-train-0": "a@1", "happy-train-3": "b@2", "sad-train-0": "a@1", "happy-validation-0": "a@1"}
    written |= {f"general-train-{number}": "a@1" for number in range(10)}
    acted = {"happy-train-1": 0.6, "happy-train-2": 0.6, "sad-train-1": 0.6}
    clips = tuple(
        replace(clip, transcribed_by=written.get(clip.id), intensity=acted.get(clip.id)) for clip in prepared.clips
    )
    prepared = replace(prepared, clips=clips)
    folder = train(config, "happy", prepared, command="affetto train --emotion happy")
    facts = read_json(folder / "best" / "affetto.json")
    assert facts["command"] == "affetto train --emotion happy"
    base = {"id": config.base, "hash": load_base(config.base).hash, "revision": None, "num_codebooks": 8}
    assert facts["base"] == base
    assert facts["data"]["emotional_clips"] == 6
    assert facts["data"]["validation_clips"] == 2
    assert (facts["data"]["prepared_clips"], facts["data"]["bad_clips"]) == (len(prepared.clips), 0)
    assert facts["data"]["rehearsed_clips"] == 6
    assert facts["data"]["machine_texts"] == {
        "emotional_clips": 2, "rehearsed_clips": 6, "by_model": {"a@1": 7, "b@2": 1}
    }, "clips that are held out, not chosen, or another emotion's, don't count"  # fmt: skip
    assert facts["data"]["intensities"] == {"0.6": 2, "1": 4}
    assert set(facts["timings_s"]) == {"fisher", "teacher", "training", "frontier", "total"}
    assert facts["configuration"]["adapter_r"] == 4
    assert "output_dir" not in facts["configuration"]
    assert {path.name for path in folder.iterdir()} == {"best", "last", "training_log.jsonl"}


def test_learning_rate_warms_up_and_falls_to_nothing() -> None:
    factors = [lr_factor(step, 20, 0.2) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[12] == pytest.approx(0.5)
    assert factors[20] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in pairwise(factors[4:]))
    assert lr_factor(0, 1, 0.0) == lr_factor(0, 1, 1.0) == 1.0


def test_a_run_on_the_bases_own_speech(config_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No general clip in the data; the loss on the base's samples is the KL, whatever alpha is."""

    def short(base: Base, requests: list[Request], *, on_progress: Callable[[int], object]) -> list[Spoken]:
        # A random base never ends by itself, so its frame cap stands for the end.
        spoken = generate(base, [replace(one, max_frames=5 + one.seed % 4) for one in requests])
        on_progress(len(requests))
        return [Spoken(said.codes_TK, False) for said in spoken]

    monkeypatch.setattr(self_speech, "generate", short)
    few = make_prepared(tmp_path / "few", {key: count for key, count in COUNTS.items() if key[0] is not None})
    changes = {"distillation_alpha": 0.0, "general": "self", "evaluation_clips": 2, "learning_rate": 1e-2}
    config = config_of(**TINY | changes)
    prepared = speak_general(config, few)
    assert [len(prepared.select(None, split)) for split in ("train", "validation", "test")] == [10, 4, 2]
    others = speak_general(config_of(**TINY | changes, seed=5), few)
    assert others.clips == prepared.clips, "runs with other seeds are measured on the same speech"
    folder = train(config, "happy", prepared)
    facts = read_json(folder / "best" / "affetto.json")
    assert facts["data"]["general"] == "self"
    assert facts["data"]["rehearsed_clips"] == 6
    log = read_log(folder / "training_log.jsonl")
    first, last = (next(row["terms"] for row in rows if row["split"] == "train") for rows in (log, log[::-1]))
    assert first["rehearsal_kl_c0"] == pytest.approx(0.0, abs=1e-5), "the adapter starts as the base"
    assert last["rehearsal_kl_c0"] > 1e-4
    for terms in (first, last):
        emotion = 0.5 * (terms["emotion_ce_c0"] + terms["emotion_ce_depth"])
        kl = 0.5 * (terms["rehearsal_kl_c0"] + terms["rehearsal_kl_depth"])
        natural = facts["ewc_natural_weight"]
        assert terms["total"] == pytest.approx(0.6 * emotion + 0.4 * kl + natural * terms["ewc"], rel=1e-5)
    validation = [row["terms"] for row in log if row["split"] == "validation"][-1]
    assert 0 < validation["general_kl"] < 1


def test_a_run_on_the_bases_own_speech_is_given_nothing_else(config_of: Make, prepared: Prepared) -> None:
    with pytest.raises(AssertionError, match="not the base's own speech"):
        train(config_of(**TINY, general="self"), "happy", prepared)


def test_the_default_methods_never_ask_the_teacher_while_training(
    config_of: Make, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers come from the cache: inside the loop no forward has a row with its gates at zero."""
    is_inside, seen = [False], []
    forward, run_steps = CsmNetwork.forward, loop.run_steps

    def watched(self: CsmNetwork, batch: Batch) -> Logits:
        is_teacher = bool((batch.gate_BE == 0).all(dim=1).any())
        seen.append((is_inside[0], is_teacher))
        return forward(self, batch)

    def marked(*arguments: Any) -> Any:
        is_inside[0] = True
        try:
            return run_steps(*arguments)
        finally:
            is_inside[0] = False

    monkeypatch.setattr(CsmNetwork, "forward", watched)
    monkeypatch.setattr(loop, "run_steps", marked)
    methods = ("ewc_lambda", "distillation_alpha", "temperature", "distill_on", "depth_frames_share", "replay_ratio")
    config = config_of(**{name: getattr(Config(), name) for name in methods})
    folder = train(config, "happy", prepared)
    log = read_log(folder / "training_log.jsonl")
    assert any("rehearsal_kl_depth" in row["terms"] for row in log)
    num_steps = max(row["step"] for row in log)
    # A step's one batch; at each epoch's end one batch of held-out happy clips and one of general ones.
    assert [item for item in seen if item[0]] == [(True, False)] * (num_steps + 2 * 2)
    assert (False, True) in seen, "before the loop it was asked"


@pytest.mark.parametrize("dropped", [0.0, 0.2])
def test_activation_checkpointing_changes_nothing(config_of: Make, prepared: Prepared, dropped: float) -> None:
    short = {**TINY, "num_epochs": 1, "adapter_dropout": dropped}
    straight = train(config_of("straight", **short), "happy", prepared)
    again = train(config_of("again", **short, activation_checkpointing=True), "happy", prepared)
    assert_equal_runs(again, straight)


def test_a_base_in_bfloat16_learns_the_same_and_has_its_own_teacher(config_of: Make, prepared: Prepared) -> None:
    exact = train(config_of("exact", **TINY), "happy", prepared)
    half = train(config_of("half", **TINY, base_precision="bf16"), "happy", prepared)
    logs = [read_log(run / "training_log.jsonl") for run in (exact, half)]
    losses = [[row["terms"]["emotion_nll"] for row in log if row["split"] == "validation"] for log in logs]
    learned = losses[0][0] - losses[0][-1]
    assert learned > 0.05
    assert losses[1] == pytest.approx(losses[0], abs=learned / 4)
    assert losses[1] != losses[0]
    assert {tensor.dtype for tensor in load_file(half / "best" / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    assert read_json(half / "best" / "affetto.json")["base"]["hash"] == load_base(config_of().base).hash
    base = load_base(config_of().base, dtype=torch.bfloat16)
    assert base.answers_hash != base.hash == load_base(config_of().base).answers_hash
