"""Our training step against transformers' documented recipe, with and without codes prepared, and our own plain LoRA.

    OMP_NUM_THREADS=2 python benchmarks/training_speed.py                  # the miniature
    OMP_NUM_THREADS=2 python benchmarks/training_speed.py --base random:csm-1b-short --clips 8 --batch 4 --rounds 5
    python benchmarks/training_speed.py --full --device cuda --clips 64 --batch 8 32 64 --clip-s 10 --only ours

In every round each contestant trains once on the same emotional clips, in turn: optimizer steps of `--batch` clips with
batches made anew, LoRA of one rank on the same layers. Before that all must give one loss on the same clips. Times are
per trained frame (one that has a loss; the full recipe's rehearsed frames have one, too) and per emotional clip; on a
CPU of processor time, all threads together, since the machine may be busy (ratios by the clock stand beside them in the
results). Sound lies decoded in memory for whoever codes it, and the documented recipe pads to the longest clip of a
batch, as its processor does (notebooks that pad to a fixed length do more). At CSM-1B's sizes our recipe sends a
sixteenth of the frames through the depth decoder, as CSM's own training did; `prepared_amortised` is the opponent with
the same draw. On a GPU our recipe is also measured with activation checkpointing; its share of the product rate counts
what is computed twice once, and stands a second time with all of it. Cases that aren't run stay in
`benchmarks/results/training_speed.json` as they were.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from facts import run_facts
from opponents.clips import World, made_up_world, miniature_world
from opponents.csm_documentation import DocumentedRecipe
from profiling.operations import count_operations, matmul_rate

from affetto.adapters.bank import AdapterBank
from affetto.adapters.targets import ATTENTION, MLP, target_pattern
from affetto.codes.codec import load_codec
from affetto.config import Config
from affetto.files import read_json, write_json
from affetto.laboratory.methods import PLAIN_LORA
from affetto.model.base import DTYPES, MINIATURE, load_base
from affetto.preserve.curvature import CURVATURES, Curvature
from affetto.preserve.ewc import ewc_penalty
from affetto.preserve.fisher import estimate_fisher
from affetto.training.ahead import Ahead
from affetto.training.batches import assemble, plan_run
from affetto.training.loop import train_mode
from affetto.training.optimizer import adamw
from affetto.training.runtime import accelerated
from affetto.training.step import accumulate_gradients, batch_terms, finish_gradients
from affetto.training.streams import loss_weights, teacher_answers

RESULT = Path(__file__).parent / "results" / "training_speed.json"
OURS, OPPONENTS = ("plain", "full"), ("documentation", "prepared")
FISHER_CLIPS = 4


def main() -> None:
    """Measure one case after the other, write and print each."""
    options = _options()
    torch.set_num_threads(options.threads)
    large = options.base != MINIATURE
    changes: dict[str, Any] = {"base": options.base, "batch_size": options.batch[0], "emotions": ("happy",)}
    if large:
        # As configs/csm_1b.yaml has them.
        changes |= {"depth_frames_share": 0.0625, "prompt_template": "{text}", "ewc_curvature": options.curvature}
    if options.device == "cuda":
        changes |= {"base_precision": "bf16", "precision": "bf16"}
    config = Config(**changes, trackers=(), output_dir=Path(tempfile.mkdtemp()))
    with accelerated(config, "happy") as accelerator:
        assert accelerator.device.type == options.device, f"this is {accelerator.device.type}, not {options.device}"
        base = load_base(config.base, device=accelerator.device, dtype=DTYPES[config.base_precision])
        world = (
            made_up_world(base, options.clips, options.clip_s)
            if large
            else miniature_world(config, base, options.clips)
        )
        print(f"{len(world.examples)} clips are there", file=sys.stderr, flush=True)
        theirs = {} if options.only == "ours" else _opponents(config, base, large)
        rate = matmul_rate(options.device, DTYPES[config.base_precision])
        bank = _bank(config, base, options.device)
        curvature = _curvature(config, base, bank, world) if config.ewc_lambda else None
        for batch in options.batch:
            sized = config.model_copy(update={"batch_size": batch})
            work, operations = _contestants(sized, base, bank, world, theirs, accelerator, curvature)
            times = _in_turn(work, options.rounds, options.device)
            case = {"configuration": changes | {"batch_size": batch}, "threads": options.threads,
                    "rounds": options.rounds, **world.facts()}  # fmt: skip
            found = run_facts() | case | _figures(times, operations, world, rate, options.device)
            _keep(options, batch, found)
            if options.profile:
                _profile(work["full"], options.profile.with_suffix(f".{batch}.txt"))


def _keep(options: Any, batch: int, found: dict[str, Any]) -> None:
    name = f"{options.base} on {options.device}"
    if options.clip_s:
        name += f", {batch} rows of {options.clip_s:g} s"
    if options.device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    known = read_json(RESULT)["cases"] if RESULT.is_file() else {}
    write_json(RESULT, {"cases": known | {name: found}})
    print(f"{name}\n{table(found)}", flush=True)


def _profile(epoch: Callable[[int], int], path: Path) -> None:
    """Write what an epoch's time goes to, by kernel and by call."""
    with torch.profiler.profile() as profiler:
        epoch(0)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    averages = profiler.key_averages()
    tables = [averages.table(sort_by=key, row_limit=40) for key in ("self_device_time_total", "self_cpu_time_total")]
    path.write_text("\n\n".join(tables), encoding="utf-8")


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=MINIATURE)
    parser.add_argument("--full", action="store_const", dest="base", const="random:csm-1b", help="CSM-1B's full size")
    parser.add_argument("--clips", type=int, default=48, help="emotional clips, all of them in every round")
    parser.add_argument("--batch", type=int, nargs="+", default=[12], help="rows of a step; one case each")
    parser.add_argument("--clip-s", type=float, help="all made-up clips are so long, instead of 1.5 to 9 s")
    parser.add_argument("--only", choices=("ours",), help="leave the documented recipe out")
    parser.add_argument("--profile", type=Path, help="write where the full recipe's time goes to PATH.BATCH.txt")
    parser.add_argument("--curvature", default="rank1", choices=tuple(CURVATURES), help="with another base than ours")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def table(found: dict[str, Any]) -> str:
    """A case's figures in Markdown."""
    lines = [
        "| contestant | ms per trained frame (quartiles) | ms per emotional clip | per frame: `full` times "
        "| share of the product rate | with recomputation |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, mine in found["contestants"].items():
        low, high = mine["ms_per_frame_quartiles"]
        share, whole = mine["share_of_matmul_rate"], mine["share_with_recomputation"]
        lines.append(
            f"| {name} | {mine['ms_per_frame']:.2f} ({low:.2f} to {high:.2f}) | {mine['ms_per_clip']:.1f} "
            f"| {mine['per_frame_of_full']:.2f} | {share:.1%} | {whole:.1%} |"
        )
    return "\n".join(lines)


def _opponents(config: Config, base: Any, large: bool) -> dict[str, DocumentedRecipe]:
    """The documented recipe on our frozen weights, before our own adapters are put into them."""
    pattern = target_pattern((*ATTENTION, *MLP))
    codec = None if large else load_codec(base.folder)
    made = {"": DocumentedRecipe(base, pattern, config.adapter_r, config.lora_alpha, codec=codec)}
    if large:
        share = config.depth_frames_share
        made["amortised"] = DocumentedRecipe(base, pattern, config.adapter_r, config.lora_alpha, share=share)
    return made


def _bank(config: Config, base: Any, device: str) -> AdapterBank:
    if config.activation_checkpointing or device == "cuda":
        base.network.enable_checkpointing()
    bank = AdapterBank(base.model, base.network.gates, config.target_modules)
    bank.add("happy", config.adapter_r, config.lora_alpha, 0)
    return bank


def _curvature(config: Config, base: Any, bank: AdapterBank, world: World) -> Curvature:
    modules = {site: base.model.get_submodule(site) for site in bank.sites}
    rows = world.streams.fisher[:FISHER_CLIPS]
    return estimate_fisher(base.network, modules, rows, CURVATURES[config.ewc_curvature]())


def _contestants(
    config: Config, base: Any, bank: AdapterBank, world: World, theirs: dict[str, DocumentedRecipe], accelerator: Any,
    curvature: Curvature | None,
) -> tuple[dict[str, Callable[[int], int]], dict[str, float]]:  # fmt: skip
    """An epoch of each, told the round's number, and the operations of one for each of its frames."""
    plain = Config(**(config.model_dump() | PLAIN_LORA))
    work: dict[str, Callable[[int], int]] = {
        "plain": Ours(plain, base, bank, world, accelerator).epoch,
        "full": Ours(config, base, bank, world, accelerator, curvature).epoch,
    }
    if accelerator.device.type == "cuda":
        work["full_checkpointed"] = Ours(config, base, bank, world, accelerator, curvature, is_checkpointed=True).epoch
    if theirs:
        work["documentation"] = Theirs(theirs[""], world, config.batch_size, is_coded=False).epoch
        work["prepared"] = Theirs(theirs[""], world, config.batch_size, is_coded=True).epoch
        check_same_loss(config, base, world, theirs[""], accelerator)
    if "amortised" in theirs:
        work["prepared_amortised"] = Theirs(theirs["amortised"], world, config.batch_size, is_coded=True).epoch
    operations = {}
    for name, epoch in list(work.items()):
        try:
            operations[name] = count_operations(epoch)
            epoch(0)
        except torch.OutOfMemoryError:
            print(f"{name}: the GPU's memory is too small for it", file=sys.stderr, flush=True)
            del work[name]
            continue
        print(f"{name}: {operations[name] / 1e6:.0f} MFLOP a frame", file=sys.stderr, flush=True)
    return work, operations


class Ours:
    """Epochs of our training step, with everything that a run does in one."""

    def __init__(
        self, config: Config, base: Any, bank: AdapterBank, world: World, accelerator: Any,
        curvature: Curvature | None = None, *, is_checkpointed: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.base, self.bank, self.accelerator = config, base, bank, accelerator
        self.streams, self.is_checkpointed = world.streams, is_checkpointed
        self.weights = loss_weights(config, self.streams, base)
        self.teacher = teacher_answers(config, base, self.streams, self.weights)
        self.curvature = curvature
        self.parameters = list(bank.parameters("happy").values())
        self.optimizer = adamw(self.parameters, 1e-6)

    def epoch(self, number: int) -> int:
        """All emotional clips once, with their share of rehearsed ones; how many frames were trained."""
        plan = plan_run(
            [row.num_frames for row in self.streams.emotional], [row.num_frames for row in self.streams.rehearsal],
            batch_size=self.config.batch_size, accumulation=1, replay_ratio=self.config.replay_ratio, num_epochs=1,
            seed=number,
        )  # fmt: skip

        def batch(index: int) -> Any:
            (micro,) = plan.steps[index]
            made = assemble(
                [self.streams.emotional[place] for place in micro.emotional],
                [self.streams.rehearsal[place] for place in micro.general],
                self.teacher, self.weights.taught, self.base.num_codebooks, self.config.depth_frames_share,
                np.random.default_rng((number, index)), self.weights.learned,
            )  # fmt: skip
            return made.pinned() if is_gpu else made

        is_gpu = self.accelerator.device.type == "cuda"
        with Ahead(batch, plan.num_steps, is_on=is_gpu) as batches:
            for index in range(plan.num_steps):
                made = batches.take(index)
                penalty = None if self.curvature is None else self._penalty
                with train_mode(self.base.network, self.is_checkpointed):
                    accumulate_gradients(self.base.network, [made], self.weights, penalty, self.accelerator)
                finish_gradients(self.parameters, self.config.max_grad_norm, self.accelerator, [made])
                self.optimizer.step()
                self.optimizer.zero_grad()
        emotional, rehearsal = self.streams.emotional, self.streams.rehearsal
        return sum(
            sum(emotional[place].num_frames for place in micro.emotional)
            + sum(rehearsal[place].num_frames for place in micro.general)
            for step in plan.steps for micro in step
        )  # fmt: skip

    def _penalty(self) -> torch.Tensor:
        assert self.curvature is not None
        return ewc_penalty(self.curvature, self.bank.factors("happy"), 0)


class Theirs:
    """Epochs of the documented recipe; with `is_coded` its clips were processed and coded beforehand."""

    def __init__(self, recipe: DocumentedRecipe, world: World, batch: int, *, is_coded: bool) -> None:
        self.recipe, self.examples, self.size, self.is_coded = recipe, world.examples, batch, is_coded
        self.num_frames = sum(row.num_frames for row in world.streams.emotional)
        self.clips = [recipe.prepared(example) for example in world.examples] if is_coded else []

    def epoch(self, number: int) -> int:
        """All clips once, in a random order as Trainer has it; how many frames were trained."""
        order = np.random.default_rng(number).permutation(len(self.examples)).tolist()
        for start in range(0, len(order), self.size):
            chosen = order[start : start + self.size]
            if self.is_coded:
                batch = self.recipe.padded([self.clips[place] for place in chosen])
            else:
                batch = self.recipe.batch([self.examples[place] for place in chosen])
            self.recipe.step(batch, is_coded=self.is_coded)
        return self.num_frames


@torch.no_grad()
def check_same_loss(config: Config, base: Any, world: World, theirs: DocumentedRecipe, accelerator: Any) -> None:
    """All contestants must be at the same work: transformers' loss of some clips is ours, coded in the loop or not."""
    count = min(3, len(world.examples))
    nothing = {"emotion": False, "rehearsal": False}
    made = assemble(
        world.streams.emotional[:count], [], None, nothing, base.num_codebooks, 1.0, np.random.default_rng(0)
    ).to(accelerator.device)
    with accelerator.autocast():
        terms = batch_terms(base.network(made.batch), made, 1.0)
    # Its depth loss is a mean over codes, too, and the two are added up.
    ours = float(terms["emotion_ce_c0"].mean + terms["emotion_ce_depth"].mean)
    examples = world.examples[:count]
    told = {
        "documentation": float(theirs.loss(theirs.batch(examples), is_coded=False)),
        "prepared": float(theirs.loss(theirs.padded([theirs.prepared(one) for one in examples]), is_coded=True)),
    }
    print(f"loss: ours {ours:.5f}, {told}", file=sys.stderr, flush=True)
    # A Mimi in bfloat16, as the recipe has it then, codes much of the sound otherwise.
    tolerances = (
        dict.fromkeys(told, 0.0002) if config.base_precision == "fp32" else {"documentation": 0.3, "prepared": 2e-2}
    )
    for name, value in told.items():
        assert abs(value - ours) < tolerances[name], f"{name} doesn't do the same work: {value:.5f} and {ours:.5f}"


def _in_turn(
    work: dict[str, Callable[[int], int]], rounds: int, device: str
) -> dict[str, list[tuple[float, float, int]]]:
    """(clock, processor time, trained frames) of each contestant's epoch in each round."""
    times: dict[str, list[tuple[float, float, int]]] = {name: [] for name in work}
    for number in range(1, rounds + 1):
        names = list(work) if number % 2 else list(work)[::-1]
        for name in names:
            clock, processor = time.perf_counter(), time.process_time()
            frames = work[name](number)
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - clock, time.process_time() - processor, frames))
            print(f"{number} {name}: {times[name][-1][0]:.2f} s", file=sys.stderr, flush=True)
    return times


def _figures(
    times: dict[str, list[tuple[float, float, int]]],
    operations: dict[str, float],
    world: World,
    rate: float,
    device: str,
) -> dict[str, Any]:
    # Which clips a round rehearses is chance, and so is how long they are.
    frames = {name: median(count for _, _, count in mine) for name, mine in times.items()}
    by_clock = {name: [clock / count for clock, _, count in mine] for name, mine in times.items()}
    per_frame = by_clock
    if device == "cpu":
        per_frame = {name: [spent / count for _, spent, count in mine] for name, mine in times.items()}

    def ratio(values: dict[str, list[float]], these: str, those: str) -> float:
        return round(median(a / b for a, b in zip(values[these], values[those], strict=True)), 3)

    contestants = {}
    done = operations
    if "full_checkpointed" in operations:
        # What is computed twice is work, but not progress.
        operations = operations | {"full_checkpointed": operations["full"]}
    for name in times:
        low, high = np.percentile(per_frame[name], (25, 75)).tolist()
        contestants[name] = {
            "frames_per_round": frames[name],
            "ms_per_frame": round(1e3 * median(per_frame[name]), 3),
            "ms_per_frame_quartiles": [round(1e3 * low, 3), round(1e3 * high, 3)],
            "ms_per_clip": round(1e3 * median(per_frame[name]) * frames[name] / len(world.examples), 2),
            "per_frame_of_full": ratio(per_frame, name, "full"),
            "per_frame_of_plain": ratio(per_frame, name, "plain"),
            "by_clock_of_full": ratio(by_clock, name, "full"),
            "by_clock_of_plain": ratio(by_clock, name, "plain"),
            "mflop_per_frame": round(operations[name] / 1e6, 1),
            "share_of_matmul_rate": round(operations[name] / median(per_frame[name]) / rate, 3),
            "share_with_recomputation": round(done[name] / median(per_frame[name]) / rate, 3),
        }
    return {"matmul_gflop_per_s": round(rate / 1e9, 1), "contestants": contestants}


if __name__ == "__main__":
    main()
