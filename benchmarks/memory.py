"""Memory that a run really takes, beside what `affetto plan` says.

    OMP_NUM_THREADS=1 python benchmarks/memory.py miniature csm-1b-small          # CPU: resident memory
    python benchmarks/memory.py csm-1b-guide csm-1b-full-8-bit                     # GPU: what torch allocates
    python benchmarks/memory.py csm-1b-speaking moshi-speaking                    # six emotions' adapters loaded
    python benchmarks/memory.py --plan-again csm-1b-speaking                      # what is planned for it alone

Every case runs in a process of its own: the base is loaded (`random:csm-1b` has CSM-1B's shape and random weights),
then come the Fisher pass, the teacher's answers, two training steps with everything on and a look at held-out clips,
all by the library's own functions on random codes. The peak after each stage is written to
`benchmarks/results/memory.json` beside the plan of the same configuration; cases that aren't run stay as they were.

A GPU is asked for what torch allocates. On a CPU it is the process's resident memory, and glibc's heap keeps a part of
what is freed, more or less as it happens to be cut up. So the measurement is made with every tensor of 64 KiB or more
mapped by itself and given back when it is freed (`MALLOC_MMAP_THRESHOLD_`), which is slower; what the same run takes
with the heap as it is stands beside it, except at CSM-1B's size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facts import run_facts

from affetto.config import Config
from affetto.files import read_json, write_json

RESULT = Path(__file__).parent / "results" / "memory.json"
_LARGE = {"base": "random:csm-1b", "base_precision": "bf16", "ewc_curvature": "rank1", "depth_frames_share": 0.0625}
_CHECKPOINTED = {"batch_size": 8, "activation_checkpointing": True}
_MOSHI = {
    "base_precision": "bf16", "precision": "bf16", "activation_checkpointing": True, "ewc_curvature": "rank1",
    "batch_size": 4, "prompt_template": "{text}", "first_codebook_weight": 0.9346,
}  # fmt: skip
"""configs/moshi.yaml."""
_DIA = {
    "base_precision": "bf16", "activation_checkpointing": True, "ewc_curvature": "rank1", "batch_size": 4,
    "teacher_frames_share": 0.25, "prompt_template": "(with emotion) {text}",
}  # fmt: skip
"""configs/dia.yaml."""
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "miniature": ("cpu", {}, 3.2),
    "miniature-large-batch": ("cpu", {"batch_size": 48}, 6.0),
    "miniature-checkpointed": ("cpu", {"batch_size": 24, "activation_checkpointing": True}, 8.0),
    "miniature-wide-adapter": ("cpu", {"batch_size": 8, "adapter_r": 64, "ewc_curvature": "rank1"}, 5.0),
    "csm-1b-small": ("cpu", _LARGE | _CHECKPOINTED | {"batch_size": 2}, 1.0),
    "csm-1b": ("cpu", _LARGE | _CHECKPOINTED, 10.0),
    "csm-1b-full-8-bit-small": (
        "cpu", _LARGE | _CHECKPOINTED | {"batch_size": 2, "use_adapters": False, "optimizer_bits": 8}, 1.0
    ),
    "csm-1b-full-8-bit-on-cpu": (
        "cpu", _LARGE | _CHECKPOINTED | {"use_adapters": False, "optimizer_bits": 8}, 10.0
    ),
    "csm-1b-guide": ("cuda", _LARGE | _CHECKPOINTED, 10.0),
    "csm-1b-four-bit": ("cuda", _LARGE | _CHECKPOINTED | {"base_precision": "nf4"}, 10.0),
    "csm-1b-full": ("cuda", _LARGE | _CHECKPOINTED | {"use_adapters": False}, 10.0),
    "csm-1b-full-8-bit": ("cuda", _LARGE | _CHECKPOINTED | {"use_adapters": False, "optimizer_bits": 8}, 10.0),
    "moshi": ("cuda", _MOSHI | {"base": "random:moshi"}, 5.0),
    "moshi-tiny": ("cpu", _MOSHI | {"base": "random:moshi-tiny", "precision": "fp32", "base_precision": "fp32"}, 5.0),
    "dia": ("cuda", _DIA | {"base": "random:dia"}, 5.0),
    "dia-tiny": ("cpu", _DIA | {"base": "random:dia-tiny", "base_precision": "fp32"}, 2.0),
}  # fmt: skip
"""Device, what differs from the default configuration, seconds of a clip."""
SPEAKING = {
    "csm-1b-speaking": ("cuda", "random:csm-1b"), "csm-tiny-speaking": ("cpu", "random:csm-tiny"),
    "moshi-speaking": ("cuda", "random:moshi"), "moshi-tiny-speaking": ("cpu", "random:moshi-tiny"),
}  # fmt: skip
"""Device and base of cases that speak with an adapter for every emotion; CSM's are planned."""
CLIPS = 200


def main() -> None:
    """Run the cases that are named, write and print."""
    if sys.argv[1:2] == ["--case"]:
        name = sys.argv[2]
        print(json.dumps(_spoken(*SPEAKING[name]) if name in SPEAKING else _measured(name)))
        return
    if sys.argv[1:2] == ["--plan-again"]:
        _plan_again(sys.argv[2:])
        return
    if "--help" in sys.argv:
        print(__doc__, f"Cases: {', '.join(CASES | SPEAKING)}", sep="\n")
        return
    names = sys.argv[1:] or ["miniature"]
    if unknown := [name for name in names if name not in CASES | SPEAKING]:
        sys.exit(f"there is no case {unknown[0]!r}; there are {', '.join(CASES | SPEAKING)}")
    if not torch.cuda.is_available() and (absent := [name for name in names if _device(name) == "cuda"]):
        sys.exit(f"{', '.join(absent)}: for a GPU, and torch finds none here")
    known, failed = read_json(RESULT)["cases"] if RESULT.is_file() else {}, []
    for name in names:
        try:
            found = _compared(name) if name in CASES else _speaking(name)
            known[name] = found | {"facts": run_facts() | _gpu(found["device"])}
        except ChildProcessError as error:
            # What went wrong stands above; the other cases are worth having.
            failed.append(str(error))
        write_json(RESULT, {"cases": known})
    print(table(known))
    sys.exit("; ".join(failed) or None)


def _device(name: str) -> str:
    return (CASES.get(name) or SPEAKING[name])[0]


def table(cases: dict[str, Any]) -> str:
    """Plan and measurement of every case and stage, in Markdown."""
    lines = ["| case | up to and with | plan, MiB | measured, MiB | plan / measured | with heap |", "|---" * 6 + "|"]
    for name, case in cases.items():
        for stage in case["stages"]:
            told, found = stage["planned_mib"], stage["measured_mib"]
            if told is None:
                lines.append(f"| {name} | {stage['stage']} | | {found:.0f} | | |")
                continue
            heap = f"{stage['with_heap_mib']:.0f}" if "with_heap_mib" in stage else ""
            lines.append(f"| {name} | {stage['stage']} | {told:.0f} | {found:.0f} | {told / found:.2f} | {heap} |")
    return "\n".join(lines)


def _compared(name: str) -> dict[str, Any]:
    device, changes, clip_s = CASES[name]
    planned = _planned(name)
    found = {"measured": _in_a_process(name, {"MALLOC_MMAP_THRESHOLD_": "65536"} if device == "cpu" else {})}
    if device == "cpu" and "base" not in changes:
        found["with_heap"] = _in_a_process(name, {})
    stages, most = [], dict.fromkeys(("planned", *found), 0.0)
    for stage in found["measured"]:
        # The most so far, on both sides: a process's resident peak never falls.
        for key, peaks in {"planned": planned, **found}.items():
            most[key] = max(most[key], peaks.get(stage, 0.0))
        if stage in planned:
            stages.append({"stage": stage, **{f"{key}_mib": round(value, 1) for key, value in most.items()}})
    return {"device": device, "configuration": changes, "clip_s": clip_s, "stages": stages}


def _speaking(name: str) -> dict[str, Any]:
    device, base = SPEAKING[name]
    found = _in_a_process(name, {})
    frame_ms = found.pop("frame_ms")
    planned = _planned_speaking(name)
    stages = [
        {"stage": stage, "planned_mib": planned.get(stage), "measured_mib": round(peak, 1)}
        for stage, peak in found.items()
    ]
    return {"device": device, "configuration": {"base": base}, "frame_ms": round(frame_ms, 1), "stages": stages}


def _planned_speaking(name: str) -> dict[str, float]:
    """By the stages that the plan knows; a sentence of the benchmark takes some 2.5 s."""
    from affetto.planning.plan import plan
    from affetto.planning.workload import Data

    device, base = SPEAKING[name]
    planned: dict[str, int] = {}
    for stage, takes in (("six_sentences", 1), ("in_takes", Config().sampling_takes)):
        config = Config(base=base, ewc_lambda=0, sampling_takes=takes)
        speaking = plan(config, Data(CLIPS, 2.5), device=device, tflops=1.0).speaking
        # On a CPU the case speaks in bfloat16, which nobody else does there.
        if speaking is None or device == "cpu":
            return {}
        loaded = speaking.parts["runtime"] + speaking.parts["weights"]
        # The case says codes, without the codec.
        codes = speaking.peak_bytes - speaking.parts["codec"]
        planned |= {"loading": loaded, "adapters": loaded + speaking.parts["adapters"], stage: codes}
    return {stage: round(num_bytes / 2**20, 1) for stage, num_bytes in planned.items()}


def _plan_again(names: list[str]) -> None:
    """Put today's plan beside what was measured for speaking cases."""
    known = read_json(RESULT)["cases"]
    for name in names:
        planned = _planned_speaking(name)
        for stage in known[name]["stages"]:
            stage["planned_mib"] = planned.get(stage["stage"])
        known[name]["planned"] = run_facts()
    write_json(RESULT, {"cases": known})
    print(table({name: known[name] for name in names}))


def _gpu(device: str) -> dict[str, Any]:
    return {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}


def _in_a_process(name: str, environment: dict[str, str]) -> dict[str, float]:
    """Peak after each stage of a case in a process of its own."""
    child = [sys.executable, __file__, "--case", name]
    run = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | environment)
    if run.returncode:
        raise ChildProcessError(f"{name} ended with status {run.returncode}")
    peaks: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return peaks


def _planned(name: str) -> dict[str, float]:
    from affetto.planning.plan import plan
    from affetto.planning.workload import Data

    device, changes, clip_s = CASES[name]
    made = plan(Config(**changes), Data(CLIPS, clip_s), device=device, tflops=1.0)
    return {stage.name: stage.peak_bytes / 2**20 for stage in made.stages}


def _measured(name: str) -> dict[str, float]:
    """Peak after each stage in MiB, in this process."""
    from affetto.adapters.bank import AdapterBank
    from affetto.model.base import load_base
    from affetto.model.rows_at_once import rows_at_once
    from affetto.planning.workload import Data, workload
    from affetto.preserve.curvature import CURVATURES
    from affetto.preserve.ewc import ewc_penalty
    from affetto.preserve.fisher import estimate_fisher
    from affetto.preserve.teacher import teacher_cache
    from affetto.training import loop
    from affetto.training.batches import assemble
    from affetto.training.optimizer import adamw
    from affetto.training.runtime import accelerated
    from affetto.training.step import LossWeights, accumulate_gradients
    from affetto.training.validation import Validation

    device, changes, clip_s = CASES[name]
    config = Config(**changes, emotions=("happy",), trackers=(), output_dir=Path(tempfile.mkdtemp()))
    peaks: dict[str, float] = {}
    with accelerated(config, "happy") as accelerator:
        assert accelerator.device.type == device, f"{name} is for {device}, and this is {accelerator.device.type}"
        base = load_base(config.base, device=accelerator.device, precision=config.base_precision)
        work = workload(config, Data(CLIPS, clip_s), base.frame_rate)
        if config.activation_checkpointing:
            base.network.enable_checkpointing()
        bank = AdapterBank(base.model, base.network.gates, config.target_modules, config.adapted_parts)
        if config.use_adapters:
            bank.add("happy", config.adapter_r, config.lora_alpha, 0)
        else:
            bank.add_full("happy")
        _note(peaks, "loading")
        rows = _rows(base, work)
        # One pass of each kind, as large as the library makes it: more of them take no more memory.
        looks = rows_at_once(base.network, rows, 16)
        modules = {site: base.model.get_submodule(site) for site in bank.sites}
        seen = rows[: rows_at_once(base.network, rows, 8, with_gradient=True)]
        curvature = estimate_fisher(base.network, modules, seen, CURVATURES[config.ewc_curvature]())
        _note(peaks, "fisher")
        general = rows[: max(1, round(work.rows * config.replay_ratio))]
        folder = Path(tempfile.mkdtemp())
        asked = rows[: max(looks, len(general))]
        teacher = teacher_cache(folder, base.network, base.answers_hash, asked, depth_share=config.teacher_share)
        validation = Validation(base, rows[:looks], rows[:looks], folder)
        _note(peaks, "teacher")
        optimizer = adamw(bank.parameters("happy").values(), 1e-4, bits=config.optimizer_bits)
        weights = LossWeights(config.replay_ratio, 1.0, 1.0, 0.5, 1.0, "rehearsal")
        for step in range(2):
            batch = assemble(
                rows[len(general) : work.rows], general, teacher, weights.taught, base.num_codebooks,
                config.depth_frames_share, np.random.default_rng(step),
            )  # fmt: skip
            with loop.train_mode(base.network, config.activation_checkpointing):
                accumulate_gradients(
                    base.network, [batch], weights, lambda: ewc_penalty(curvature, bank.factors("happy")), accelerator
                )
            optimizer.step()
            optimizer.zero_grad()
        _note(peaks, "training")
        validation()
        _note(peaks, "validation")
    return peaks


def _spoken(device: str, base: str) -> dict[str, float]:
    """Peak in MiB after loading, after six adapters have come, after a sentence with each, and after as many takes of
    it as are the default; ms a frame of one take took."""
    from affetto.adapters.bank import AdapterBank, all_targets
    from affetto.speak.voice import Voice
    from affetto.types import EMOTIONS

    peaks: dict[str, float] = {}
    voice = Voice.load(base, device=device, dtype=torch.bfloat16, only_speaks=True)
    _note(peaks, "loading")
    # As `affetto speak` has them.
    bank = voice.bank = AdapterBank(
        voice.base.model, voice.base.network.gates, all_targets(voice.base.model), on_host=True
    )
    config = Config()
    for number, emotion in enumerate(EMOTIONS):
        bank.add(emotion, config.adapter_r, config.lora_alpha, number)
        for _, _, b_OR, _ in bank.factors(emotion):
            assert b_OR is not None
            b_OR.data.normal_(std=0.01)
    _note(peaks, "adapters")
    voice.generate([voice.request("Once", EMOTIONS[0])])
    _note(peaks, "first_word")
    start, frames = time.perf_counter(), 0
    for number, emotion in enumerate(EMOTIONS):
        said = voice.generate([voice.request("I found the silver key by the river", emotion, seed=number)])
        frames += len(said[0].codes_TK)
    spent_s = time.perf_counter() - start
    _note(peaks, "six_sentences")
    # As takes are said: rows of one batch. Comparing them is the host's.
    for number, emotion in enumerate(EMOTIONS):
        one = voice.request("I found the silver key by the river", emotion, seed=number)
        voice.generate([replace(one, seed=seed) for seed in range(config.sampling_takes)])
    _note(peaks, "in_takes")
    return peaks | {"frame_ms": 1e3 * spent_s / frames}


def _note(peaks: dict[str, float], stage: str) -> None:
    """The most so far, after `stage`."""
    from affetto.training.runtime import peak_memory_mib

    peaks[stage] = peak_memory_mib()
    print(f"{stage}: {peaks[stage]:.0f} MiB", file=sys.stderr, flush=True)


def _rows(base: Any, work: Any) -> list[Any]:
    """Rows of random codes, of the workload's size."""
    from affetto.model.batch import Row, Streams, Turn

    rng = np.random.default_rng(0)
    rows = []
    for number in range(max(work.rows, 16)):
        if base.has_text_stream:
            # Of its frames the last one is only heard.
            text_T = rng.integers(20, 60, work.frames + 1)
            user_TK, codes_TK = rng.integers(0, base.network.codebook_size, (2, work.frames + 1, base.num_codebooks))
            turn = Turn((), codes_TK, Streams(text_T, np.ones(work.frames + 1), user_TK))
        else:
            ids = tuple(rng.integers(5, 60, work.text_tokens).tolist())
            codes_TK = rng.integers(0, base.network.codebook_size, (work.frames - 1, base.num_codebooks))
            turn = Turn(ids, codes_TK, end_code=base.network.end_code)
        rows.append(Row(f"clip-{number}", (turn,), (1.0,)))
    return rows


if __name__ == "__main__":
    main()
