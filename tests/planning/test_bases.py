"""Plans for the other bases: against real steps of the trainer's own functions, and what their code says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from transformers import DiaTokenizer

from affetto import hub
from affetto.adapters.bank import AdapterBank
from affetto.config import Config
from affetto.errors import AdapterError, BaseModelError, ConfigError
from affetto.model.base import BASES, DTYPES, Base, load_base
from affetto.model.batch import Row, Streams, Turn
from affetto.model.four_bit import FourBitLinear, packed_sizes
from affetto.model.monologue import monologue_turn
from affetto.planning.plan import base_config, plan
from affetto.planning.rate import measured_rate
from affetto.planning.storage import teacher_bytes, weight_bytes
from affetto.planning.tracing import (
    Cost,
    LiveBytes,
    ShapeOnly,
    answering_cost,
    asking_cost,
    fisher_cost,
    shape_only,
    training_cost,
)
from affetto.planning.workload import Data, Workload, workload
from affetto.preserve.curvature import Kfac
from affetto.preserve.fisher import estimate_fisher
from affetto.preserve.teacher import ask_teacher, teacher_cache
from affetto.training.batches import assemble
from affetto.training.loop import train, train_mode
from affetto.training.step import LossWeights, accumulate_gradients
from affetto.training.validation import Validation
from affetto.types import Clip
from dia_checkpoint import BOOKS, CODES, write_dia
from made_up_clips import made_up_clips

KINDS = ("moshi", "dia")
LONG, ROWS, RANK = 1.0, 6, 4


@pytest.fixture(scope="module")
def folders(moshi_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each kind."""
    return {"moshi": moshi_folder, "dia": write_dia(tmp_path_factory.mktemp("dia") / "base")}


def work_of(kind: str, config: Config, data: Data) -> Workload:
    outline = BASES[kind].outline
    return workload(
        config, data, outline.frame_rate, tokens_per_s=outline.tokens_per_s, template_tokens=outline.template_tokens,
        end_frames=outline.end_frames,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "streams", "share"),
    [
        ({}, ((0.5, False), (0.5, True)), 0.5 * 0.5 + 0.5 * 0.25),
        ({"distillation_alpha": 0.5}, ((0.5, False), (0.5, True)), 0.5 * 0.5 + 0.5 * (0.5 + 0.25 * 0.5)),
        ({"distillation_alpha": 0.5, "distill_on": "emotion"}, ((0.5, True), (0.5, False)), 0.5 * 0.625 + 0.5 * 0.5),
        ({"distillation_alpha": 0.5, "distill_on": "both"}, ((0.5, True), (0.5, True)), 0.625),
        ({"general": "self", "distillation_alpha": 0.5}, ((0.5, False), (0.5, True)), 0.5 * 0.5 + 0.5 * 0.25),
        (
            {"general": "self", "distillation_alpha": 0.5, "distill_on": "both"},
            ((0.5, True), (0.5, True)),
            0.5 * 0.625 + 0.5 * 0.25,
        ),
        ({"general": "self", "distillation_alpha": 0.0}, ((0.5, False), (0.5, True)), 0.5 * 0.5 + 0.5 * 0.25),
        ({"distillation_alpha": 0.0}, ((0.5, False), (0.5, False)), 0.5),
        ({"replay_ratio": 0.0}, ((1.0, False),), 0.5),
    ],
)
def test_streams_are_taught_as_training_teaches_them(
    changes: dict[str, Any], streams: tuple[tuple[float, bool], ...], share: float
) -> None:
    """Frames that the depth decoder sees: those drawn, and the teacher's; these alone where nothing else counts."""
    config = Config(depth_frames_share=0.5, teacher_frames_share=0.25, batch_size=8, **changes)
    work = work_of("csm", config, Data(100, 8.0))
    assert work.streams == streams
    assert work.taught_share == sum(part for part, is_taught in streams if is_taught)
    assert work.depth_frames == round(share * work.frames * 8)


def rows_of(base: Base, work: Workload) -> list[Row]:
    """Rows of random codes, of the workload's size."""
    rng, network, rows = np.random.default_rng(0), base.network, []
    for number in range(work.rows):
        if network.has_text_stream:
            length = work.frames + 1
            codes, user = rng.integers(0, network.codebook_size, (2, length, network.num_codebooks))
            turn = Turn((), codes, Streams(rng.integers(0, network.text_size, length), np.ones(length), user))
        else:
            ids = tuple(rng.integers(5, 60, work.text_tokens).tolist())
            codes = rng.integers(0, network.codebook_size, (work.frames - 1, network.num_codebooks))
            turn = Turn(ids, codes, end_code=network.end_code)
        rows.append(Row(f"clip-{number}", (turn,), (1.0,)))
    return rows


def real_cost(model: Any, run: Callable[[], object]) -> Cost:
    live = LiveBytes(list(model.parameters()))
    with live:
        run()
    return Cost(live.peak, live.flops)


@pytest.mark.parametrize(("checkpointing", "precision"), [(False, "fp32"), (True, "fp32"), (True, "bf16")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_planned_step_is_the_trainers(
    folders: dict[str, Path], tmp_path: Path, kind: str, checkpointing: bool, precision: str
) -> None:
    base, work = (
        load_base(str(folders[kind]), precision=precision),
        work_of(kind, Config(batch_size=ROWS), Data(20, LONG)),
    )
    bank = AdapterBank(base.model, base.network.gates)
    bank.add("happy", RANK, 8.0, 0)
    if checkpointing:
        base.network.enable_checkpointing()
    rows = rows_of(base, work)
    teacher = teacher_cache(tmp_path, base.network, base.answers_hash, rows, depth_share=1.0)
    weights = LossWeights(0.5, 0.5, 1.0, 0.5, 1.0, "rehearsal")
    half = ROWS // 2
    batch = assemble(
        rows[half:], rows[:half], teacher, weights.taught, base.num_codebooks, 1.0, np.random.default_rng(0)
    )
    autocast = torch.bfloat16 if precision == "bf16" else None
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), num_processes=1, backward=torch.autograd.backward,
        autocast=lambda: torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None),
    )  # fmt: skip

    def step() -> None:
        with train_mode(base.network, checkpointing):
            accumulate_gradients(base.network, [batch], weights, None, accelerator)

    found = real_cost(base.model, step)
    shape = made(folders[kind], DTYPES[precision], checkpointing=checkpointing)
    streams = [(0.5, False), (0.5, True)]
    planned = shape.batch(ROWS, work.frames, work.text_tokens, ROWS * work.frames)
    told = training_cost(shape, planned, streams, autocast=autocast)
    assert told.flops == found.flops > 0
    assert told.peak_bytes == pytest.approx(found.peak_bytes, rel=0.05)


def made(folder: Path, dtype: torch.dtype = torch.float32, *, checkpointing: bool = False) -> ShapeOnly:
    return shape_only(base_config(str(folder)), dtype, ("both",), "both", RANK, checkpointing=checkpointing)


@pytest.mark.parametrize("kind", KINDS)
def test_a_planned_look_is_the_fishers_and_the_validations(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    base, work = load_base(str(folders[kind])), work_of(kind, Config(batch_size=ROWS), Data(20, LONG))
    bank = AdapterBank(base.model, base.network.gates)
    bank.add("happy", RANK, 8.0, 0)
    rows, sites = rows_of(base, work), {site: base.model.get_submodule(site) for site in bank.sites}
    shape, curvature = made(folders[kind]), Kfac()
    batch = shape.batch(ROWS, work.frames, work.text_tokens, ROWS * work.frames)
    estimate_fisher(base.network, sites, rows[:1], curvature)
    found = real_cost(base.model, lambda: estimate_fisher(base.network, sites, rows, curvature))
    told = fisher_cost(shape, batch)
    assert told.peak_bytes == pytest.approx(found.peak_bytes, rel=0.05)
    assert told.flops == pytest.approx(found.flops, rel=0.05)
    whole = [np.arange(row.num_frames) for row in rows]
    asked, told = real_cost(base.model, lambda: ask_teacher(base.network, rows, whole)), asking_cost(shape, batch)
    assert told.peak_bytes == pytest.approx(asked.peak_bytes, rel=0.05)
    assert told.flops == asked.flops
    validation = Validation(base, rows, rows, tmp_path)
    found, told = real_cost(base.model, validation), answering_cost(shape, batch)
    assert told.peak_bytes == pytest.approx(found.peak_bytes, rel=0.05)
    assert 2 * told.flops == found.flops, "one look at the emotional rows, one at the general ones"


@pytest.mark.parametrize("kind", KINDS)
def test_text_beside_the_frames_is_counted(folders: dict[str, Path], kind: str) -> None:
    """Twice the text vocabulary is as many more logits and answers, where the text is predicted at all."""
    config = base_config(str(folders[kind]))
    peaks, disks = [], []
    for factor in (1, 8):
        if kind == "moshi":
            config.vocab_size *= factor
        else:
            config.encoder_config.vocab_size *= factor
        shape = shape_only(config, torch.float32, ("both",), "both", RANK, checkpointing=False)
        batch = shape.batch(2, 20, 5, 40)
        peaks.append(training_cost(shape, batch, [(0.5, False), (0.5, True)], autocast=None).peak_bytes)
        disks.append(shape.network.text_size)
    if kind == "moshi":
        assert peaks[1] - peaks[0] > 2 * 20 * 4 * 2 * (disks[1] - disks[0]), "logits and their gradients at least"
        assert disks[1] == 8 * disks[0] > 0
    else:
        assert peaks[1] == peaks[0]
        assert disks == [0, 0]


def test_answers_on_the_text_are_on_the_disk(tiny_moshi: Base, tmp_path: Path) -> None:
    work = work_of("moshi", Config(batch_size=5), Data(20, 2.0))
    teacher_cache(tmp_path, tiny_moshi.network, "hash", rows_of(tiny_moshi, work), depth_share=0.5)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    network = tiny_moshi.network
    shape = (work.frames, network.num_codebooks, network.vocab_size, 0.5)
    assert teacher_bytes(5, *shape, network.text_size) == pytest.approx(size, rel=0.05)
    assert teacher_bytes(5, *shape) < 0.5 * size, "without the text it is much less"


def test_disk_is_what_a_run_of_dia_writes(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    config = Config(
        emotions=("happy",), base=str(folders["dia"]), output_dir=tmp_path, fisher_clips=4, rehearsal_buffer_size=6,
        validation_clips=4, num_epochs=1, trackers=(), num_checkpoints=1, ewc_curvature="rank1",
    )  # fmt: skip
    prepared = made_up_clips(tmp_path, 87, CODES, BOOKS)
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = train(config, "happy", prepared)
    told = plan(config, Data(8, 1.0), device="cpu", tflops=1.0).disk

    def bytes_of(place: Path, pattern: str) -> int:
        return sum(path.stat().st_size for path in place.rglob(pattern))

    assert told["best"] == pytest.approx(bytes_of(folder / "best", "*.safetensors"), rel=0.15)
    assert told["last"] == pytest.approx(bytes_of(folder / "last", "*.safetensors"), rel=0.15)
    assert told["teacher"] == pytest.approx(bytes_of(tmp_path / "cache" / "teacher", "*"), rel=0.05)
    assert told["codes_per_hour"] == round(3600 * 44_100 / 512 * BOOKS * 2)


def test_rows_are_as_long_as_the_bases_own(folders: dict[str, Path]) -> None:
    """Moshi's frames are those of its own turns, Dia's tokens those of its own tokenizer."""
    work = work_of("moshi", Config(), Data(20, 5.0))
    codes_TK, silence_TK = np.zeros((63, 4), dtype=np.int64), np.zeros((100, 4), dtype=np.int64)
    clip = Clip("clip", Path("x.wav"), "a", "happy", "a", "made-up", "train")
    tokenizer = load_base(str(folders["moshi"])).tokenizer
    row = Row("clip", (monologue_turn(clip, codes_TK, silence_TK, tokenizer, 12.5),))
    assert (work.frames, work.text_tokens) == (row.num_frames, 0)
    work = work_of("dia", Config(), Data(20, 5.0))
    assert work.frames == 431 + 1
    text = "[S1] (with emotion) " + "a" * 70
    assert work.text_tokens == len(DiaTokenizer()(text)["input_ids"])
    outline, told = BASES["dia"].outline, load_base(str(folders["dia"]))
    assert outline.frame_rate == told.frame_rate


@pytest.mark.parametrize(("kind", "device"), [("moshi", "cpu"), ("dia", "cuda"), ("moshi", "cuda")])
def test_a_plan_of_the_published_widths(tmp_path: Path, kind: str, device: str) -> None:
    """One layer in each part, for time; the weights are those of transformers' model without its codec."""
    outline = BASES[kind].outline
    short = outline.short(getattr(transformers, outline.config_class)())
    short.save_pretrained(tmp_path)
    config = Config(base=str(tmp_path), base_precision="bf16", ewc_curvature="rank1", batch_size=2)
    told = plan(config, Data(10, 2.0), device=device, tflops=100.0)
    with torch.device("meta"):
        model = getattr(transformers, outline.model_class)(short)
    codec = sum(p.numel() for n, p in model.named_parameters() if n.startswith("audio_encoder."))
    numbers = sum(p.numel() for p in model.parameters()) - codec
    assert told.parts["weights"] == pytest.approx(2 * numbers, rel=1e-3), "nothing stays with the host"
    assert not any("embeddings stay" in line for line in told.assumptions)
    frozen = told.parts["weights"] + told.parts["adapter"] + told.parts["runtime"]
    assert frozen < told.peak_bytes < frozen + 6e9


def test_four_bits_are_planned_where_they_can_be_and_refused_where_the_trainer_refuses(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = base_config(str(folders["moshi"]))
    # The tiny checkpoint's layers aren't whole blocks.
    config.hidden_size = config.ffn_dim = config.depth_decoder_config.input_size = 128
    config.head_dim = 128 // config.num_attention_heads
    dense, packed = (
        shape_only(config, torch.bfloat16, ("both",), "both", RANK, checkpointing=True, is_packed=is_packed)
        for is_packed in (False, True)
    )
    layers = [module for module in packed.model.modules() if isinstance(module, FourBitLinear)]
    assert len(layers) == 6 * config.num_hidden_layers
    saved = sum(2 * o * i - packed_sizes((o, i))[0] - 4 * packed_sizes((o, i))[1] for o, i in (m.shape for m in layers))
    assert weight_bytes(dense.model) - weight_bytes(packed.model) == saved > 0
    batch = packed.batch(2, 9, 0, 18)
    assert training_cost(packed, batch, [(1.0, False)], autocast=None).flops > 0
    monkeypatch.setattr("affetto.model.base.require_four_bit", lambda: None)
    refusals = []
    for refused in (
        lambda: load_base(str(folders["dia"]), precision="nf4"),
        lambda: plan(Config(base=str(folders["dia"]), base_precision="nf4"), Data(9, 1.0), device="cuda", tflops=1.0),
    ):
        with pytest.raises(BaseModelError, match="no layers that base_precision: nf4 packs") as error:
            refused()
        refusals.append(str(error.value))
    assert refusals[0] == refusals[1]
    assert refusals[0].startswith(f"{folders['dia']}: ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_networks_own_guess_of_a_frame_is_near_the_plan(kind: str) -> None:
    """By which the Fisher, the teacher and validation choose how many rows they look at together."""
    outline = BASES[kind].outline
    short = outline.short(getattr(transformers, outline.config_class)())
    shape = shape_only(short, torch.bfloat16, ("both",), "both", RANK, checkpointing=False)
    peaks = [fisher_cost(shape, shape.batch(1, n, 0 if kind == "moshi" else 9, n), on_host=True) for n in (100, 200)]
    frame = (peaks[1].peak_bytes - peaks[0].peak_bytes) / 100
    assert 0.4 < frame / shape.network.frame_bytes(with_gradient=True) < 2.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_is_measured_with_a_short_network(folders: dict[str, Path], kind: str) -> None:
    config = Config(base=str(folders[kind]))
    found = measured_rate(base_config(config.base), config, work_of(kind, config, Data(20, 1.0)), "cpu")
    assert 1e6 < found.flops_per_s < 1e14


def test_the_authors_moshi_is_planned_without_being_converted(
    authors_folder: Path, moshi_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path))
    told, made = (base_config(str(folder)).to_dict() for folder in (authors_folder, moshi_folder))
    assert sized(told) == sized(made)
    assert list(tmp_path.iterdir()) == [], "nothing was converted"
    asked = []

    def one_file(hub_id: str, name: str, revision: str | None = None) -> str:
        asked.append((hub_id, name, revision))
        return str(authors_folder / name)

    monkeypatch.setattr(hub, "_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one_file)
    assert sized(base_config("kyutai/moshiko-pytorch-bf16@v1").to_dict()) == sized(made)
    assert asked == [("kyutai/moshiko-pytorch-bf16", "config.json", "v1")]


def sized(values: dict[str, Any]) -> dict[str, Any]:
    """What of a Moshi's configuration decides shapes."""
    keys = (
        "vocab_size", "audio_vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "ffn_dim", "num_codebooks", "max_position_embeddings", "input_size",
    )  # fmt: skip
    depth = values["depth_decoder_config"]
    return {**{key: values.get(key) for key in keys}, "depth": {key: depth.get(key) for key in keys}}


def test_a_moshi_that_says_nothing_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"dep_q": 8}')
    published = transformers.MoshiConfig().to_dict()
    assert sized(base_config(str(tmp_path)).to_dict()) == sized(published)
    (tmp_path / "config.json").write_text('{"dep_q": 8, "gating": "relu"}')
    with pytest.raises(BaseModelError, match=r"gating is 'relu'.*can't be converted"):
        base_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"dep_q": 8, "dim": "wide"}')
    with pytest.raises(BaseModelError, match=r"config\.json: dim is 'wide' and must be a number"):
        base_config(str(tmp_path))


def test_bad_input_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text, told in (
        ('{"model_type": "llama"}', "'llama' is not supported; supported: csm, moshi, dia. Give a checkpoint"),
        ("{}", "model_type None is not supported; supported: csm, moshi, dia"),
        ("[1]", "holds no settings"),
        ("{", "can't be read"),
        (json.dumps({"model_type": "moshi", "hidden_size": "wide"}), "transformers refuses this configuration"),
    ):
        path.write_text(text)
        with pytest.raises(BaseModelError, match=told):
            base_config(str(tmp_path))
    config = Config(base=str(folders["dia"]))
    with pytest.raises(ConfigError, match=r"clips of 60 s take \d+ positions .* has a window of 250: plan for shorter"):
        plan(config, Data(9, 60.0), device="cuda", tflops=1.0)
    with pytest.raises(AdapterError, match="no depth decoder: adapted_parts must be both"):
        plan(config.model_copy(update={"adapted_parts": "depth"}), Data(9, 1.0), device="cuda", tflops=1.0)
