"""What the base's own general speech is worth: `happy` trained beside it, and beside real general clips.

    OMP_NUM_THREADS=1 python benchmarks/self_rehearsal.py

Everything else is the same. At the first seed a third adapter is trained beside the base's own speech in every voice of
the real general clips, which tells what the voices cost. All are measured on the miniature's real general test clips,
which none saw, and on held-out happy clips. Writes `benchmarks/results/self_rehearsal.json`; about two minutes of a
core for each run. Adapters that `--output` holds already, trained to the end, are only measured.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from facts import run_facts
from numpy.typing import NDArray

from affetto.audio.stratified import spread
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.evaluate.retention import Retention, measure_retention
from affetto.files import read_json, write_json
from affetto.model.batch import Row
from affetto.model.rows import PLAIN_TEMPLATE
from affetto.pipeline import prepare_clips
from affetto.preserve.self_speech import with_self_speech
from affetto.speak.voice import Voice
from affetto.training.loop import train
from affetto.training.streams import gated_rows
from affetto.training.validation import Validation

RESULT = Path(__file__).parent / "results" / "self_rehearsal.json"
EMOTION = "happy"
_KINDS = (
    "real_general", "real_general_of_voices_that_act", "real_general_of_other_voices", "self_general",
)  # fmt: skip
SOURCES = ("data", "self")


def main() -> None:
    """Train and measure every seed and source; print and write the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, help="keep the adapters here")
    options = parser.parse_args()
    facts, runs = run_facts(), []
    prepared: dict[str, Prepared] = {
        source: prepare_clips(Config(general=_key(source)), [EMOTION]) for source in SOURCES
    }  # fmt: skip
    prepared["self, every voice"] = _in_every_voice(prepared["data"])
    speech = {source: _speech(clips) for source, clips in prepared.items()}
    plan = [(source, seed) for seed in options.seeds for source in SOURCES]
    with ExitStack() as stack:
        folder = options.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for source, seed in [*plan, ("self, every voice", options.seeds[0])]:
            config = Config(general=_key(source), seed=seed, output_dir=folder / f"{source}-{seed}", trackers=())
            best = config.output_dir / "emotion_models" / EMOTION / "best"
            if not _is_finished(best):
                train(config, EMOTION, prepared[source], command=facts["command"])
            runs.append({"general": source, "seed": seed, **_measured(config, best, prepared)})
            write_json(RESULT, facts | {"speech": speech, "runs": runs, "means": _means(runs)})
    print(RESULT.read_text(encoding="utf-8"))


def _key(source: str) -> Literal["data", "self"]:
    """The configuration's word for it."""
    return "data" if source == "data" else "self"


def _in_every_voice(prepared: Prepared) -> Prepared:
    """The base's own speech in the voices of all clips of `prepared`, emotional or not."""
    config = Config()
    counts = {
        "train": config.rehearsal_buffer_size + config.fisher_clips,
        "validation": config.validation_clips,
        "test": config.evaluation_clips,
    }
    acted = [replace(clip, emotion=clip.emotion or "other") for clip in prepared.clips]
    spoken = with_self_speech(replace(prepared, clips=tuple(acted)), config.base, counts)
    return replace(spoken, clips=tuple(clip for clip in spoken.clips if clip.emotion in (None, EMOTION)))


def _is_finished(folder: Path) -> bool:
    """Whether training came to its end: the timings are written last."""
    path = folder / "affetto.json"
    return path.is_file() and "timings_s" in read_json(path)


def _speech(prepared: Prepared) -> dict[str, Any]:
    """What the general clips are like."""
    found: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        clips = prepared.select(None, split)
        frames = sum(len(prepared.codes(clip)) for clip in clips)
        speakers = sorted({clip.speaker for clip in clips})
        found[split] = {"num_clips": len(clips), "mean_s": round(frames / len(clips) / 12.5, 2), "speakers": speakers}
    return found


def _measured(config: Config, folder: Path, prepared: dict[str, Prepared]) -> dict[str, Any]:
    """Figures of one adapter, at full intensity and at the one that its training recommends."""
    voice = Voice.load(config.base)
    voice.load_adapter(EMOTION, folder)
    facts = read_json(folder / "affetto.json")
    happy = _rows(config, voice, prepared["data"], EMOTION, config.prompt_template)
    general = {source: _rows(config, voice, prepared[source], None, PLAIN_TEMPLATE) for source in SOURCES}
    held = Validation(voice.base, happy, [])
    speakers = {clip.id: clip.speaker for clip in prepared["data"].clips}
    acting = np.array([speakers[row.clip_id] in facts["trained_speakers"] for row in general["data"]])
    recommended = float(facts["recommended_intensity"])

    def at(intensity: float) -> dict[str, Any]:
        real, own = (measure_retention(voice.base, general[source], (intensity,)) for source in SOURCES)
        return {
            "intensity": intensity,
            "emotion_nll": held(intensity)["emotion_nll"],
            "real_general": _forgotten(real),
            "real_general_of_voices_that_act": _forgotten(_of(real, acting)),
            "real_general_of_other_voices": _forgotten(_of(real, ~acting)),
            "self_general": _forgotten(own),
        }

    return {
        "at_1": at(1.0),
        "at_recommended": at(recommended),
        "validation": facts["validation"],
        "timings_s": facts["timings_s"],
        "data": facts["data"],
    }


def _of(retention: Retention, is_chosen_N: NDArray[np.bool_]) -> Retention:
    """The same measure on some of the clips."""
    return Retention(retention.codes_NK[is_chosen_N], retention.delta_nll_NK[is_chosen_N], retention.kl_NK[is_chosen_N])


def _forgotten(retention: Retention) -> dict[str, Any]:
    document = retention.document()
    return {"kl": document["kl"], "delta_nll": document["delta_nll"], "num_clips": document["num_clips"]}


def _rows(config: Config, voice: Voice, prepared: Prepared, emotion: str | None, template: str) -> list[Row]:
    clips = spread(prepared.select(emotion, "test"), prepared.num_frames(), config.evaluation_clips, "benchmark")
    return gated_rows(voice.base, clips, prepared, template)


def _means(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds, at full intensity."""
    means = {}
    for source in dict.fromkeys(run["general"] for run in runs):
        points = [run["at_1"] for run in runs if run["general"] == source]
        means[source] = {
            "num_seeds": len(points),
            "emotion_nll": np.mean([point["emotion_nll"] for point in points]),
            **{
                f"{kind}/{metric}": np.mean([point[kind][metric]["value"] for point in points])
                for kind in _KINDS
                for metric in ("kl", "delta_nll")
            },
        }
    return means


if __name__ == "__main__":
    main()
