"""What adapters leave of plain speech: words and voices of plain prompts against the base's, with intervals.

    python benchmarks/plain_prompts.py emotion_models/happy/best [ADAPTER ...] [--seeds 1]

Every held-out text, of validation and test, is said plainly in each of the adapter's voices and with `--seeds` seeds,
by the base, by the base with other seeds (chance alone) and by each adapter at its recommended intensity, as `affetto
speak` says it. Differences are paired by text, voice and seed; texts are what is resampled. An evaluation compares 48
sentences, too few to tell a word error rate to a point. Adapters of one emotion, which differ by seed, are pooled as
well. Adds to `benchmarks/results/plain_prompts.json`; some two minutes of a core for each adapter.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import held_out
from facts import run_facts
from held_out import pooled

from affetto.config import Config
from affetto.evaluate.results import FileRow
from affetto.evaluate.sentences import Sentence
from affetto.evaluate.similarity import Scored, compare_voices
from affetto.evaluate.speaking import Studio
from affetto.evaluate.summary import PLAIN_MARGINS, compare
from affetto.files import read_json, write_json
from affetto.judges.choice import choose_judges
from affetto.pipeline import prepare_clips
from affetto.speak.voice import Voice

RESULT = Path(__file__).parent / "results" / "plain_prompts.json"


def main() -> None:
    """Measure every adapter beside the base; print and write the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("adapters", type=Path, nargs="+", metavar="ADAPTER", help="emotion_models/<emotion>/best")
    parser.add_argument("--seeds", type=int, default=1, help="of each sentence")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds is 1 or more")
    found: dict[str, Any] = read_json(RESULT) if RESULT.is_file() else {}
    laboratory = _Laboratory(options.seeds)
    pools: dict[str, list[tuple[list[FileRow], list[FileRow]]]] = {}
    for adapter in options.adapters:
        facts = read_json(adapter / "affetto.json")
        emotion = str(facts["emotion"])
        base, chance, own = laboratory.measure(adapter, facts)
        pools.setdefault(emotion, []).append((own, base))
        found[f"{emotion}, seed {facts['configuration']['seed']}"] = run_facts() | {
            "intensity": facts["recommended_intensity"], "sentences": len(base),
            "minus_base": _told(own, base), "other_seeds_minus_base": _told(chance, base),
        }  # fmt: skip
        write_json(RESULT, found)
    for emotion, pool in pools.items():
        if len(pool) > 1:
            sides = [pooled(side) for side in zip(*pool, strict=True)]
            found[f"{emotion}, {len(pool)} adapters"] = run_facts() | {
                "sentences": len(sides[1]), "minus_base": _told(*sides),
            }  # fmt: skip
    write_json(RESULT, found)
    print(RESULT.read_text(encoding="utf-8"))


class _Laboratory:
    """The base and its judges; what the base says is judged once for all adapters of the same sentences."""

    def __init__(self, num_seeds: int) -> None:
        self._num_seeds = num_seeds
        self._judges = choose_judges({"quality": "none"}, "happy")
        self._known: dict[tuple[str, tuple[Sentence, ...]], tuple[Scored, Scored]] = {}

    def measure(self, adapter: Path, facts: dict[str, Any]) -> tuple[list[FileRow], list[FileRow], list[FileRow]]:
        """Judged rows of the base, of the base with other seeds, told as if it had the same, and of the adapter."""
        emotion = str(facts["emotion"])
        prepared = prepare_clips(Config(), [emotion])
        voice = Voice.load("miniature")
        voice.load_adapter(emotion, adapter)
        wanted = held_out.sentences(prepared, facts, self._num_seeds)
        key = emotion, tuple(wanted)
        if key not in self._known:
            others = [replace(one, seed=one.seed + self._num_seeds * held_out.SEEDS_APART) for one in wanted]
            items, rows = self._say(voice, others, None, 0.0, emotion)
            renamed = [FileRow(**{**row, "seed": one.seed}) for row, one in zip(rows, wanted, strict=True)]
            self._known[key] = self._say(voice, wanted, None, 0.0, emotion), (items, renamed)
        base, chance = self._known[key]
        own = self._say(voice, wanted, emotion, float(facts["recommended_intensity"]), emotion)
        studio = Studio.of(voice, adapter, Config(), resume=False)
        references = studio.references(prepared, facts["trained_speakers"])
        assert self._judges.voice is not None
        compare_voices(self._judges.voice, base, (own, chance), references)
        return [*base[1]], [*chance[1]], [*own[1]]

    def _say(
        self, voice: Voice, wanted: Sequence[Sentence], emotion: str | None, intensity: float, judged_as: str
    ) -> Scored:
        return held_out.say(
            voice, self._judges, wanted, emotion, intensity, cued=False, judged_as=judged_as, prompt="plain"
        )


def _told(ours: Sequence[FileRow], theirs: Sequence[FileRow]) -> dict[str, Any]:
    """The differences that have a margin."""
    compared = compare(ours, theirs, system="ours", against="base", prompt="plain")
    return {name: dict(metric) for name, metric in compared["metrics"].items() if name in PLAIN_MARGINS}


if __name__ == "__main__":
    main()
