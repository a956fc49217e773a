"""Whether a training step costs more, or takes more memory, in a larger corpus.

    OMP_NUM_THREADS=1 python benchmarks/corpus_size.py [--clips 200 20000] [--steps 200] [--rounds 2]

Writes `benchmarks/results/corpus_size.json`. Nothing is rendered: codes are random, texts are made up, half of the
clips are emotional and half general, and all general ones are rehearsed, so that the teacher is asked about as many.
Each size is a process of its own, which goes the trainer's own road up to its first step (rows, Fisher, teacher, plan)
and then through as many steps of the miniature. The sizes take turns; the second round finds the teacher's answers in
the cache.

Time is processor time: a step (forward, losses, backward, optimizer), and the making of its batch. Memory is the
resident one by what the kernel says it is: `anonymous` is the process's own, `of files` are pages of mapped files,
which the kernel takes back when it needs room. `growth` is from the 20th step on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from facts import run_facts

from affetto.files import write_json

RESULT = Path(__file__).parent / "results" / "corpus_size.json"
SECONDS = (0.8, 2.0)
"""Clips are between so long."""
HELD, WARM_UP = 16, 20
WORDS = ("red", "blue", "green", "small", "tall", "warm", "cold", "bright", "dark", "old", "new", "quick", "slow")


def main() -> None:
    """Run the sizes in turn, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, nargs="+", default=[200, 20_000])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options.clips[0], options.steps, options.child)))
        return
    found: dict[str, list[dict[str, Any]]] = {str(count): [] for count in options.clips}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for count in options.clips:
                found[str(count)].append(_in_a_process(count, options.steps, Path(folder) / str(count)))
                print(count, json.dumps(found[str(count)][-1]), flush=True)
    sizes = [str(count) for count in sorted(options.clips)]
    steps, batches = ({s: [one[key] for one in found[s]] for s in sizes} for key in ("step_ms", "batch_ms"))
    result = run_facts() | {
        "clip_s": SECONDS, "steps": options.steps, "rounds": found,
        "largest_over_smallest": {
            "step_ms": round(median(steps[sizes[-1]]) / median(steps[sizes[0]]), 3),
            "batch_ms": round(median(batches[sizes[-1]]) / median(batches[sizes[0]]), 3),
        },
    }  # fmt: skip
    write_json(RESULT, result)


def _in_a_process(count: int, steps: int, folder: Path) -> dict[str, Any]:
    child = [sys.executable, __file__, "--child", str(folder), "--clips", str(count), "--steps", str(steps)]
    run = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return told


class _Enough(Exception):
    """As many steps as were asked for."""


def measured(count: int, steps: int, folder: Path) -> dict[str, Any]:
    """What a run over `count` training clips takes, of which `steps` steps are made; all it writes is in `folder`."""
    os.environ["AFFETTO_CACHE"] = str(folder / "cache")
    from affetto.config import Config
    from affetto.training import loop

    prepared = made_up(count, folder)
    config = Config(
        emotions=("happy",), output_dir=folder, rehearsal_buffer_size=count, fisher_clips=HELD, validation_clips=HELD,
        num_epochs=1 + 24 * steps // count, trackers=(),
    )  # fmt: skip
    batch_ms: list[float] = []
    step_ms: list[float] = []
    memory: list[dict[str, float]] = []
    make, step = loop._micro_batches, loop._step

    def timed_make(*given: Any) -> Any:
        start = time.process_time()
        made = make(*given)
        batch_ms.append(1e3 * (time.process_time() - start))
        return made

    def timed_step(*given: Any) -> Any:
        if not step_ms:
            before_steps.append(time.process_time() - started)
        if len(step_ms) == steps:
            raise _Enough
        start = time.process_time()
        outcome = step(*given)
        step_ms.append(1e3 * (time.process_time() - start))
        memory.append(_memory_mib())
        return outcome

    before_steps: list[float] = []
    loop._micro_batches, loop._step = timed_make, timed_step
    started = time.process_time()
    with suppress(_Enough):
        loop.train(config, "happy", prepared)
    assert len(step_ms) == steps, f"the run had {len(step_ms)} steps"
    first, last = memory[min(WARM_UP, steps - 1)], memory[-1]
    return {
        "before_the_first_step_s": round(before_steps[0], 1),
        "step_ms": round(median(step_ms), 1),
        "batch_ms": round(median(batch_ms), 2),
        "peak_mib": round(_status_kib("VmHWM") / 1024),
        "last_step_mib": {key: round(value) for key, value in last.items()},
        "growth_mib": {key: round(last[key] - first[key], 1) for key in last},
    }


def made_up(count: int, folder: Path) -> Any:
    """`count` training clips without sound, half of them general, and some held out."""
    from affetto.codes.cache import CodeCache
    from affetto.codes.prepare import Prepared
    from affetto.types import Clip

    rng = np.random.default_rng(0)
    cache, clips = CodeCache(folder / "codes"), []
    for emotion, split, number in [
        (emotion, split, number)
        for emotion in ("happy", None)
        for split, many in (("train", count // 2), ("validation", HELD))
        for number in range(many)
    ]:
        name = f"{emotion or 'general'}-{split}-{number}"
        text = f"{' '.join(rng.choice(WORDS, 4))} {name}"
        clips.append(Clip(name, folder / "none.wav", text, emotion, "a", "made-up", split))
    lengths = (12.5 * rng.uniform(*SECONDS, len(clips))).astype(int)
    for start in range(0, len(clips), 256):
        part = zip(clips[start : start + 256], lengths[start : start + 256], strict=True)
        cache.add({clip.id: rng.integers(0, 256, (length, 8)) for clip, length in part})
    return Prepared(tuple(clips), (), (), {"a": 0}, {clip.id: clip.id for clip in clips}, cache)


def _memory_mib() -> dict[str, float]:
    anonymous, files = _status_kib("RssAnon"), _status_kib("RssFile")
    return {"anonymous": anonymous / 1024, "of files": files / 1024}


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


if __name__ == "__main__":
    main()
