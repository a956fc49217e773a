"""How fast a GPU speaks at CSM-1B's size: the engine's graphs against the limit that reading the weights sets.

    python benchmarks/speaking_on_gpu.py
    python benchmarks/speaking_on_gpu.py --with-sound --rows 16 64 128 256

Random weights in bfloat16, which take as long as any. Everything is measured by the clock, the device waited for, and
medians of frames count. Writes `benchmarks/results/speaking_on_gpu.json`, by device, figure by figure, so that a run
which is cut short keeps what it has found. With `--with-sound` rows alone are timed, each with its sound by Mimi, and
the other figures stay those of an earlier run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from facts import run_facts
from six_emotions import six_gates

from affetto.codes.codec import load_codec
from affetto.files import read_json, write_json
from affetto.model.base import Base, load_base
from affetto.speak.engine import Arithmetic, Engine
from affetto.speak.generation import weights_of
from affetto.speak.requests import Request
from affetto.speak.streaming import sound_of

RESULT = Path(__file__).parent / "results" / "speaking_on_gpu.json"
TEXT = "the children carried seven green baskets from the river to the market"


def main() -> None:
    """Time everything, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="random:csm-1b")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--rows", type=int, nargs="*", default=[2, 16, 64, 128, 256])
    parser.add_argument("--with-sound", action="store_true", help="only rows whose sound is decoded, too")
    options = parser.parse_args()
    base = load_base(options.base, device="cuda", dtype=torch.bfloat16)
    found: dict[str, Any] = run_facts() | {
        "device": torch.cuda.get_device_name(), "base": options.base, "num_frames": options.frames,
        "prompt_positions": len(base.prompt_ids(TEXT, 0)),
    }  # fmt: skip

    def told(name: str, figures: Any) -> None:
        found[name] = figures
        print(name, figures, flush=True)
        known = read_json(RESULT)["devices"] if RESULT.is_file() else {}
        if options.with_sound:
            device = known.get(found["device"], {}) | {"rows_with_sound": found}
            write_json(RESULT, {"devices": known | {found["device"]: device}})
        else:
            kept = {key: value for key, value in known.get(found["device"], {}).items() if key == "rows_with_sound"}
            write_json(RESULT, {"devices": known | {found["device"]: found | kept}})

    if options.with_sound:
        told("rows", _rows_with_sound(base, options.rows, 24))
        return
    told("copy_tb_per_s", round(copy_rate() / 1e12, 3))
    read = bytes_per_frame(base)
    told("gb_read_per_frame", round(read / 1e9, 3))
    budget_ms = 1e3 / base.frame_rate
    told("least_real_time_factor", round(read / (found["copy_tb_per_s"] * 1e12) * base.frame_rate, 4))
    torch.cuda.reset_peak_memory_stats()
    for name, kind, count in (("torch", "torch", 6), ("graphs", None, options.frames)):
        _frame_ms(base, [_request(base, 3, 0)], 3, kind)
        spent = _frame_ms(base, [_request(base, count, 0)], count, kind)
        told(f"batch_1_{name}", {"ms_per_frame": round(spent, 3), "real_time_factor": round(spent / budget_ms, 4)})
    told("memory_gib_base", round(torch.cuda.max_memory_allocated() / 2**30, 2))
    told("transformers", _transformers(base, 6))
    told("first_sound", _first_sound(base))
    gates = six_gates(base)
    spent = _frame_ms(base, [replace(_request(base, options.frames, 0), gate=gates[0])], options.frames)
    told("batch_1_adapter", {"ms_per_frame": round(spent, 3), "real_time_factor": round(spent / budget_ms, 4)})
    told("emotions", _emotions(base, gates, 60, 24))
    told("memory_gib_six_emotions", round(torch.cuda.max_memory_allocated() / 2**30, 2))
    rows = {}
    for count in options.rows:
        spent = _frame_ms(base, [_request(base, 24, seed) for seed in range(count)], 24)
        rows[str(count)] = {
            "ms_per_frame": round(spent, 2), "frames_per_s": round(1e3 * count / spent),
            "streams_in_real_time": round(count * budget_ms / spent),
        }  # fmt: skip
        told("rows", rows)


def bytes_per_frame(base: Base) -> float:
    """Weights that one frame must read at least once each time it uses them."""
    weights = weights_of(base.network)
    arranged = weights.arranged([()])

    def size(layers: Any) -> float:
        return float(
            sum(site.w.nbytes for layer in layers for site in (layer.qkv, layer.out, layer.gate_up, layer.down))
        )

    steps = weights.num_codebooks - 1
    heads = weights.c0_head_DC.nbytes + sum(head.nbytes for head in weights.heads_DC)
    return size(arranged.backbone) + steps * (size(arranged.depth) + arranged.projector.w.nbytes) + heads


def copy_rate() -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    one = torch.randn(2**28, device="cuda")
    other = torch.empty_like(one)
    best = min(_seconds(lambda: other.copy_(one)) for _ in range(20))
    return 2 * one.nbytes / best


def _seconds(work: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _request(base: Base, num_frames: int, seed: int) -> Request:
    return Request(base.prompt_ids(TEXT, 0), num_frames, seed=seed)


def _frame_ms(
    base: Base, requests: list[Request], num_frames: int, arithmetic: Arithmetic | None = None, skipped: int = 2
) -> float:
    """Median milliseconds of a step in which nobody joins; the first steps, which make graphs, don't count."""
    engine = Engine(weights_of(base.network), arithmetic)
    engine.join(requests)
    times = [_seconds(engine.step) for _ in range(num_frames - 1)]
    while engine.num_speaking:
        engine.step()
    return 1e3 * median(times[skipped:] or times)


def _transformers(base: Base, num_frames: int) -> dict[str, float]:
    ids = torch.tensor([base.prompt_ids(TEXT, 0)], device="cuda")
    table = base.model.embed_text_tokens
    home = table.weight.device
    table.to("cuda")

    def said(count: int) -> None:
        with torch.inference_mode():
            base.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, depth_decoder_do_sample=True,
                max_new_tokens=count, min_new_tokens=count,
            )  # fmt: skip

    said(2)
    short, long = _seconds(lambda: said(2)), _seconds(lambda: said(2 + num_frames))
    table.to(home)
    spent = 1e3 * (long - short) / num_frames
    return {"ms_per_frame": round(spent, 2), "real_time_factor": round(spent * base.frame_rate / 1e3, 3)}


def _first_sound(base: Base, rounds: int = 5, num_frames: int = 50) -> dict[str, float]:
    """Milliseconds from a request to the samples of its first frame, and each frame's with its sound."""
    codec = load_codec(base.folder, use_gpu=True)
    weights = weights_of(base.network)
    first, each, sound_ms = [], [], []
    for seed in range(rounds):
        sound = codec.open_stream()
        torch.cuda.synchronize()
        start = time.perf_counter()
        engine = Engine(weights)
        engine.join([_request(base, num_frames, seed)])
        while engine.num_speaking:
            codes = [heard.codes_K for heard in engine.step() if heard.codes_K is not None]
            said = time.perf_counter()
            for codes_K in codes:
                assert len(sound.push(np.minimum(codes_K, 2047)[None]))
            now = time.perf_counter()
            sound_ms.append(1e3 * (now - said))
            (first if engine.num_speaking and len(first) <= seed else each).append(1e3 * (now - start))
            start = now
    settled = each[2:]
    return {
        "cold_ms": round(first[0], 1), "ms": round(median(first[1:]), 1), "ms_per_frame": round(median(settled), 2),
        "of_that_sound_ms": round(median(sound_ms), 2),
        "real_time_factor": round(median(settled) * base.frame_rate / 1e3, 4),
    }  # fmt: skip


def _rows_with_sound(base: Base, counts: list[int], num_frames: int, skipped: int = 3) -> dict[str, dict[str, float]]:
    """Median milliseconds of a frame with its sound, until all samples are there, by the number of rows."""
    codec, rows = load_codec(base.folder, use_gpu=True), {}
    for count in counts:
        engine, streams = Engine(weights_of(base.network)), codec.open_streams()
        engine.join([_request(base, num_frames, seed) for seed in range(count)])
        steps_ms, frames_ms = [], []
        while engine.num_speaking:
            torch.cuda.synchronize()
            start = time.perf_counter()
            told = engine.step()
            said = time.perf_counter()
            # Random weights say codes that the codec hasn't.
            known = [
                one if one.codes_K is None else one._replace(codes_K=np.minimum(one.codes_K, codec.codebook_size - 1))
                for one in told
            ]
            sound_of(known, streams)
            steps_ms.append(1e3 * (said - start))
            frames_ms.append(1e3 * (time.perf_counter() - start))
        frame_ms = median(frames_ms[skipped:])
        rows[str(count)] = {
            "ms_per_frame": round(frame_ms, 2), "of_that_codes_ms": round(median(steps_ms[skipped:]), 2),
            "slowest_ms": round(max(frames_ms[skipped:]), 2), "is_real_time": frame_ms <= 1e3 / base.frame_rate,
            "streams_in_real_time": round(count * 1e3 / base.frame_rate / frame_ms),
        }  # fmt: skip
        print(count, rows[str(count)], flush=True)
    return rows


def _emotions(base: Base, gates: list[tuple[float, ...]], num_rows: int, num_frames: int) -> dict[str, float]:
    plain = [_request(base, num_frames, seed) for seed in range(num_rows)]
    work = {
        "base": plain,
        "one": [replace(request, gate=gates[0]) for request in plain],
        "six_mixed": [replace(request, gate=gates[index % len(gates)]) for index, request in enumerate(plain)],
    }
    spent = {name: _frame_ms(base, requests, num_frames) for name, requests in work.items()}
    return {"num_rows": num_rows, **{f"{name}_ms": round(value, 2) for name, value in spent.items()}} | {
        "six_mixed_cost_of_one": round(spent["six_mixed"] / spent["one"], 3),
        "six_mixed_cost_of_base": round(spent["six_mixed"] / spent["base"], 3),
    }


if __name__ == "__main__":
    main()
