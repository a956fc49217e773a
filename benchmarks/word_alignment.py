"""How far the words that the bundled recogniser aligns begin from where espeak-ng began them, and what doubt tells.

    OMP_NUM_THREADS=1 python benchmarks/word_alignment.py

Clips are the miniature's: plain reading, and acted at every strength, all from texts that the recogniser wasn't trained
on. Each is aligned to its own text and to that of another clip. Writes `benchmarks/results/word_alignment.json`.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import soxr
from facts import run_facts, take_no_options

from affetto.codes.timing import Aligned, aligned_words
from affetto.errors import DataError
from affetto.files import write_json
from affetto.judges.aligner import find_aligner
from affetto.miniature.corpus import EMOTIONS, SAMPLE_RATE, Line, Rendered, acted_lines, general_lines, render_timed

RESULT = Path(__file__).parent / "results" / "word_alignment.json"
NUM_GENERAL, NUM_ACTED = 30, 5


def main() -> None:
    """Align, print and write the figures."""
    take_no_options(__doc__)
    aligner = find_aligner({})
    families = {"general": list(general_lines(NUM_GENERAL, "general", "test"))}
    families |= {emotion: list(acted_lines(emotion, {"test": NUM_ACTED})) for emotion in EMOTIONS}
    figures: dict[str, object] = {}
    own_doubts, other_doubts, took_s, speech_s = [], [], 0.0, 0.0
    for name, lines in families.items():
        late_s: list[float] = []
        for line in lines:
            rendered = render_timed(line)
            sound = soxr.resample(rendered.samples, SAMPLE_RATE, aligner.sample_rate).astype(np.float32)
            start = time.process_time()
            found = aligned_words(line.text, sound, aligner)
            took_s += time.process_time() - start
            speech_s += len(sound) / aligner.sample_rate
            late_s += _late(line, rendered, found)
            own_doubts.append(found.doubt)
            other = next(each.text for each in families["general"][len(own_doubts) % NUM_GENERAL :] + lines
                         if each.text != line.text)  # fmt: skip
            try:
                other_doubts.append(aligned_words(other, sound, aligner).doubt)
            except DataError:
                continue  # it has more letters than the clip has frames
        figures[name] = _told(late_s, len(lines))
    doubts = {"own_text_max": max(own_doubts), "own_text_median": float(np.median(own_doubts)),
              "other_text_min": min(other_doubts), "other_text_median": float(np.median(other_doubts)),
              "num_other": len(other_doubts)}  # fmt: skip
    write_json(RESULT, run_facts() | {
        "recogniser": aligner.id, "word_starts": figures, "doubt_nats_per_token": doubts,
        "processor_s_per_s_of_speech": round(took_s / speech_s, 4),
    })  # fmt: skip
    print(RESULT.read_text(encoding="utf-8"))


def _late(line: Line, rendered: Rendered, found: Aligned) -> list[float]:
    """Seconds that each word begins late, of those whose start espeak-ng tells (it says some in one with another)."""
    truth, place, late_s = dict(rendered.word_starts), 0, []
    for word in found.words:
        place = line.text.index(word.text, place)
        if place in truth:
            late_s.append(word.start_s - truth[place])
        place += len(word.text)
    return late_s


def _told(late_s: list[float], num_clips: int) -> dict[str, float]:
    late_ms = 1000 * np.asarray(late_s)
    return {
        "num_clips": num_clips, "num_words": len(late_ms), "median_late_ms": round(float(np.median(late_ms)), 1),
        "p95_abs_ms": round(float(np.quantile(np.abs(late_ms), 0.95)), 1),
        "max_abs_ms": round(float(np.abs(late_ms).max()), 1),
        "within_80_ms": round(float((np.abs(late_ms) < 80).mean()), 4),
        "within_160_ms": round(float((np.abs(late_ms) < 160).mean()), 4),
    }  # fmt: skip


if __name__ == "__main__":
    main()
