"""How long all default judges and metrics take over 100 clips of five seconds, from sound files to written results.

    OMP_NUM_THREADS=1 python benchmarks/metrics_speed.py

Writes `benchmarks/results/metrics_speed.json`. `processor_s` is time of all threads on a processor, which a busy
machine changes little; `clock_s` is what a watch showed on this machine, with what else it did (`load` is its load
average just before). Loading the judges is counted apart.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from facts import run_facts, take_no_options

from affetto.audio.sound import write_sound
from affetto.evaluate import scoring
from affetto.evaluate.folder import evaluate_folder
from affetto.evaluate.scoring import Item
from affetto.files import write_json, write_text
from affetto.judges.choice import Judges, choose_judges
from affetto.miniature.corpus import SAMPLE_RATE, general_lines, render

RESULT = Path(__file__).parent / "results" / "metrics_speed.json"
NUM_CLIPS = 100
DURATION_S = 5.0


def main() -> None:
    """Time the whole and its parts, print and write the figures."""
    take_no_options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        items = _clips(Path(folder))
        load = os.getloadavg()[0]
        judges, loading = _timed(lambda: choose_judges({}, "happy"))
        before_mb = _peak_mb()
        output = Path(folder) / "results" / "results.json"
        _, whole = _timed(lambda: evaluate_folder(Path(folder), "happy", output, judges=judges, command="benchmark"))
        parts = _parts(items, judges)
    figures = {
        "num_clips": NUM_CLIPS,
        "clip_s": DURATION_S,
        "num_processors": os.cpu_count(),
        "load": round(load, 2),
        "loading_judges": loading,
        "whole": whole,
        "parts": parts,
        "memory_before_mb": before_mb,
        "peak_memory_mb": _peak_mb(),
    }
    write_json(RESULT, run_facts() | figures)
    print(RESULT.read_text(encoding="utf-8"))


def _clips(folder: Path) -> list[Item]:
    """Rendered sentences, cut or repeated to five seconds, no two the same."""
    length = round(DURATION_S * SAMPLE_RATE)
    items = []
    for index, line in enumerate(general_lines(NUM_CLIPS, "general", "test")):
        path = folder / f"{index:03d}.wav"
        write_sound(path, np.resize(render(line), length), SAMPLE_RATE)
        write_text(path.with_suffix(".txt"), line.text)
        items.append(Item(path.name, path, text=line.text, speaker="a", prompt="emotional", seed=index))
    return items


def _parts(items: list[Item], judges: Judges) -> dict[str, dict[str, float]]:
    """Each part on its own, on sounds that are loaded already."""
    assert judges.emotion
    assert judges.words
    assert judges.voice
    sounds = [scoring.load(item, scoring.SAMPLE_RATE) for item in items]
    emotion, words, voice = judges.emotion, judges.words, judges.voice
    voiced = [scoring.load(item, voice.sample_rate) for item in items]
    work: dict[str, Callable[[], Any]] = {
        "reading": lambda: [scoring.load(item, scoring.SAMPLE_RATE) for item in items],
        "emotion": lambda: emotion.posteriors(sounds),
        "words": lambda: words.transcribe(sounds),
        "quality": lambda: _fresh_quality().score(sounds),
        "voice": lambda: voice.embed(voiced),
        "pitch": lambda: [scoring.measure_pitch(sound, scoring.SAMPLE_RATE) for sound in sounds],
    }
    return {name: _timed(run)[1] for name, run in work.items()}


def _fresh_quality() -> Any:
    """DNSMOS that hasn't heard these sounds."""
    from affetto.judges.quality import DnsmosJudge

    return DnsmosJudge()


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "clock_s": round(time.perf_counter() - clock, 2),
        "processor_s": round(time.process_time() - processor, 2),
    }


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
