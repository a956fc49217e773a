"""The time and the disk that `affetto plan` tells, beside what a small run of the miniature takes.

    OMP_NUM_THREADS=1 python benchmarks/plan_time.py

The base is the miniature, the codes are random (which changes no product), and everything of the default configuration
is on. Both sides are processor time of one thread, so other processes on the machine don't count. Written to
`benchmarks/results/plan_time.json`: in all, and stage by stage as far as the run tells stages apart. Disk is what the
run's files take, their headers and facts included.
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

from affetto.config import Config
from affetto.files import write_json

RESULT = Path(__file__).parent / "results" / "plan_time.json"
CLIP_S, TRAINED, HELD = 3.2, 48, 16
SETTINGS: dict[str, Any] = {
    "emotions": ("happy",), "num_epochs": 2, "fisher_clips": 24, "rehearsal_buffer_size": 48, "validation_clips": HELD,
    "trackers": (),
}  # fmt: skip


def main() -> None:
    """Run, plan, write, print."""
    take_no_options(__doc__)
    folder = Path(tempfile.mkdtemp())
    os.environ["AFFETTO_CACHE"] = str(folder / "cache")
    time.perf_counter = time.process_time
    told, told_disk = _told()
    taken, written = _taken(folder)
    found = {
        "settings": {**SETTINGS, "clips": TRAINED, "clip_s": CLIP_S},
        "told_s": {name: round(value, 2) for name, value in told.items()},
        "taken_s": {name: round(value, 2) for name, value in taken.items()},
        "disk_told_bytes": told_disk,
        "disk_written_bytes": written,
        "told_over_taken": round(told["all"] / taken["all"], 3),
        "facts": run_facts(),
    }
    write_json(RESULT, found)
    print(json.dumps({name: value for name, value in found.items() if name not in ("settings", "facts")}, indent=2))


def _told() -> tuple[dict[str, float], dict[str, int]]:
    from affetto.planning.plan import plan
    from affetto.planning.workload import Data

    made = plan(Config(**SETTINGS), Data(TRAINED, CLIP_S), device="cpu")
    hours = (4 * TRAINED + 2 * HELD) * CLIP_S / 3600  # as `_taken` makes them
    disk = {name: size for name, size in made.disk.items() if size and name != "codes_per_hour"}
    disk["codes"] = round(hours * made.disk["codes_per_hour"])
    return {stage.name: stage.time_s for stage in made.stages} | {"all": made.time_s}, disk


def _taken(folder: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of the run, and what it wrote; its own clock is the processor's, too."""
    from affetto.codes.cache import CodeCache
    from affetto.codes.prepare import Prepared
    from affetto.training import loop
    from affetto.types import Clip

    counts = {("happy", "train"): TRAINED, (None, "train"): 3 * TRAINED}
    counts |= {("happy", "validation"): HELD, (None, "validation"): HELD}
    clips, codes = [], {}
    for (emotion, split), count in counts.items():
        for n in range(count):
            name = f"{emotion}-{split}-{n}"
            text = f"sentence {n} of {split}, which is about as long as {emotion} ones"
            clips.append(Clip(name, folder / "none.wav", text, emotion, "a", "made-up", split))
            codes[name] = np.random.default_rng(n).integers(0, 256, (int(CLIP_S * 12.5), 8))
    cache = CodeCache(folder / "codes")
    cache.add(codes)
    prepared = Prepared(tuple(clips), (), (), {"a": 0}, {clip.id: clip.id for clip in clips}, cache)
    time.monotonic = time.process_time
    run = loop.train(Config(**SETTINGS, output_dir=folder), "happy", prepared)
    timings = json.loads((run / "best" / "affetto.json").read_text())["timings_s"]
    places = {
        "teacher": folder / "cache" / "teacher", "fisher": folder / "cache" / "fisher", "best": run / "best",
        "last": run / "last", "codes": folder / "codes",
    }  # fmt: skip
    written = {
        name: sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) for name, place in places.items()
    }
    seconds = {
        **{name: float(value) for name, value in timings.items() if name != "total"}, "all": float(timings["total"]),
    }  # fmt: skip
    return seconds, written


if __name__ == "__main__":
    main()
