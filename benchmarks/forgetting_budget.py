"""Whether the forgetting budget is kept where it counts: on test clips that neither training nor the search saw.

    OMP_NUM_THREADS=1 python benchmarks/forgetting_budget.py --work budget_runs

Trains happy on the miniature, three seeds under each of three budgets, and writes
`benchmarks/results/forgetting_budget.json` after every run. Runs that are in it already are not run again, and one that
was stopped goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from facts import commit, run_facts

from affetto.adapters.bank import AdapterBank
from affetto.adapters.peft_files import insert_adapter, read_adapter
from affetto.audio.stratified import spread
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.files import read_json, write_json
from affetto.model.base import load_base
from affetto.pipeline import prepare_clips
from affetto.training.loop import train
from affetto.training.streams import gated_rows
from affetto.training.validation import Validation

RESULT = Path(__file__).parent / "results" / "forgetting_budget.json"
EMOTION = "happy"
BUDGETS = (0.003, 0.01, 0.03)
SEEDS = (0, 1, 2)


def main() -> None:
    """Train and measure what the results lack, budget by budget in turn, so that a part of them tells something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("budget_runs"), help="folder for the adapters")
    work = parser.parse_args().work
    document = read_json(RESULT) if RESULT.is_file() else run_facts() | {"runs": []}
    for seed in SEEDS:
        for budget in BUDGETS:
            if any((run["seed"], run["budget"]) == (seed, budget) for run in document["runs"]):
                continue
            document["runs"].append(_run(work / f"{budget:g}-{seed}", budget, seed))
            write_json(RESULT, document)
    for run in document["runs"]:
        print({key: run[key] for key in ("budget", "seed", "test_kl", "test_emotion_nll", "intensity", "met")})


def _run(folder: Path, budget: float, seed: int) -> dict[str, Any]:
    """Train one adapter and measure it at its recommended intensity."""
    config = Config(emotions=(EMOTION,), output_dir=folder, forgetting_budget=budget, seed=seed, trackers=())
    prepared = prepare_clips(config, [EMOTION])
    started = time.process_time()
    best = train(config, EMOTION, prepared, resume=True) / "best"
    spent_s = time.process_time() - started
    facts = read_json(best / "affetto.json")
    as_trained = next(point for point in facts["frontier"] if point["intensity"] == 1.0)
    test = _test_clips(config, prepared, best)(facts["recommended_intensity"])
    return {
        "budget": budget, "seed": seed, "test_kl": test["general_kl"], "test_emotion_nll": test["emotion_nll"],
        "intensity": facts["recommended_intensity"], "validation_kl": facts["forgetting_budget"]["kl"],
        "validation_kl_as_trained": as_trained["kl"], "multiplier": facts["forgetting_budget"]["multiplier"],
        "met": facts["forgetting_budget"]["met"], "best_step": facts["validation"]["step"],
        "processor_s": round(spent_s, 1), "commit": commit(),
    }  # fmt: skip


def _test_clips(config: Config, prepared: Prepared, best: Path) -> Validation:
    """The test splits as `Validation` measures: emotional clips with their cue, general ones plain."""
    base = load_base(config.base)
    general = spread(prepared.select(None, "test"), prepared.num_frames(), config.evaluation_clips, "benchmark")
    rows = [
        gated_rows(base, clips, prepared, **how)
        for clips, how in (
            (prepared.select(EMOTION, "test"), {"template": config.prompt_template}),
            (general, {}),
        )
    ]
    bank = AdapterBank(base.model, base.network.gates, config.target_modules)
    measured = Validation(base, *rows)
    insert_adapter(bank, EMOTION, read_adapter(best), base.hash)
    return measured


if __name__ == "__main__":
    main()
