"""`affetto plan`: estimates memory, disk and time of a run of one emotion, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from affetto.config import Config
from affetto.errors import BaseModelError, ConfigError, counted
from affetto.files import expanded, read_json
from affetto.hub import fetch_config
from affetto.model.base import BASES, DTYPES, find_base, host_part, kind_of
from affetto.model.conversion.architecture import settings_of_arguments
from affetto.model.conversion.source import is_authors_format
from affetto.model.four_bit import FOUR_BIT
from affetto.model.outline import Outline
from affetto.model.random_base import RANDOM, random_config
from affetto.model.rows_at_once import frames_at_once
from affetto.planning.rate import Rate, measured_rate, stated_rate
from affetto.planning.speaking import Speaking, plan_speaking
from affetto.planning.storage import (
    adapter_parameters,
    codes_bytes_per_hour,
    teacher_bytes,
    weight_bytes,
)
from affetto.planning.tracing import (
    Cost,
    ShapeOnly,
    answering_cost,
    asking_cost,
    fisher_cost,
    shape_only,
    training_cost,
)
from affetto.planning.workload import Data, Workload, workload
from affetto.preserve.curvature.memory import curvature_bytes
from affetto.tensors import refused_config
from affetto.training.optimizer import moment_bytes
from affetto.training.runtime import resident_bytes

_HEAP = (
    "memory is that of live tensors; a process took up to 1.6 times as much, since glibc's heap keeps freed memory. "
    "With MALLOC_MMAP_THRESHOLD_=4194304 in the environment it took 1.15 times"
)
"""benchmarks/memory.py, the checkpointed case: 1,244 MiB, and 884 with that variable, for 768 live."""


@dataclass(frozen=True)
class Stage:
    """One part of a run."""

    name: str
    peak_bytes: int
    """Peak memory while it runs, including everything that stays."""
    flops: float
    time_s: float


@dataclass(frozen=True)
class Plan:
    """What a run needs; all figures are for one process and one emotion."""

    base: str
    device: str
    """cpu: resident memory of the process, without freed memory that its heap keeps; cuda: what torch allocates."""
    work: Workload
    stages: tuple[Stage, ...]
    parts: Mapping[str, int]
    """Bytes that stay allocated, by kind."""
    disk: Mapping[str, int]
    """Bytes on disk, by kind; `codes_per_hour` is for an hour of speech."""
    speaking: Speaking | None
    """Memory of a process that speaks with every emotion's adapter; None if it isn't planned for this base."""
    rate: Rate
    assumptions: tuple[str, ...]

    @property
    def peak_bytes(self) -> int:
        """The most memory at any time."""
        return max(stage.peak_bytes for stage in self.stages)

    @property
    def time_s(self) -> float:
        """Seconds of all stages."""
        return sum(stage.time_s for stage in self.stages)

    def to_document(self) -> dict[str, Any]:
        """Strict JSON."""
        return {
            "schema": "affetto.plan/1",
            **asdict(self),
            "peak_bytes": self.peak_bytes,
            "time_s": self.time_s,
            "disk_bytes": sum(size for name, size in self.disk.items() if name != "codes_per_hour"),
        }


def base_config(name: str) -> Any:
    """The transformers configuration of a base. For a hub id only config.json is fetched, and nothing is converted."""
    if name.startswith(RANDOM):
        return random_config(name)
    folder = expanded(name)
    if folder.is_dir():
        path = folder / "config.json" if is_authors_format(folder) else find_base(name) / "config.json"
    elif "/" in name:
        path = fetch_config(*name.split("@", 1))
    else:
        path = find_base(name) / "config.json"
    values = _read(path) if path.is_file() else {}
    if is_authors_format(path.parent):
        values = settings_of_arguments(values, path)
    kind = kind_of(path, values)
    from huggingface_hub.errors import StrictDataclassError

    try:
        return BASES[kind].outline.configuration(values)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise refused_config(path.parent, error) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} can't be read ({error}); copy or fetch the checkpoint again") from error
    if not isinstance(values, dict):
        raise BaseModelError(f"{path} holds no settings; copy or fetch the checkpoint again")
    return values


def plan(config: Config, data: Data, *, device: str = "cpu", tflops: float | None = None) -> Plan:
    """Plan a run of one emotion of `config` over such `data`.

    `device` is cpu or cuda. The time comes from `tflops` (10^12 multiplications and additions a second) if given, else
    from a short measurement on this machine's device. ConfigError if this machine lacks that device.
    """
    if device == "cuda" and tflops is None and not torch.cuda.is_available():
        raise ConfigError(
            "there is no GPU here to be timed: give your GPU's speed with --tflops (CSM-1B on an H200: 40 in batches "
            "of 8, 320 in batches of 64)"
        )
    base = base_config(config.base)
    outline = BASES[base.model_type].outline
    runtime = _runtime_bytes(outline) if device == "cpu" else 0
    dtype = DTYPES[config.base_precision]
    rank = config.adapter_r if config.use_adapters else None
    shape = shape_only(
        base, dtype, config.target_modules, config.adapted_parts, rank, checkpointing=config.activation_checkpointing,
        is_packed=config.base_precision == FOUR_BIT, name=config.base,
    )  # fmt: skip
    work = workload(
        config, data, outline.frame_rate, tokens_per_s=outline.tokens_per_s, template_tokens=outline.template_tokens,
        end_frames=outline.end_frames,
    )  # fmt: skip
    positions = work.text_tokens + work.frames + shape.network.has_text_stream
    if positions > shape.network.window:
        raise ConfigError(
            f"clips of {data.clip_s:g} s take {positions} positions with their text, but {config.base} has a window of "
            f"{shape.network.window}: plan for shorter clips, since longer ones can't be trained on"
        )
    on_host = host_part(shape.model, shape.network) if device == "cuda" else None
    stays = {"runtime": runtime, **_resident(config, shape, work, rank, on_host)}
    costs = _costs(config, shape, work, device)
    rate = stated_rate(tflops) if tflops is not None else measured_rate(base, config, work, device)
    speaking = plan_speaking(
        base, outline, shape, rank, len(config.emotions), data.clip_s, device=device, runtime=runtime,
        takes=config.sampling_takes,
    )  # fmt: skip
    stages = tuple(
        Stage(name, before + cost.peak_bytes, cost.flops * times, cost.flops * times / rate.flops_per_s)
        for name, (cost, times, before) in _stages(costs, stays, work).items()
    )
    return Plan(
        base=config.base, device=device, work=work, stages=stages, parts=stays,
        disk=_disk(config, shape, work, rank, outline.frame_rate), speaking=speaking, rate=rate,
        assumptions=_assumptions(data, device, rate, speaking, has_host_part=on_host is not None),
    )  # fmt: skip


def _runtime_bytes(outline: Outline) -> int:
    """Resident bytes of Python and a run's libraries, after a first matrix product and optimizer step."""
    import accelerate  # noqa: F401
    import transformers

    from affetto.training import loop  # noqa: F401

    getattr(transformers, outline.model_class)
    # Kernels are loaded, and parts of torch imported, on first use.
    layer = torch.nn.Linear(64, 64)
    torch.autograd.backward(layer(torch.ones(64, 64)).square().sum())
    torch.optim.AdamW(layer.parameters()).step()
    return resident_bytes()


def _resident(
    config: Config, shape: ShapeOnly, work: Workload, rank: int | None, on_host: str | None
) -> dict[str, int]:  # fmt: skip
    """Bytes that stay, in order of allocation, without those of the model's child `on_host`."""
    shapes = _shapes(shape)
    trained = adapter_parameters(shapes, rank)
    frozen = weight_bytes(shape.model, () if on_host is None else (f"{on_host}.",)) - 4 * trained
    return {
        "weights": frozen,
        "curvature": curvature_bytes(config.ewc_curvature, shapes, work.fisher_clips, config.adapter_r),
        "adapter": 4 * trained,
        "optimizer": moment_bytes(trained, config.optimizer_bits),
    }


def _shapes(shape: ShapeOnly) -> dict[str, tuple[int, ...]]:
    return {path: site.shape for path, site in shape.bank.sites.items()}


def _costs(config: Config, shape: ShapeOnly, work: Workload, device: str) -> dict[str, tuple[Cost, int]]:
    """The cost of each kind of pass in a run, and its number of rows."""
    frames, text = work.frames, work.text_tokens
    fisher = frames_at_once(shape.network, frames, 8, with_gradient=True)
    answer = frames_at_once(shape.network, frames, 16)
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
    step = shape.batch(work.rows, frames, text, work.depth_frames)
    whole = shape.batch(answer, frames, text, answer * frames)
    costs = {
        "training": (training_cost(shape, step, work.streams, autocast=autocast), work.rows),
        "answers": (answering_cost(shape, whole), answer),
    }
    # For training clips a share of the frames goes through the depth decoder, for held-out clips all.
    if work.teacher_clips:
        kept = answer * max(1, round(config.teacher_share * frames))
        costs["rehearsed"] = asking_cost(shape, shape.batch(answer, frames, text, kept)), answer
    if work.held_clips:
        costs["held"] = asking_cost(shape, whole), answer
    if work.fisher_clips:
        seen = shape.batch(fisher, frames, text, fisher * frames)
        costs["fisher"] = fisher_cost(shape, seen, curvature=config.ewc_curvature, on_host=device == "cuda"), fisher
    return costs


def _stages(
    costs: Mapping[str, tuple[Cost, int]], stays: Mapping[str, int], work: Workload
) -> dict[str, tuple[Cost, float, int]]:
    """By stage: the cost of a pass, the number of passes, and the bytes allocated before it."""
    loaded = stays["runtime"] + stays["weights"] + stays["adapter"]
    answer, at_once = costs["answers"]
    stages: dict[str, tuple[Cost, float, int]] = {}
    if "fisher" in costs:
        cost, rows = costs["fisher"]
        stages["fisher"] = (cost, work.fisher_clips / rows, loaded + stays["curvature"])
    loaded += stays["curvature"]
    asked_clips = {"rehearsed": work.teacher_clips, "held": work.held_clips}
    if asked := [(costs[name][0], clips) for name, clips in asked_clips.items() if clips]:
        flops = sum(clips * cost.flops for cost, clips in asked) / at_once
        stages["teacher"] = (Cost(max(cost.peak_bytes for cost, _ in asked), round(flops)), 1.0, loaded)
    stages["training"] = (costs["training"][0], work.micro_batches, loaded + stays["optimizer"])
    passes = work.validations * 2 * work.held_clips / at_once
    stages["validation"] = (answer, passes, loaded + stays["optimizer"])
    return stages


def _disk(
    config: Config, shape: ShapeOnly, work: Workload, rank: int | None, frame_rate: float
) -> dict[str, int]:  # fmt: skip
    network, shapes = shape.network, _shapes(shape)
    trained = adapter_parameters(shapes, rank)
    size = 4 * trained if rank is not None else 2 * weight_bytes(shape.model)
    sizes = (work.frames, network.num_codebooks, network.vocab_size)
    texts = network.text_size
    return {
        "codes_per_hour": codes_bytes_per_hour(network.num_codebooks, frame_rate),
        "teacher": teacher_bytes(work.teacher_clips, *sizes, config.teacher_share, texts)
        + teacher_bytes(work.held_clips, *sizes, 1.0, texts),
        "fisher": curvature_bytes(config.ewc_curvature, shapes, work.fisher_clips, config.adapter_r),
        "best": size,
        "last": 12 * trained,
        "checkpoints": config.num_checkpoints * size,
    }


def _assumptions(
    data: Data, device: str, rate: Rate, speaking: Speaking | None, *, has_host_part: bool
) -> tuple[str, ...]:  # fmt: skip
    lines = [
        f"{counted(data.clips, 'clip')} of {data.clip_s:g} s, all of mean length; longer ones need more",
        "training is one process and one emotion; evaluation and the coding of clips are not included",
        f"time at {rate.flops_per_s / 1e12:.3g} TFLOP/s, {rate.source}",
    ]
    if device == "cpu":
        lines.append(_HEAP)
    if device == "cuda":
        lines.append("GPU memory as torch allocates it; the CUDA context takes 0.3 to 0.6 GB more")
    if has_host_part:
        lines.append("the text's embeddings stay in the host's memory")
    if speaking is None:
        lines.append("memory of speaking isn't planned for this kind of base")
    else:
        lines.append(
            f"speaking is {counted(speaking.takes, 'take')} of one sentence after another, of a clip's mean length; "
            "what the codec needs while it decodes is not included"
        )
    return tuple(lines)
