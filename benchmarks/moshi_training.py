"""What a tiny Moshi learns and forgets, with everything that preserves and with nothing.

    OMP_NUM_THREADS=1 python benchmarks/moshi_training.py

Writes `benchmarks/results/moshi_training.json`. The base is `random:moshi-tiny`: Moshi's shape with eight codebooks and
random weights, so that what it forgets is noise that it said before. Emotional clips have two codes of their own in
every codebook, general ones two others, and the words differ. Both runs see the same emotional clips, as many steps and
the trainer's own road (`affetto.training.loop.train`); only what preserves differs. Nothing here tells of the real
weights.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from facts import run_facts, take_no_options

from affetto.files import write_json

RESULT = Path(__file__).parent / "results" / "moshi_training.json"
TRAINED, HELD = 24, 8
SETTINGS: dict[str, Any] = {
    "emotions": ("happy",), "base": "random:moshi-tiny", "adapter_r": 8, "fisher_clips": 16,
    "rehearsal_buffer_size": TRAINED, "num_epochs": 8, "batch_size": 8, "learning_rate": 3e-3,
    "first_codebook_weight": 0.9346, "prompt_template": "{text}", "validation_clips": HELD, "trackers": (),
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "everything": {"replay_ratio": 0.5},
    "nothing": {"replay_ratio": 0.0, "ewc_lambda": 0.0, "distillation_alpha": 0.0, "batch_size": 4},
}
"""Without rehearsed rows a batch is half as large, so that steps and emotional rows are the same."""


def main() -> None:
    """Train both, write, print."""
    take_no_options(__doc__)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "cache"
        os.environ["AFFETTO_CACHE"] = str(base)
        prepared = made_up(folder)
        for run, changes in RUNS.items():
            found[run] = _trained(prepared, folder / run, changes)
            print(run, json.dumps(found[run], indent=2), flush=True)
    settings = {**SETTINGS, "runs": RUNS, "clips": TRAINED, "held_out": HELD}
    write_json(RESULT, run_facts() | {"settings": settings, "runs": found})


def _trained(prepared: Any, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Held-out clips under the adapter off (intensity 0) and on, nats per code; training's terms, first and last."""
    from affetto.config import Config
    from affetto.training import loop, run
    from affetto.training.log import read_log

    looked: dict[str, dict[str, float | None]] = {}

    class Looked(run.Validation):
        """Looks before the first step, too."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            looked["before"] = self(0.0)

    kept = run.Validation
    run.Validation = Looked
    start = time.process_time()
    try:
        made = loop.train(Config(**(SETTINGS | changes), output_dir=folder), "happy", prepared)
    finally:
        run.Validation = kept
    log = read_log(made / "training_log.jsonl")
    looked["after"] = [row["terms"] for row in log if row["split"] == "validation"][-1]
    steps = [row["terms"] for row in log if row["split"] == "train"]
    names = ("emotion_ce_c0", "emotion_ce_depth", "emotion_ce_text")
    return {
        "steps": log[-1]["step"],
        "processor_s": round(time.process_time() - start, 1),
        "held_out": {
            when: {name: None if value is None else round(value, 4) for name, value in terms.items() if name != "value"}
            for when, terms in looked.items()
        },
        "training": {name: [round(steps[0][name], 3), round(steps[-1][name], 3)] for name in names},
    }


def made_up(folder: Path) -> Any:
    """Clips without sound: two codes for each codebook, which ones depends on the label."""
    from affetto.codes.cache import CodeCache
    from affetto.codes.prepare import Prepared
    from affetto.types import Clip

    rng, clips, codes = np.random.default_rng(0), [], {}
    for emotion, seed in (("happy", 1), (None, 2)):
        values_KX = np.random.default_rng(seed).integers(0, 64, (8, 2))
        for split, count in (("train", TRAINED), ("validation", HELD)):
            for number in range(count):
                name = f"{emotion or 'general'}-{split}-{number}"
                text = f"take {number} of {'joy' if emotion else 'news'} {split[0]}"
                clips.append(Clip(name, folder / "none.wav", text, emotion, "a", "made-up", split))
                choice_TK = rng.integers(0, 2, (int(rng.integers(40, 60)), 8))
                codes[name] = np.take_along_axis(values_KX.T, choice_TK, axis=0)
    cache = CodeCache(folder / "codes")
    cache.add(codes)
    return Prepared(tuple(clips), (), (), {"a": 0}, {clip.id: clip.id for clip in clips}, cache)


if __name__ == "__main__":
    main()
