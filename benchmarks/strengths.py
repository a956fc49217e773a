"""Emotion and words by intensity: what is heard of every held-out test text, against the base's plain reading.

    python benchmarks/strengths.py emotion_models/happy/best [ADAPTER ...] [--intensities 1 1.05 1.1 1.15 1.2]

Every test text is said in each of the adapter's voices by the base, plainly, and by each adapter with its cue at every
intensity and at its recommended one, as `affetto speak` says it. Words are compared with the base's, paired by text,
voice and seed; texts are what is resampled. An evaluation hears 48 sentences, too few to tell intensities apart.
Adapters of one emotion, which differ by seed, are pooled as well. Adds to `benchmarks/results/strengths.json`; of one
core about a minute for each adapter and intensity.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import held_out
from facts import run_facts
from held_out import pooled, say

from affetto.config import Config
from affetto.evaluate.results import FileRow
from affetto.evaluate.sentences import Sentence
from affetto.evaluate.strengths import of_strengths
from affetto.evaluate.summary import build_system, compare
from affetto.files import read_json, write_json
from affetto.judges.choice import choose_judges
from affetto.pipeline import prepare_clips
from affetto.speak.voice import Voice

RESULT = Path(__file__).parent / "results" / "strengths.json"
TOLD = ("recall", "posterior", "wer", "cer", "f0_median_st", "f0_range_st", "stop_failures")


def main() -> None:
    """Measure every adapter beside the base; print and write the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("adapters", type=Path, nargs="+", metavar="ADAPTER", help="emotion_models/<emotion>/best")
    parser.add_argument("--intensities", type=float, nargs="+", default=[1.0, 1.05, 1.1, 1.15, 1.2], metavar="I")
    options = parser.parse_args()
    if not all(0 < one <= 2 for one in options.intensities):
        parser.error("--intensities are above 0 and 2 at most")
    found: dict[str, Any] = read_json(RESULT) if RESULT.is_file() else {}
    judges = of_strengths(choose_judges({}, "happy"))
    plain: dict[tuple[str, tuple[Sentence, ...]], list[FileRow]] = {}
    pools: dict[str, list[tuple[list[FileRow], dict[float | str, list[FileRow]]]]] = {}

    def told(own: Sequence[FileRow], base: Sequence[FileRow], intensity: float | None) -> dict[str, Any]:
        metrics = build_system("ours", "adapter", own, judges, intensity)["metrics"]
        words = compare(own, base, system="ours", against="base", prompt="emotional")["metrics"]["wer"]
        return {name: dict(metrics[name]) for name in TOLD} | {"wer_minus_base": dict(words)}

    for adapter in options.adapters:
        facts = read_json(adapter / "affetto.json")
        emotion, recommended = str(facts["emotion"]), float(facts["recommended_intensity"])
        voice = Voice.load("miniature")
        voice.load_adapter(emotion, adapter)
        wanted = held_out.sentences(prepare_clips(Config(), [emotion]), facts, 1, ["test"])
        key = emotion, tuple(wanted)
        if key not in plain:
            plain[key] = [*say(voice, judges, wanted, None, 0.0, cued=False, judged_as=emotion, prompt="emotional")[1]]
        base = plain[key]
        own = {
            intensity: [
                *say(voice, judges, wanted, emotion, intensity, cued=True, judged_as=emotion, prompt="emotional")[1]
            ]
            for intensity in sorted({*options.intensities, recommended})
        }
        found[f"{emotion}, seed {facts['configuration']['seed']}"] = run_facts() | {
            "recommended": recommended, "sentences": len(base),
            "base": told(base, base, 0.0),
            "intensities": {f"{intensity:g}": told(rows, base, intensity) for intensity, rows in own.items()},
        }  # fmt: skip
        write_json(RESULT, found)
        kept: dict[float | str, list[FileRow]] = {one: own[one] for one in options.intensities}
        pools.setdefault(emotion, []).append((base, kept | {"recommended": own[recommended]}))
    for emotion, pool in pools.items():
        if len(pool) > 1:
            base = pooled([rows for rows, _ in pool])
            found[f"{emotion}, {len(pool)} adapters"] = run_facts() | {
                "sentences": len(base), "base": told(base, base, 0.0),
                "intensities": {
                    f"{at}": told(pooled([own[at] for _, own in pool]), base, None) for at in pool[0][1]
                },
            }  # fmt: skip
    write_json(RESULT, found)
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
