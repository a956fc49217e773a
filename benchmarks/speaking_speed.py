"""How fast the miniature speaks: the engine against transformers' `generate`, six emotions against one, a cold start.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/speaking_speed.py
    python benchmarks/speaking_speed.py --threads 2
    OMP_NUM_THREADS=1 python benchmarks/speaking_speed.py --base random:csm-1b-short --frames 6 --rounds 2

Writes `benchmarks/results/speaking_speed.json`. With another base than the miniature only one row against transformers
is timed, and stands there under `bases`, beside what was there.

Contestants take turns, and each figure is the median over the rounds; ratios are medians of the rounds' own ratios.
Processor time counts, not the clock: one core does everything, and a busy machine delays all alike. Both sides say the
same prompts, each row one of its own, for equally many frames, codes only, from a loaded model. `--threads 2` gives
both sides two processors and counts the clock: for a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from facts import run_facts
from six_emotions import RANK, six_gates

from affetto.files import read_json, write_json
from affetto.model.base import Base, load_base
from affetto.speak.engine import Arithmetic, Engine
from affetto.speak.generation import generate, weights_of
from affetto.speak.requests import Request

RESULT = Path(__file__).parent / "results" / "speaking_speed.json"
TEXT = "the children carried seven green baskets from the river to the market before the rain began"
NUM_FRAMES = 30
NUM_MIXED = 18


def main() -> None:
    """Time everything, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--base", default="miniature", help="another one, random:csm-1b-short say")
    parser.add_argument("--frames", type=int, default=NUM_FRAMES, help="of each sentence, with --base")
    parser.add_argument("--threads", type=int, default=1, help="more than one: by the clock, and only batches")
    options = parser.parse_args()
    rounds = options.rounds
    torch.set_num_threads(options.threads)
    known = read_json(RESULT) if RESULT.is_file() else {}
    if options.base != "miniature":
        found = {"load_before": round(os.getloadavg()[0], 1), "num_frames": options.frames, "rounds": rounds}
        found |= _against_transformers(load_base(options.base), 1, rounds, options.frames)
        bases = known.get("bases", {}) | {options.base: run_facts() | found}
        write_json(RESULT, known | {"bases": bases})
        print(bases[options.base])
        return
    base = load_base("miniature")
    if options.threads > 1:
        found = run_facts() | {"threads": options.threads, "rounds": rounds, "clock": "by the clock"}
        found |= {f"batch_{rows}": _against_transformers(base, rows, rounds) for rows in (16, 96)}
        write_json(RESULT, known | {"shared": found})
        print(found)
        return
    figures: dict[str, Any] = {"num_frames": NUM_FRAMES, "rounds": rounds}
    for num_rows in (1, 16):
        figures[f"batch_{num_rows}"] = _against_transformers(base, num_rows, rounds)
    alone, many = figures["batch_1"], figures["batch_16"]
    figures["engine_16_per_frame_of_transformers_1"] = round(
        many["engine_frames_per_s"] / alone["transformers_frames_per_s"], 2
    )
    figures["emotions"] = _emotions(base, rounds)
    figures["cold_start"] = _cold_start(max(2, rounds // 3))
    kept = {name: known[name] for name in ("bases", "shared") if name in known}
    write_json(RESULT, run_facts() | {"clock": "processor time of one thread"} | figures | kept)
    print(RESULT.read_text(encoding="utf-8"))


def _against_transformers(
    base: Base, num_rows: int, rounds: int, num_frames: int = NUM_FRAMES
) -> dict[str, float]:  # fmt: skip
    requests = _requests(base, num_rows, num_frames)
    ids = torch.tensor([request.text_ids for request in requests])

    def transformers() -> int:
        with torch.inference_mode():
            said = base.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, depth_decoder_do_sample=True,
                max_new_tokens=num_frames, min_new_tokens=num_frames,
            )  # fmt: skip
        return int(said.shape[0] * said.shape[1])

    rates = _rates(
        {
            "transformers": transformers,
            "engine": lambda: sum(len(one.codes_TK) for one in generate(base, requests)),
            "engine_in_numpy": lambda: _by_one(base, requests, "numpy"),
            "engine_in_torch": lambda: _by_one(base, requests, "torch"),
        },
        rounds,
    )
    found: dict[str, float] = {f"{name}_frames_per_s": round(median(values), 1) for name, values in rates.items()}
    for name in ("engine", "engine_in_numpy", "engine_in_torch"):
        found[f"{name}_times_transformers"] = _ratio(rates[name], rates["transformers"])
    found["engine_real_time_factor"] = round(num_rows * base.frame_rate / found["engine_frames_per_s"], 4)
    return found


def _by_one(base: Base, requests: list[Request], arithmetic: Arithmetic) -> int:
    engine = Engine(weights_of(base.network), arithmetic)
    engine.join(requests)
    num_frames = 0
    while engine.num_speaking:
        num_frames += sum(heard.codes_K is not None for heard in engine.step())
    return num_frames


def _emotions(base: Base, rounds: int) -> dict[str, float]:
    """All six in one batch, against one emotion and one after another."""
    gates = six_gates(base)
    plain = _requests(base, NUM_MIXED)
    one = [replace(request, gate=gates[0]) for request in plain]
    # Two strengths of one emotion can't be merged: what rows of one emotion cost on the road that mixed ones take.
    faint = tuple(0.9 * value for value in gates[0])
    two_strengths = [replace(request, gate=(gates[0], faint)[index % 2]) for index, request in enumerate(plain)]
    mixed = [replace(request, gate=gates[index % len(gates)]) for index, request in enumerate(plain)]

    def said(requests: list[Request]) -> Callable[[], int]:
        return lambda: sum(len(spoken.codes_TK) for spoken in generate(base, requests))

    by_emotion = [[request for request in mixed if request.gate == gate] for gate in gates]
    work = {"base": said(plain), "one": said(one), "one_at_two_strengths": said(two_strengths)}
    work["six_mixed"] = said(mixed)
    work["six_one_after_another"] = lambda: sum(said(requests)() for requests in by_emotion)
    rates = _rates(work, rounds)
    found: dict[str, float] = {"num_rows": NUM_MIXED, "rank": RANK}
    found |= {f"{name}_frames_per_s": round(median(values), 1) for name, values in rates.items()}
    found["six_mixed_cost_of_one"] = _ratio(rates["one"], rates["six_mixed"])
    found["six_mixed_cost_of_one_at_two_strengths"] = _ratio(rates["one_at_two_strengths"], rates["six_mixed"])
    found["one_after_another_cost_of_one"] = _ratio(rates["one"], rates["six_one_after_another"])
    return found


def _requests(base: Base, num_rows: int, num_frames: int = NUM_FRAMES) -> list[Request]:
    """Of unlike sentences, equally long: the same words in another order each."""
    first, *words = TEXT.split()
    requests = []
    for seed in range(num_rows):
        place, speaker = seed % len(words), seed // len(words)
        text = " ".join([first, *words[place:], *words[:place]])
        requests.append(Request(base.prompt_ids(text, speaker), num_frames, seed=seed))
    assert len({len(request.text_ids) for request in requests}) == 1
    return requests


def _rates(work: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Frames per second of each contestant in each round, after one round that doesn't count."""
    rates: dict[str, list[float]] = {name: [] for name in work}
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    print(", ".join(work), file=sys.stderr)
    for number in range(rounds + 1):
        for name, task in work.items():
            start = now()
            num_frames = task()
            if number:
                rates[name].append(num_frames / (now() - start))
                print(f"{number} {name}: {rates[name][-1]:.1f} frames/s", file=sys.stderr, flush=True)
    return rates


def _ratio(these: list[float], those: list[float]) -> float:
    return round(median(a / b for a, b in zip(these, those, strict=True)), 2)


def _cold_start(rounds: int) -> dict[str, float]:
    """Fresh processes: seconds of processor time, and of the clock where nothing else runs."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "speech.wav")
        whole = (
            "from pathlib import Path\nfrom affetto.speak.voice import Voice\n"
            "from affetto.audio.sound import write_sound\n"
            f"write_sound(Path({out!r}), *Voice.load().speak('I found the silver key'))"
        )
        commands = {
            "help": ["-m", "affetto", "--help"],
            "speak": ["-m", "affetto", "speak", "I found the silver key", "--out", out],
            "speak_through_transformers": ["-c", whole],
            "import_torch_alone": ["-c", "import torch"],
        }
        took: dict[str, list[float]] = {name: [] for name in commands}
        clock: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                before, start = _children_s(), time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, capture_output=True)
                print(f"{number} {name}", file=sys.stderr, flush=True)
                if number:
                    took[name].append(_children_s() - before)
                    clock[name].append(time.perf_counter() - start)
    found = {f"{name}_processor_s": round(median(values), 2) for name, values in took.items()}
    return found | {f"{name}_best_clock_s": round(min(values), 2) for name, values in clock.items()}


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
