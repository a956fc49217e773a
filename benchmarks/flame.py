"""Where the time goes: one picture per stage of the main road, by processor time.

    OMP_NUM_THREADS=1 python benchmarks/flame.py [preparing] [training] [speaking] [judging]

Writes `docs/pictures/flame_STAGE.svg` and `benchmarks/results/flame.json`, which keeps the stages that aren't run as
they were. All on the miniature, one thread; what is loaded once stays outside.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from facts import run_facts
from profiling.stacks import Box, icicle, sampled

from affetto.files import cache_root, read_json, write_json, write_text

RESULT = Path(__file__).parent / "results" / "flame.json"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
NUM_SOUNDS, NUM_STEPS, NUM_SENTENCES, NUM_JUDGED = 40, 6, 8, 10
TEXT = "the children carried seven green baskets from the river to the market before the rain began"


def preparing(folder: Path) -> tuple[Callable[[], object], str]:
    """Clips that nobody has seen before, from a manifest into an empty cache."""
    from affetto.audio.manifest import write_manifest
    from affetto.codes import prepare as stage
    from affetto.codes import workers
    from affetto.model.base import find_base
    from affetto.types import EMOTIONS, Clip

    base = find_base("miniature")
    made = sorted((cache_root() / "miniature").glob("clips-*/*/*.wav"))[:NUM_SOUNDS]
    assert made, "the miniature's clips aren't rendered: run `affetto prepare` once"
    clips = []
    for number, path in enumerate(made):
        shutil.copyfile(path, folder / f"{number}.wav")
        clips.append(Clip(str(number), folder / f"{number}.wav", f"some words {number}", None, "0", "copies"))
    write_manifest(folder / "manifest.jsonl", clips)
    os.environ["AFFETTO_CACHE"] = str(folder / "cache")
    # Coding in worker processes would be out of sight.
    workers._IN_PROCESS = NUM_SOUNDS + 1
    return (
        lambda: stage.prepare([folder / "manifest.jsonl"], base, emotions=EMOTIONS),
        f"Preparing {NUM_SOUNDS} clips: check, read, code, write",
    )


def training(folder: Path) -> tuple[Callable[[], object], str]:
    """Steps of the default recipe: 12 rows, half of them rehearsed, K-FAC, cached teacher."""
    from opponents.clips import miniature_world
    from training_speed import Ours

    from affetto.adapters.bank import AdapterBank
    from affetto.config import Config
    from affetto.model.base import load_base
    from affetto.training.runtime import accelerated

    config = Config(emotions=("happy",), output_dir=folder, trackers=())
    with accelerated(config, "happy") as accelerator:
        base = load_base("miniature")
        world = miniature_world(config, base, NUM_STEPS * 6)
        bank = AdapterBank(base.model, base.network.gates, config.target_modules)
        bank.add("happy", config.adapter_r, config.lora_alpha, 0)
        ours = Ours(config, base, bank, world, accelerator)
        ours.epoch(0)
    return lambda: ours.epoch(1), "Training steps of the default recipe on the miniature"


def speaking(folder: Path) -> tuple[Callable[[], object], str]:  # noqa: ARG001
    """Sentences one after another, from text to sound."""
    from affetto.speak.voice import Voice

    voice = Voice.load("miniature", only_speaks=True)
    voice.speak("hello")

    def speak() -> None:
        for seed in range(NUM_SENTENCES):
            voice.speak(TEXT, seed=seed)

    return speak, f"Speaking {NUM_SENTENCES} sentences with the miniature, one at a time"


def judging(folder: Path) -> tuple[Callable[[], object], str]:
    """All default judges and metrics over clips of five seconds."""
    import metrics_speed

    from affetto.evaluate.scoring import score_files
    from affetto.judges.choice import choose_judges

    metrics_speed.NUM_CLIPS = NUM_JUDGED
    items = metrics_speed._clips(folder)
    judges = choose_judges({}, "happy")
    score_files(items[:1], judges, "happy")
    return lambda: score_files(items[1:], judges, "happy"), f"Judging {NUM_JUDGED - 1} clips of five seconds"


STAGES: dict[str, Callable[[Path], tuple[Callable[[], object], str]]] = {
    "preparing": preparing, "training": training, "speaking": speaking, "judging": judging,
}  # fmt: skip


def main() -> None:
    """Sample the stages that are named (all of them if none is), draw and write."""
    if "--help" in sys.argv:
        print(__doc__, f"Stages: {', '.join(STAGES)}", sep="\n")
        return
    names = sys.argv[1:] or list(STAGES)
    if unknown := [name for name in names if name not in STAGES]:
        sys.exit(f"there is no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    torch.set_num_threads(1)
    cache = os.environ.get("AFFETTO_CACHE")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            work, title = STAGES[name](Path(folder))
            with sampled(name) as top:
                work()
        os.environ.pop("AFFETTO_CACHE", None)
        if cache is not None:
            os.environ["AFFETTO_CACHE"] = cache
        write_text(PICTURES / f"flame_{name}.svg", icicle(top, f"{title} ({top.spent_s:.1f} s of processor time)"))
        known = read_json(RESULT)["stages"] if RESULT.is_file() else {}
        known[name] = run_facts() | {"processor_s": round(top.spent_s, 2), "lines": _widest(top)}
        write_json(RESULT, {"stages": known})
        print(name, *(f"{line['share']:.1%} {line['line']}" for line in known[name]["lines"][:12]), sep="\n  ")


def _widest(top: Box) -> list[dict[str, Any]]:
    """The functions and their lines at which most of the time was spent."""
    spent: dict[str, float] = {}

    def visit(box: Box, owner: str) -> None:
        if not box.below:
            key = f"{owner}: {box.name}" if box.kind == "line" else box.name
            spent[key] = spent.get(key, 0.0) + box.spent_s
        for child in box.below.values():
            visit(child, owner if box.kind == "line" else box.name)

    visit(top, "")
    widest = sorted(spent.items(), key=lambda item: -item[1])[:25]
    return [{"line": name, "share": round(value / top.spent_s, 4)} for name, value in widest]


if __name__ == "__main__":
    main()
