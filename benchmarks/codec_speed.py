"""How fast the miniature's codec is on one core: seconds of speech coded and decoded per second.

    OMP_NUM_THREADS=1 python benchmarks/codec_speed.py

Writes `benchmarks/results/codec_speed.json`. Processor time counts, not the clock, so a busy machine does little harm.
"""

from __future__ import annotations

import platform
import shlex
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np

from affetto.codes.vocoder import VocoderCodec
from affetto.files import write_json
from affetto.miniature.corpus import SAMPLE_RATE, general_lines, render
from affetto.model.base import MINIATURE, find_base
from affetto.provenance import versions

RESULT = Path(__file__).parent / "results" / "codec_speed.json"
NUM_CLIPS = 30
REPEATS = 5


def main() -> None:
    """Time encoding and decoding, print and write the figures."""
    codec = VocoderCodec.load(find_base(MINIATURE))
    sounds = [render(line) for line in general_lines(NUM_CLIPS, "general", "test")]
    codes = [codec.encode(sound) for sound in sounds]
    speech_s = sum(map(len, sounds)) / SAMPLE_RATE
    figures = {
        "num_clips": NUM_CLIPS,
        "speech_s": round(speech_s, 2),
        "encode_times_real_time": speech_s / _best_s(lambda: [codec.encode(sound) for sound in sounds]),
        "decode_times_real_time": speech_s / _best_s(lambda: [codec.decode(item) for item in codes]),
    }
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), "system": platform.system(), "threads": 1},
        "versions": versions(),
    }
    write_json(RESULT, facts | {key: np.round(value, 1) for key, value in figures.items()})
    print(RESULT.read_text(encoding="utf-8"))


def _best_s(work: Callable[[], object]) -> float:
    took = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


def processor() -> str:
    """Name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
