"""What the base's own general speech is worth: `happy` trained beside it, and beside real general clips.

    OMP_NUM_THREADS=1 python benchmarks/self_rehearsal.py

Everything else is the same. Both are measured on the miniature's real general test clips, which neither saw, and on
held-out happy clips. Writes `benchmarks/results/self_rehearsal.json`; about two minutes of a core for each run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from facts import run_facts

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.evaluate.retention import measure_retention
from affetto.files import read_json, write_json
from affetto.model.batch import Row
from affetto.model.rows import PLAIN_TEMPLATE, make_rows
from affetto.pipeline import prepare_clips
from affetto.preserve.rehearsal import spread
from affetto.speak.voice import Voice
from affetto.training.loop import train
from affetto.training.validation import Validation

RESULT = Path(__file__).parent / "results" / "self_rehearsal.json"
EMOTION = "happy"
SOURCES: tuple[Literal["data", "self"], ...] = ("data", "self")


def main() -> None:
    """Train and measure every seed and source; print and write the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    seeds = parser.parse_args().seeds
    facts, runs = run_facts(), []
    prepared = {source: prepare_clips(Config(general=source), [EMOTION]) for source in SOURCES}
    speech = {source: _speech(prepared[source]) for source in SOURCES}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for source in SOURCES:
                config = Config(general=source, seed=seed, output_dir=Path(folder) / f"{source}-{seed}", trackers=())
                best = train(config, EMOTION, prepared[source], command=facts["command"]) / "best"
                runs.append({"general": source, "seed": seed, **_measured(config, best, prepared)})
                write_json(RESULT, facts | {"speech": speech, "runs": runs, "means": _means(runs)})
    print(RESULT.read_text(encoding="utf-8"))


def _speech(prepared: Prepared) -> dict[str, Any]:
    """What the general clips are like."""
    found: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        clips = prepared.select(None, split)
        frames = sum(len(prepared.codes(clip)) for clip in clips)
        speakers = sorted({clip.speaker for clip in clips})
        found[split] = {"num_clips": len(clips), "mean_s": round(frames / len(clips) / 12.5, 2), "speakers": speakers}
    return found


def _measured(config: Config, folder: Path, prepared: dict[Literal["data", "self"], Prepared]) -> dict[str, Any]:
    """Figures of one adapter, at full intensity and at the one that its training recommends."""
    voice = Voice.load(config.base)
    voice.load_adapter(EMOTION, folder)
    facts = read_json(folder / "affetto.json")
    happy = _rows(config, voice, prepared["data"], EMOTION, config.prompt_template)
    general = {source: _rows(config, voice, prepared[source], None, PLAIN_TEMPLATE) for source in SOURCES}
    held = Validation(voice.base, happy, [])
    recommended = float(facts["recommended_intensity"])

    def at(intensity: float) -> dict[str, Any]:
        real, own = (measure_retention(voice.base, general[source], (intensity,)).document() for source in SOURCES)
        return {
            "intensity": intensity,
            "emotion_nll": held(intensity)["emotion_nll"],
            "real_general": {"kl": real["kl"], "delta_nll": real["delta_nll"], "num_clips": real["num_clips"]},
            "self_general": {"kl": own["kl"], "delta_nll": own["delta_nll"], "num_clips": own["num_clips"]},
        }

    return {
        "at_1": at(1.0),
        "at_recommended": at(recommended),
        "validation": facts["validation"],
        "timings_s": facts["timings_s"],
        "data": facts["data"],
    }


def _rows(config: Config, voice: Voice, prepared: Prepared, emotion: str | None, template: str) -> list[Row]:
    clips = spread(prepared.select(emotion, "test"), prepared.num_frames(), config.evaluation_clips, "benchmark")
    rows = make_rows(voice.base, clips, prepared.codes, prepared.speakers, template=template)
    return [Row(row.clip_id, row.turns, (1.0,)) for row in rows]


def _means(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds, at full intensity."""
    means = {}
    for source in SOURCES:
        points = [run["at_1"] for run in runs if run["general"] == source]
        if points:
            means[source] = {
                "emotion_nll": np.mean([point["emotion_nll"] for point in points]),
                "real_kl": np.mean([point["real_general"]["kl"]["value"] for point in points]),
                "real_delta_nll": np.mean([point["real_general"]["delta_nll"]["value"] for point in points]),
                "self_kl": np.mean([point["self_general"]["kl"]["value"] for point in points]),
                "self_delta_nll": np.mean([point["self_general"]["delta_nll"]["value"] for point in points]),
            }
    return means


if __name__ == "__main__":
    main()
