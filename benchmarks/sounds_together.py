"""Mimi's sound of many streams, frame by frame: one pass for all against one stream at a time.

    OMP_NUM_THREADS=1 python benchmarks/sounds_together.py
    python benchmarks/sounds_together.py --device cuda --rows 1 8 32 64 128 256

Writes `benchmarks/results/sounds_together.json`, one entry a device. Mimi at its published size with random weights, in
float32; codes are random. Both ways decode the same frames in turn, so that what else the machine does falls on both;
medians of frames count. Time on a CPU is the processor's, else the clock's: samples are there when a GPU has ended.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from facts import run_facts
from transformers import MimiConfig, MimiModel

from affetto.codes.neural import MimiCodec
from affetto.files import read_json, write_json

RESULT = Path(__file__).parent / "results" / "sounds_together.json"


def main() -> None:
    """Measure one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--frames", type=int, default=20, help="that are timed")
    parser.add_argument("--before", type=int, default=5, help="frames that each stream has said by then")
    options = parser.parse_args()
    is_gpu = options.device != "cpu"
    torch.manual_seed(0)
    codec = MimiCodec(MimiModel(MimiConfig()).to(options.device), 32)
    found: dict[str, Any] = run_facts()
    found["machine"] |= {"gpu": torch.cuda.get_device_name()} if is_gpu else {"threads": torch.get_num_threads()}
    found |= {"frames": options.frames, "frames_before": options.before, "rows": {}}
    for num_rows in options.rows:
        found["rows"][str(num_rows)] = figures = compared(codec, num_rows, options.frames, options.before)
        print(num_rows, figures, flush=True)
        write_json(RESULT, (read_json(RESULT) if RESULT.is_file() else {}) | {options.device: found})


def compared(codec: MimiCodec, num_rows: int, num_frames: int, num_before: int) -> dict[str, float]:
    """Milliseconds a frame of each row both ways, and how far their samples are apart."""
    clock = time.process_time if codec.model.device.type == "cpu" else time.perf_counter
    codes_TBK = np.random.default_rng(0).integers(0, codec.codebook_size, (num_before + num_frames, num_rows, 32))
    together, singles = codec.open_streams(), [codec.open_stream() for _ in range(num_rows)]
    together_s, apart_s, farthest, loudest = [], [], 0.0, 0.0
    for place, codes_BK in enumerate(codes_TBK):
        start = clock()
        samples = together.push({row: codes_K[None] for row, codes_K in enumerate(codes_BK)})
        between = clock()
        alone = [single.push(codes_K[None]) for single, codes_K in zip(singles, codes_BK, strict=True)]
        end = clock()
        if place >= num_before:
            together_s.append(between - start)
            apart_s.append(end - between)
        farthest = max(farthest, *(float(np.abs(samples[row] - one).max()) for row, one in enumerate(alone)), 0.0)
        loudest = max(loudest, *(float(np.abs(one).max()) for one in alone), 0.0)
    together_ms, apart_ms = (1e3 * median(times) for times in (together_s, apart_s))
    return {
        "together_ms_per_row": round(together_ms / num_rows, 3),
        "one_at_a_time_ms_per_row": round(apart_ms / num_rows, 3),
        "times_as_fast": round(apart_ms / together_ms, 2),
        "together_ms_per_frame": round(together_ms, 2),
        "farthest_samples": float(f"{farthest:.1e}"),
        "loudest_sample": round(loudest, 3),
    }


if __name__ == "__main__":
    main()
