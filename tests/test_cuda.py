"""A GPU against the CPU: speech, losses, gradients, curvatures, the teacher, Mimi, and whole runs, in float32.

Skipped where there is no GPU. In float32 both do the same sums in another order, so what is compared is told apart by
rounding alone, once TF32 is off.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from affetto.adapters.bank import AdapterBank
from affetto.codes.batches import exactly, mimi_latents
from affetto.codes.neural import MimiCodec
from affetto.errors import Interrupted
from affetto.evaluate.suite import evaluate
from affetto.model.base import Base, load_base
from affetto.model.batch import Row, Streams, Turn, collate
from affetto.model.losses import code_losses
from affetto.pipeline import prepare_clips, train_emotions
from affetto.preserve.curvature import CURVATURES, Curvature
from affetto.preserve.ewc import ewc_penalty
from affetto.preserve.fisher import estimate_fisher
from affetto.preserve.forecast import forecast
from affetto.preserve.teacher import TeacherCache, teacher_cache
from affetto.speak.generation import generate
from affetto.speak.requests import Request, Spoken
from affetto.training.batches import assemble
from affetto.training.loop import train, train_mode
from affetto.training.step import LossWeights, accumulate_gradients, finish_gradients
from banks import trained_bank
from dia_checkpoint import dia_row, write_dia
from small_run import small_config, write_clips

DEVICE = "cuda"
TEXTS = ["the silver key", "a", "a much longer line about rivers", "old stones"]
WEIGHTS = LossWeights(replay=0.4, alpha=0.3, temperature=2.0, first_codebook=0.6, ewc=1.5, distill_on="both")
LENGTHS = (5, 9, 3, 6, 14, 8, 2, 5)
FLIPPED = 5e-2
"""What sampled labels may change in all that fall on the other side of a border by rounding."""

pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """float32 is float32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the miniature is unpacked, once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _as_new(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of our own, and Accelerate without what an earlier run chose."""
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("AFFETTO_CACHE", str(cache))
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "training"))
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "codes"))
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@dataclass(frozen=True)
class Place:
    """The miniature with an adapter that does something, on one device."""

    base: Base
    bank: AdapterBank

    @property
    def sites(self) -> dict[str, nn.Module]:
        return {site: self.base.model.get_submodule(site) for site in self.bank.sites}

    def gradients(self) -> dict[str, Tensor]:
        """Of the adapter, on the host; they are taken away."""
        found = {}
        for name, parameter in self.bank.parameters("happy").items():
            assert parameter.grad is not None, name
            found[name], parameter.grad = parameter.grad.cpu(), None
        return found


def place(device: str, dtype: torch.dtype = torch.float32, name: str = "miniature") -> Place:
    """The same weights and the same adapter on every device: both are drawn on the host."""
    drawn = trained_bank(load_base(name)).parameters("happy")
    base = load_base(name, device=device, dtype=dtype)
    bank = trained_bank(base)
    for name, parameter in bank.parameters("happy").items():
        parameter.data.copy_(drawn[name].data)
    return Place(base, bank)


@pytest.fixture
def host() -> Place:
    return place("cpu")


@pytest.fixture
def gpu() -> Place:
    return place(DEVICE)


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> list[Row]:
    """Four emotional and four general clips of unequal lengths, the first one an answer."""
    made = [make_row(seed, frames=(length,), gate=(1.0,)) for seed, length in enumerate(LENGTHS)]
    return [make_row(90, frames=(4, 6), gate=(1.0,)), *made[1:]]


class OneProcess:
    """Accelerate's interface as one process sees it, in float32 or under autocast."""

    num_processes, process_index, is_main_process, scaler = 1, 0, True, None

    def __init__(self, device: str, dtype: torch.dtype | None = None) -> None:
        self.device, self.dtype = torch.device(device), dtype

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, max_norm)


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """The largest difference of every tensor against its largest value.

    Where that is a thousandth of the largest of all, what differs may be rounding: Moshi's first query of a step sees
    one key alone, so that its gradient is.
    """
    assert found.keys() == wanted.keys()
    least = 1e-3 * max(float(tensor.abs().max()) for tensor in wanted.values())
    assert sum(float(tensor.abs().max()) > least for tensor in wanted.values()) > 0.5 * len(wanted)
    for name, tensor in wanted.items():
        assert tensor.abs().max() > 0, name
        worst = (found[name] - tensor).abs().max() / max(float(tensor.abs().max()), least)
        assert worst < tolerance, f"{name} is off by {worst:.1e}"


def requests_of(base: Base, turns: tuple[Turn, ...]) -> list[Request]:
    """Greedy ones of unequal lengths: the base, the adapter at two intensities, and one that follows two turns."""
    gates: list[tuple[float, ...]] = [(), (1.0,), (0.5,), (1.0,)]
    return [
        Request(base.prompt_ids(text, index), 12 + 3 * index, gates[index], temperature=0.0,
                context=turns if index == 1 else ())
        for index, text in enumerate(TEXTS)
    ]  # fmt: skip


@torch.no_grad()
def assert_same_speech(base: Base, request: Request, found: Spoken, wanted: Spoken) -> None:
    """The same codes, unless rounding decided: where the first one differs, both must be as likely to the base."""
    length = min(len(found.codes_TK), len(wanted.codes_TK))
    differs = (found.codes_TK[:length] != wanted.codes_TK[:length]).any(axis=1)
    if not differs.any():
        assert len(found.codes_TK) == len(wanted.codes_TK)
        return
    frame = int(differs.argmax())
    k = int((found.codes_TK[frame] != wanted.codes_TK[frame]).argmax())
    row = Row("spoken", (*request.context, Turn(request.text_ids, wanted.codes_TK)), request.gate)
    logits = base.network(collate([row], base.num_codebooks))
    of_code = logits.c0_NV[frame] if k == 0 else logits.depth_MJV[frame, k - 1]
    margin = abs(float(of_code[found.codes_TK[frame, k]] - of_code[wanted.codes_TK[frame, k]]))
    assert margin < 1e-3, f"frame {frame}, codebook {k}: the codes' logits are {margin:.4f} apart"


def test_greedy_speech_is_the_cpus(host: Place, gpu: Place, make_row: Callable[..., Row]) -> None:
    requests = requests_of(host.base, make_row(11, frames=(3, 2)).turns)
    wanted = generate(host.base, requests)
    assert len(np.unique(np.concatenate([one.codes_TK for one in wanted]))) > 50, "speech that never changes"
    together = generate(gpu.base, requests)
    alone = [generate(gpu.base, [request])[0] for request in requests]
    for request, expected, one, other in zip(requests, wanted, together, alone, strict=True):
        assert_same_speech(host.base, request, one, expected)
        assert_same_speech(host.base, request, other, expected)
    same = sum(np.array_equal(one.codes_TK, other.codes_TK) for one, other in zip(together, wanted, strict=True))
    assert same >= 2, "rounding decides a code in a thousand, not most rows"


def test_adapters_that_wait_on_the_host_speak_as_those_beside_their_layers(gpu: Place) -> None:
    base = load_base("miniature", device=DEVICE)
    bank = AdapterBank(base.model, base.network.gates, gpu.bank.targets, on_host=True)
    scales = {path: scale for path, _, _, scale in gpu.bank.factors("happy")}
    bank.insert("happy", {path: (a_RI, b_OR) for path, a_RI, b_OR, _ in gpu.bank.factors("happy")}, scales)
    assert {parameter.device.type for parameter in bank.parameters("happy").values()} == {"cpu"}
    requests = requests_of(base, ())
    for found, wanted in zip(generate(base, requests), generate(gpu.base, requests), strict=True):
        assert np.array_equal(found.codes_TK, wanted.codes_TK)


def test_a_seed_draws_what_it_draws_on_the_cpu(host: Place, gpu: Place) -> None:
    """Codes near a boundary of the distribution may turn, and all that follows with them: the first frames count."""
    requests = [
        Request(host.base.prompt_ids(text, 0), 2, (1.0,), seed=seed, temperature=0.9, top_k=40)
        for seed, text in enumerate(TEXTS)
    ]
    found, wanted = (np.stack([one.codes_TK for one in generate(at.base, requests)]) for at in (gpu, host))
    assert (found == wanted).mean() > 0.9


@torch.no_grad()
def test_teacher_forced_loss_of_every_codebook_is_the_cpus(host: Place, gpu: Place, rows: list[Row]) -> None:
    found = []
    for at in (gpu, host):
        batch = collate(rows, at.base.num_codebooks).to(at.base.device)
        logits = at.base.network(batch)
        nll_MJ = -logits.depth_MJV.log_softmax(-1).gather(2, batch.depth_targets_MJ[..., None])[..., 0]
        nll_N = -logits.c0_NV.log_softmax(-1).gather(1, batch.c0_targets_N[:, None])[:, 0]
        found.append(torch.cat([nll_N.mean()[None], nll_MJ.mean(0)]).cpu())
        terms = code_losses(logits, batch)
        assert torch.allclose(found[-1][0], terms[0].mean.cpu(), rtol=1e-5)
    assert torch.allclose(found[0], found[1], rtol=1e-5), found


def answers(at: Place, rows: list[Row], folder: Path) -> TeacherCache:
    return teacher_cache(folder, at.base.network, at.base.hash, rows, depth_share=0.5)


def test_the_teachers_answers_are_the_cpus(host: Place, gpu: Place, rows: list[Row], tmp_path: Path) -> None:
    found, wanted = answers(gpu, rows, tmp_path / "gpu"), answers(host, rows, tmp_path / "cpu")
    for row in rows:
        one, other = found[row.clip_id], wanted[row.clip_id]
        np.testing.assert_array_equal(one.depth_frames, other.depth_frames)
        # Float16 has ten bits behind the first.
        torch.testing.assert_close(one.c0_TV, other.c0_TV, rtol=2e-3, atol=1e-3)
        torch.testing.assert_close(one.depth_FJV, other.depth_FJV, rtol=2e-3, atol=1e-3)


def test_what_is_forecast_is_the_cpus(host: Place, gpu: Place, rows: list[Row]) -> None:
    found, wanted = (forecast(at.base, rows[4:], 1).kl(0) for at in (gpu, host))
    assert wanted > 0
    assert found == pytest.approx(wanted, rel=1e-3)


def penalty_of(curvature: Curvature, at: Place) -> tuple[float, dict[str, Tensor]]:
    """The penalty, and its gradient."""
    penalty = ewc_penalty(curvature, at.bank.factors("happy"), 0)
    penalty.backward()  # type: ignore[no-untyped-call]
    return penalty.item(), at.gradients()


@pytest.mark.parametrize("name", sorted(CURVATURES))
def test_every_curvature_is_the_cpus(name: str, host: Place, gpu: Place, rows: list[Row], tmp_path: Path) -> None:
    """Estimated there and here; and estimated here, saved, and read there."""
    mine = estimate_fisher(host.base.network, host.sites, rows[4:], CURVATURES[name]())
    theirs = estimate_fisher(gpu.base.network, gpu.sites, rows[4:], CURVATURES[name]())
    mine.save(tmp_path / "curvature.safetensors", "key")
    read = CURVATURES[name].load(tmp_path / "curvature.safetensors", "key", device=DEVICE)
    wanted, gradients = penalty_of(mine, host)
    assert wanted > 0
    found, others = penalty_of(read, gpu)
    assert found == pytest.approx(wanted, rel=1e-3)
    assert_near(others, gradients, 1e-2)
    found, others = penalty_of(theirs, gpu)
    assert found == pytest.approx(wanted, rel=FLIPPED)
    # A layer whose gradient is small hangs on few labels; the whole does not.
    mine_all, theirs_all = (torch.cat([value.flatten() for value in kept.values()]) for kept in (gradients, others))
    assert (theirs_all - mine_all).norm() < 2 * FLIPPED * mine_all.norm()


def curvature_for(at: Place, estimated_at: Place, rows: list[Row], folder: Path) -> Curvature:
    """One curvature on any device: sampled labels may fall otherwise by rounding."""
    kept = folder / "curvature.safetensors"
    if not kept.exists():
        made = estimate_fisher(estimated_at.base.network, estimated_at.sites, rows[4:6], CURVATURES["kfac"]())
        made.save(kept, "key")
    return CURVATURES["kfac"].load(kept, "key", device=at.base.device)


def step(
    at: Place,
    rows: list[Row],
    folder: Path,
    curvature: Curvature,
    dtype: torch.dtype | None = None,
    checkpointed: bool = False,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Terms and gradients of a step with LoRA, EWC, distillation on both streams and rehearsal."""
    process = OneProcess(at.base.device.type, dtype)
    taught = {"emotion": True, "rehearsal": True}
    teacher = answers(at, rows, folder)
    micro = [
        assemble(
            rows[first : first + 2],
            rows[first + 4 : first + 6],
            teacher,
            taught,
            at.base.num_codebooks,
            0.4,
            np.random.default_rng(0),
        )
        for first in (0, 2)
    ]
    with train_mode(at.base.network, checkpointed):
        values = accumulate_gradients(
            at.base.network, micro, WEIGHTS, lambda: ewc_penalty(curvature, at.bank.factors("happy"), 0), process
        )
    values["norm"] = finish_gradients(list(at.bank.parameters("happy").values()), 1e9, process)
    return values, at.gradients()


def assert_a_step_is_the_same(host: Place, gpu: Place, rows: list[Row], folder: Path) -> dict[str, float]:
    """With activations kept and computed again; the host's values."""
    values, gradients = step(host, rows, folder / "cpu", curvature_for(host, host, rows, folder))
    curvature = curvature_for(gpu, host, rows, folder)
    found, others = step(gpu, rows, folder / "gpu", curvature)
    assert found == pytest.approx(values, rel=1e-3)
    assert_near(others, gradients, 2e-3)
    gpu.base.network.enable_checkpointing()
    again, recomputed = step(gpu, rows, folder / "gpu", curvature, checkpointed=True)
    assert again == pytest.approx(found, rel=1e-4)
    assert_near(recomputed, others, 1e-3)
    return values


def test_a_step_of_the_full_recipe_is_the_cpus(host: Place, gpu: Place, rows: list[Row], tmp_path: Path) -> None:
    values = assert_a_step_is_the_same(host, gpu, rows, tmp_path)
    assert len(values) == 11
    assert all(value > 0 for value in values.values())


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_a_step_in_bfloat16_is_near_that_in_float32(
    base_dtype: torch.dtype, gpu: Place, rows: list[Row], tmp_path: Path
) -> None:
    curvature = curvature_for(gpu, gpu, rows, tmp_path)
    values, gradients = step(gpu, rows, tmp_path / "float32", curvature)
    rounded, others = step(place(DEVICE, base_dtype), rows, tmp_path / "bfloat16", curvature, torch.bfloat16)
    for name in ("total", "emotion_ce_c0", "rehearsal_ce_depth"):
        assert rounded[name] == pytest.approx(values[name], rel=0.05), name
    flat, other = (torch.cat([value.flatten() for value in found.values()]) for found in (gradients, others))
    assert torch.nn.functional.cosine_similarity(flat, other, dim=0) > 0.98


@pytest.fixture(params=["moshi", "dia"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[Row], Sequence[str]]:
    """Another kind of base, eight rows for it, and what it can be asked to say."""
    if request.param == "dia":
        folder = write_dia(tmp_path / "dia")
        return str(folder), [dia_row(seed, frames=(6 + seed % 3,), gate=(1.0,)) for seed in range(8)], ("[S1] hello",)
    rng, rows = np.random.default_rng(0), []
    for seed in range(8):
        frames = 6 + seed % 3
        text_T = np.where(rng.random(frames) < 0.4, rng.integers(20, 260, frames), 3)
        user_TK, codes_TK = rng.integers(0, 64, (2, frames, 8))
        rows.append(
            Row(
                f"clip-{seed}", (Turn((), codes_TK, Streams(text_T, np.where(text_T == 3, 0.5, 1.0), user_TK)),), (1.0,)
            )
        )
    return "random:moshi-tiny", rows, ("ab c", "d")


def test_other_bases_learn_and_speak_as_on_the_cpu(other: tuple[str, list[Row], Sequence[str]], tmp_path: Path) -> None:
    name, rows, texts = other
    host, gpu = (place(device, name=name) for device in ("cpu", DEVICE))
    assert_a_step_is_the_same(host, gpu, rows, tmp_path)
    said = []
    for at in (gpu, host):
        requests = [Request(at.base.prompt_ids(text, 0), 6, (1.0,), temperature=0) for text in texts]
        said.append([spoken.codes_TK[:4] for spoken in generate(at.base, requests)])
    assert all(len(codes_TK) for codes_TK in said[1])
    assert all(np.mean(mine == theirs) > 0.9 for mine, theirs in zip(*said, strict=True))


def test_sounds_that_come_and_go_are_those_on_the_host() -> None:
    """In one pass a frame, each sound against its codes decoded at once."""
    plan: Any = importlib.import_module("test_sounds_together")
    codec, host = (plan.mimi_of(sliding_window=9) for _ in range(2))
    codec.to(DEVICE, speaks_only=True)
    codes, starts = plan.planned(codec, plan.BOOKS)
    found = plan.speak(codec.open_streams(), codes, starts)
    for number, codes_TK in codes.items():
        whole = plan.at_once(host, codes_TK)
        np.testing.assert_allclose(found[number], whole, rtol=1e-5, atol=1e-6 * whole.std(), err_msg=str(number))


def test_pitfall_08_batches_of_mimi_give_the_codes_of_each_clip_alone() -> None:
    """Latents in float64. Distances to centroids are float32's in transformers, so that rounding decides few codes."""
    tiny: Any = importlib.import_module("test_mimi_batches")
    sounds = tiny.sounds_of(tiny.LENGTHS[:-1])
    # A codebook keeps its centroids as they were when it was first used, so every model is new.
    codecs = [
        MimiCodec(tiny.mimi_of().to(DEVICE), tiny.BOOKS),
        MimiCodec(tiny.mimi_of().double().to(DEVICE), tiny.BOOKS),
    ]
    on_host_TK = np.concatenate([MimiCodec(tiny.mimi_of().double(), tiny.BOOKS).encode(sound) for sound in sounds])
    assert len(np.unique(on_host_TK)) > 100, "the fixture's codes should vary"
    for codec in codecs:
        together_TK = np.concatenate(codec.encode_batch(sounds, batch_s=1e4))
        alone_TK = np.concatenate([codec.encode(sound) for sound in sounds])
        assert (together_TK == alone_TK).all(axis=1).mean() > 0.97
        assert (together_TK == on_host_TK).all(axis=1).mean() > 0.97
    model = codecs[1].model
    long = [sound for sound in sounds if len(sound) >= 1920]
    with exactly():
        together_FD, frames = mimi_latents(model, long)
        for sound, part_FD in zip(long, together_FD.split(frames), strict=True):
            alone_FD, _ = mimi_latents(model, [sound])
            assert (part_FD - alone_FD).abs().max() < 1e-9 * alone_FD.abs().max()


def moved(found: dict[str, Tensor], wanted: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """How far two runs' weights are apart, of how far the second one has gone."""
    apart = torch.cat([(found[name] - value).flatten() for name, value in wanted.items()]).norm()
    return float(apart / torch.cat([(value - start[name]).flatten() for name, value in wanted.items()]).norm())


def test_a_run_is_the_cpus_and_goes_on_there(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights after the whole run on each device, and after one that is stopped on the GPU and resumed on the CPU."""
    helpers: Any = importlib.import_module("training_helpers")
    clips = helpers.make_prepared(tmp_path / "clips")
    weights = {}
    for name, is_on_host in (("cpu", True), ("gpu", False), ("both", False)):
        config = helpers.make_config(tiny_base_folder, tmp_path / name, **helpers.TINY)
        if name == "both":
            with monkeypatch.context() as patched:
                helpers.stop_at_step(patched, 3)
                with pytest.raises(Interrupted):
                    run(config, clips, monkeypatch, is_on_host=False)
            folder = run(config, clips, monkeypatch, is_on_host=True, resume=True)
        else:
            folder = run(config, clips, monkeypatch, is_on_host=is_on_host)
        state, best, log = helpers.results(folder)
        weights[name] = {key: value for key, value in state.items() if key.startswith("weight/")}
        assert best
        assert log[-1]["step"] == 6
    start = start_of(tiny_base_folder, helpers.TINY["target_modules"])
    assert moved(weights["gpu"], weights["cpu"], start) < 0.02
    assert moved(weights["both"], weights["cpu"], start) < 0.02


def run(config: Any, clips: Any, monkeypatch: pytest.MonkeyPatch, *, is_on_host: bool, resume: bool = False) -> Path:
    """Train on the host or on the GPU; the run's folder."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(is_on_host).lower())
    # The Fisher and the teacher's answers of its own.
    monkeypatch.setenv("AFFETTO_CACHE", str(config.output_dir / "cache"))
    return train(config, "happy", clips, resume=resume)


def start_of(folder: Path, targets: tuple[str, ...]) -> dict[str, Tensor]:
    """The weights that such runs begin with."""
    base = load_base(str(folder))
    bank = AdapterBank(base.model, base.network.gates, targets)
    bank.add("happy", 4, 8.0, 0)
    return {f"weight/{name}": value.detach() for name, value in bank.parameters("happy").items()}


def test_an_evaluation_is_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniature, which goes to the GPU only where it is told to: what is heard, measured and forgotten."""
    config = small_config(tmp_path / "run", write_clips(tmp_path / "clips"))
    prepared = prepare_clips(config, ["happy"])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    list(train_emotions(config, ["happy"], prepared))
    found = {}
    for device in ("cpu", DEVICE):
        monkeypatch.setattr("affetto.speak.voice.usual_device", lambda _base, device=device: device)
        results = evaluate(config, "happy", prepared)
        assert results["retention"] is not None
        kept = [row["values"] for system in results["systems"] for row in system["files"]]
        found[device] = (results["retention"]["kl"]["value"], results["retention"]["delta_nll"]["value"], kept)
    (kl, delta, ours), (their_kl, their_delta, theirs) = found["cpu"], found[DEVICE]
    assert their_kl == pytest.approx(kl, rel=1e-3, abs=1e-7)
    assert their_delta == pytest.approx(delta, abs=1e-5)
    same = [one["f0_median_st"] == other["f0_median_st"] for one, other in zip(ours, theirs, strict=True)]
    assert np.mean(same) > 0.8, "a code that is drawn on a border may fall on its other side"
