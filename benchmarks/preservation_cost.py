"""What preservation costs: the penalty of every curvature against a step without one, the Fisher pass against an epoch.

    OMP_NUM_THREADS=1 python benchmarks/preservation_cost.py

Writes `benchmarks/results/preservation_cost.json` and prints its table in Markdown. Steps are the default recipe's on
the miniature (12 rows, half of them rehearsed, the teacher's answers read from the cache). A step takes the penalty
forward and backward by itself, after the data's, and so it is timed, in turn with steps without one: the difference of
two whole steps would drown it in their noise. The Fisher pass and an epoch of training go over the same general clips.
Processor time counts, not the clock.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from facts import run_facts, take_no_options

from affetto.adapters.bank import AdapterBank
from affetto.config import Config
from affetto.files import write_json
from affetto.model.base import load_base
from affetto.pipeline import prepare_clips
from affetto.preserve.curvature import CURVATURES
from affetto.preserve.ewc import ewc_penalty
from affetto.preserve.fisher import estimate_fisher
from affetto.training.batches import assemble
from affetto.training.step import accumulate_gradients
from affetto.training.streams import build_streams, loss_weights, teacher_answers

RESULT = Path(__file__).parent / "results" / "preservation_cost.json"
REPEATS = 15
FISHER_CLIPS = 48


def main() -> None:
    """Measure, write and print."""
    take_no_options(__doc__)
    accelerator = _one_process()
    config = Config(emotions=("happy",), output_dir=Path(tempfile.mkdtemp()), trackers=())
    prepared = prepare_clips(config, ["happy"])
    base = load_base(config.base)
    bank = AdapterBank(base.model, base.network.gates, config.target_modules)
    bank.add("happy", config.adapter_r, config.lora_alpha, 0)
    _move(bank)
    streams = build_streams(config, "happy", prepared, base)
    weights = loss_weights(config, streams, base)
    teacher = teacher_answers(config, base, streams, weights)
    half = config.batch_size // 2
    batch = assemble(
        streams.emotional[:half], streams.rehearsal[:half], teacher, weights.taught, base.num_codebooks,
        config.depth_frames_share, np.random.default_rng(0),
    )  # fmt: skip
    clips = streams.fisher[:FISHER_CLIPS]
    modules = {site: base.model.get_submodule(site) for site in bank.sites}
    epoch_s = _epoch_s(base, clips, weights, accelerator)
    rows = []
    for name, kind in CURVATURES.items():
        start = time.process_time()
        curvature = estimate_fisher(base.network, modules, clips, kind())
        fisher_s = time.process_time() - start
        step = iter(range(10_000))

        def penalty(curvature: Any = curvature, step: Any = step) -> Any:
            return ewc_penalty(curvature, bank.factors("happy"), next(step))

        without, alone = _in_turn(
            lambda: accumulate_gradients(base.network, [batch], weights, None, accelerator),
            lambda penalty=penalty: accumulate_gradients(base.network, [], weights, penalty, accelerator),
        )
        rows.append(
            {
                "curvature": name,
                "step_ratio": 1 + alone / without,
                "fisher_speed_over_epoch": epoch_s / fisher_s,
                "memory_mib": sum(curvature.site_memory().values()) / 2**20,
            }
        )
    found = {"step_s": without, "rows": rows}
    write_json(RESULT, run_facts() | found)
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| curvature | a step with it | Fisher pass, speed of an epoch | memory |", "|---|---|---|---|"]
    lines += [
        f"| {row['curvature']} | {row['step_ratio']:.3f} x | {row['fisher_speed_over_epoch']:.2f} x "
        f"| {row['memory_mib']:.1f} MiB |"
        for row in rows
    ]
    return "\n".join(lines)


def _epoch_s(base: Any, clips: Any, weights: Any, accelerator: Any) -> float:
    """Processor time of forward and backward over `clips`, every code, as plain training has it."""
    start = time.process_time()
    for first in range(0, len(clips), 8):
        made = assemble(
            clips[first : first + 8], [], None, {"emotion": False, "rehearsal": False}, base.num_codebooks, 1.0,
            np.random.default_rng(0),
        )  # fmt: skip
        accumulate_gradients(base.network, [made], weights, None, accelerator)
    return time.process_time() - start


def _in_turn(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Medians of processor time, taken A B A B …, after one of each."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS + 1):
        for times, work in zip(spent, (one, other), strict=True):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
    return median(spent[0][1:]), median(spent[1][1:])


def _move(bank: AdapterBank) -> None:
    """An adapter in mid-training: B isn't zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, _, b_OR, _ in bank.factors("happy"):
            assert b_OR is not None
            b_OR.copy_(0.01 * torch.randn(b_OR.shape, generator=generator))


def _one_process() -> Any:
    from contextlib import nullcontext

    return SimpleNamespace(
        num_processes=1, process_index=0, scaler=None, device=torch.device("cpu"), autocast=nullcontext,
        backward=torch.autograd.backward,
    )  # fmt: skip


if __name__ == "__main__":
    main()
