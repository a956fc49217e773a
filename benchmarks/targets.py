"""Which layers should carry adapters, and at which rank: training alone, on the miniature's `happy`, one seed.

    OMP_NUM_THREADS=1 python benchmarks/targets.py

Writes `benchmarks/results/targets.json` after every run and prints its table in Markdown; called again it goes on where
it stopped. Trains {attention, mlp, both} in {both parts, backbone, depth} at the default rank, then other ranks on all
layers; everything else is the configuration's default. Held-out numbers are of test clips with the adapter at intensity
1, in nats per code; the last two columns are of validation clips, "KL at …" along the frontier of intensities, at the
lowest loss of the emotion that all reach that adapt the backbone.
Processor time counts, not the clock, so a busy machine does little harm.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from facts import commit, run_facts

from affetto.adapters.bank import AdapterBank, all_targets
from affetto.adapters.peft_files import insert_adapter, read_adapter
from affetto.adapters.targets import PARTS, PRESETS
from affetto.audio.stratified import spread
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.evaluate.retention import measure_retention
from affetto.files import cache_root, read_json, write_json
from affetto.model.base import load_base
from affetto.pipeline import prepare_clips
from affetto.progress import say
from affetto.training import loop
from affetto.training.log import read_log
from affetto.training.streams import gated_rows
from affetto.training.validation import Validation

RESULT = Path(__file__).parent / "results" / "targets.json"
EMOTION = "happy"
RANKS = (4, 64)
"""Beside the default one."""
GENERAL_CLIPS, EMOTIONAL_CLIPS = 120, 48


def settings() -> list[dict[str, Any]]:
    """What is trained, in the table's order."""
    rank = Config().adapter_r
    kinds = [
        {"target_modules": preset, "adapted_parts": part, "adapter_r": rank} for preset in PRESETS for part in PARTS
    ]
    return kinds + [{"target_modules": "both", "adapted_parts": "both", "adapter_r": other} for other in RANKS]


def main() -> None:
    """Train what isn't in the results yet, write it down, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=cache_root() / "benchmarks" / "targets", help="for the adapters")
    options = parser.parse_args()
    done = read_json(RESULT) if RESULT.is_file() else {"runs": []}
    prepared = prepare_clips(Config(emotions=(EMOTION,)), [EMOTION])
    if "base" not in done:
        done["base"] = _held_out(Config(emotions=(EMOTION,)), prepared, None)
    for setting in settings():
        if any(_is_same(run, setting) for run in done["runs"]):
            continue
        name = "-".join(map(str, setting.values()))
        say(name, style="bold")
        config = Config(emotions=(EMOTION,), output_dir=options.work / name, trackers=(), **setting)
        done["runs"].append({**setting, **_measure(config, prepared), "commit": commit()})
        write_json(RESULT, _facts() | done)
    print(table(done))


def table(done: dict[str, Any]) -> str:
    """The results in Markdown, one row per run."""
    reached = [_lowest(run["frontier"]) for run in done["runs"] if run["adapted_parts"] != "depth"]
    matched = math.ceil(100 * max(reached)) / 100
    lines = [
        "| layers | parts | rank | parameters | processor time | emotion | KL | ΔNLL | emotion + KL "
        f"| KL at {matched:.2f} |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| none: the base | | | 0 | | {done['base']['emotion_nll']:.3f} | 0 | 0 | | |",
    ]
    for run in done["runs"]:
        kl, delta = (
            f"{run[name]['value']:.4f} [{run[name]['low']:.4f}, {run[name]['high']:.4f}]"
            for name in ("kl", "delta_nll")
        )
        size = f"{run['parameters'] / 1000:.0f} k | {run['training_processor_s']:.0f} s"
        lines.append(
            f"| {run['target_modules']} | {run['adapted_parts']} | {run['adapter_r']} | {size} "
            f"| {run['emotion_nll']:.3f} | {kl} | {delta} | {run['validation']['value']:.3f} "
            f"| {_kl_at(matched, run['frontier'])} |"
        )
    return "\n".join(lines)


def _lowest(frontier: list[dict[str, float]]) -> float:
    return min(point["emotion_nll"] for point in frontier)


def _kl_at(matched: float, frontier: list[dict[str, float]]) -> str:
    """KL where the emotion's validation loss first passes `matched`, straight between measured intensities."""
    if frontier[0]["emotion_nll"] <= matched:
        return f"< {frontier[0]['kl']:.4f}"
    for weaker, stronger in pairwise(frontier):
        before, after = weaker["emotion_nll"], stronger["emotion_nll"]
        if before >= matched >= after:
            return f"{weaker['kl'] + (before - matched) / (before - after) * (stronger['kl'] - weaker['kl']):.4f}"
    return "not reached"


def _measure(config: Config, prepared: Prepared) -> dict[str, Any]:
    with _timed_steps() as spent_s:
        folder = loop.train(config, EMOTION, prepared)
    facts = read_json(folder / "best" / "affetto.json")
    adapter = read_adapter(folder / "best")
    best = [row for row in read_log(folder / "training_log.jsonl") if row["split"] == "validation"]
    return {
        "parameters": sum(a_RI.numel() + b_OR.numel() for a_RI, b_OR in adapter.tensors.values()),
        "training_processor_s": round(sum(spent_s), 1),
        "validation": next(row["terms"] for row in best if row["step"] == facts["validation"]["step"]),
        "best_step": facts["validation"]["step"],
        "recommended_intensity": facts["recommended_intensity"],
        "frontier": facts["frontier"],
        **_held_out(config, prepared, folder / "best"),
    }


@contextmanager
def _timed_steps() -> Iterator[list[float]]:
    """Processor seconds of the steps and their validations, without the Fisher and the frontier."""
    spent_s: list[float] = []
    run_steps = loop.run_steps

    def timed(*arguments: Any) -> Any:
        start = time.process_time()
        state = run_steps(*arguments)
        spent_s.append(time.process_time() - start)
        return state

    with mock.patch.object(loop, "run_steps", timed):
        yield spent_s


def _held_out(config: Config, prepared: Prepared, adapter: Path | None) -> dict[str, Any]:
    """Test clips: the emotion's loss, and KL and ΔNLL on general speech. None is the base, whose forgetting is 0."""
    base = load_base(config.base)
    bank = AdapterBank(base.model, base.network.gates, all_targets(base.model))

    def rows(emotion: str | None, most: int, **template: str) -> list[Any]:
        clips = spread(prepared.select(emotion, "test"), prepared.num_frames(), most, "targets")
        return gated_rows(base, clips, prepared, **template)

    emotional = rows(EMOTION, EMOTIONAL_CLIPS, template=config.prompt_template)
    if adapter is None:
        bank.add(EMOTION, 1, 1.0, 0)
        return {"emotion_nll": Validation(base, emotional, [])(0.0)["emotion_nll"]}
    insert_adapter(bank, EMOTION, read_adapter(adapter), base.hash)
    retention = measure_retention(base, rows(None, GENERAL_CLIPS), (1.0,)).document()
    return {
        "emotion_nll": Validation(base, emotional, [])(1.0)["emotion_nll"],
        "num_emotional_clips": len(emotional),
        "num_general_clips": retention["num_clips"],
        "kl": retention["kl"],
        "delta_nll": retention["delta_nll"],
        "per_codebook": retention["per_codebook"],
    }


def _is_same(run: dict[str, Any], setting: dict[str, Any]) -> bool:
    return all(run[key] == value for key, value in setting.items())


def _facts() -> dict[str, Any]:
    configuration = Config(emotions=(EMOTION,)).model_dump(mode="json", exclude={"output_dir"})
    return run_facts() | {"configuration": configuration}


if __name__ == "__main__":
    main()
