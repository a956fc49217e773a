"""How fast the miniature's codec is on one core: seconds of speech coded and decoded per second.

    OMP_NUM_THREADS=1 python benchmarks/codec_speed.py

Writes `benchmarks/results/codec_speed.json`. Processor time counts, not the clock, so a busy machine does little harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from facts import run_facts, take_no_options

from affetto.codes.vocoder import VocoderCodec
from affetto.files import write_json
from affetto.miniature.corpus import SAMPLE_RATE, general_lines, render
from affetto.model.base import MINIATURE, find_base

RESULT = Path(__file__).parent / "results" / "codec_speed.json"
NUM_CLIPS = 30
REPEATS = 5


def main() -> None:
    """Time encoding and decoding, print and write the figures."""
    take_no_options(__doc__)
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
    write_json(RESULT, run_facts() | {key: np.round(value, 1) for key, value in figures.items()})
    print(RESULT.read_text(encoding="utf-8"))


def _best_s(work: Callable[[], object]) -> float:
    took = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


if __name__ == "__main__":
    main()
