"""What it is worth to say a sentence several times and keep the take that is most like the others.

    python benchmarks/takes.py emotion_models/happy/best [ADAPTER ...] [--sentences 96] [--takes 8]

Every sentence is said `--takes` times by the base and by each adapter at its recommended intensity, all takes are
judged (emotion and words), and of all groups of 3, 4 ... of them the one that `affetto.speak.takes` keeps: the means
over the groups are what a user of so many takes gets; for emotional speech with softer witnesses, as it is spoken, and
without. Beside it stands what the recogniser itself would keep of four.
Texts are the miniature's validation texts and its test texts. Adds to `benchmarks/results/takes.json`, by adapter;
about four minutes of a core for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from facts import run_facts
from numpy.typing import NDArray

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.sentences import Sentence, ask, texts_of
from affetto.evaluate.strengths import of_strengths
from affetto.files import read_json, write_json
from affetto.judges.choice import choose_judges
from affetto.pipeline import prepare_clips
from affetto.speak.requests import Spoken
from affetto.speak.takes import FEWEST, SOFTER, num_witnesses, take_distances
from affetto.speak.voice import Voice

RESULT = Path(__file__).parent / "results" / "takes.json"
SIZES = (3, 4, 5, 6, 8)
"""Of the groups."""
SEED = 4_000_000
FAR = 1e9


def main() -> None:
    """Measure every adapter beside the base; print and write the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("adapters", type=Path, nargs="+", metavar="ADAPTER", help="emotion_models/<emotion>/best")
    parser.add_argument("--sentences", type=int, default=96)
    parser.add_argument("--takes", type=int, default=8)
    options = parser.parse_args()
    if options.takes < 4:
        parser.error("--takes is 4 or more: what the recogniser would keep is told of four")
    found: dict[str, Any] = read_json(RESULT) if RESULT.is_file() else {}
    for adapter in options.adapters:
        facts = read_json(adapter / "affetto.json")
        emotion = str(facts["emotion"])
        prepared = prepare_clips(Config(), [emotion])
        voice = Voice.load("miniature")
        voice.load_adapter(emotion, adapter)
        rows = {}
        for split in ("validation", "test"):
            sentences = _sentences(prepared, emotion, split, facts, options.sentences)
            for intensity in (0.0, float(facts["recommended_intensity"])):
                said = _measure(voice, emotion, sentences, intensity, options.takes)
                rows[f"{split}, {'base' if intensity == 0 else emotion}"] = {"intensity": intensity, **said}
        name = f"{emotion}, seed {facts['configuration']['seed']}"
        found[name] = run_facts() | {"sentences": options.sentences, "rows": rows}
        write_json(RESULT, found)
    print(RESULT.read_text(encoding="utf-8"))


def _sentences(prepared: Prepared, emotion: str, split: Any, facts: dict[str, Any], most: int) -> list[Sentence]:
    clips = [*prepared.select(emotion, split), *prepared.select(None, split)]
    texts = texts_of(clips, most)
    voices = facts["trained_speakers"]
    return [
        Sentence(text, name, facts["speakers"][name], seed=SEED + index)
        for index, text in enumerate(texts)
        for name in [voices[index % len(voices)]]
    ]


def _measure(
    voice: Voice, emotion: str, sentences: Sequence[Sentence], intensity: float, num_takes: int
) -> dict[str, Any]:
    judges = of_strengths(choose_judges({}, emotion))
    wanted = ask(
        voice, sentences, emotion if intensity else None, intensity=intensity, cued=intensity > 0, takes=num_takes,
        temperature=Config().sampling_temperature, depth_temperature=Config().sampling_depth_temperature,
    )  # fmt: skip
    heard, edits, said = [], [], []
    for take in range(num_takes):
        asked = [replace(one, takes=1, seed=one.seed + take * len(sentences)) for one in wanted]
        spoken = voice.generate(asked)
        items = [
            Item(f"{index}", sound, voice.codec.sample_rate, text=sentence.text, speaker=sentence.speaker)
            for index, (sentence, sound) in enumerate(zip(sentences, voice.decode_each(spoken), strict=True))
        ]
        values = [row["values"] for row in score_files(items, judges, emotion)]
        num_words = [len(sentence.text.split()) for sentence in sentences]
        heard.append([one["recall"] or 0 for one in values])
        # Of what couldn't be heard every word is wrong.
        edits.append(
            [one["word_edits"] or (one["heard"] is None) * n for one, n in zip(values, num_words, strict=True)]
        )
        said.append(spoken)
    table = np.array(heard), np.array(edits), sum(num_words)
    softer = [replace(one, gate=tuple(SOFTER * strength for strength in one.gate)) for one in wanted]
    for number in range(max(map(num_witnesses, wanted))):
        take = num_takes + number
        said.append(voice.generate([replace(one, takes=1, seed=one.seed + take * len(sentences)) for one in softer]))
    takes = [[one[place] for one in said] for place in range(len(sentences))]
    apart = np.stack([_apart(voice, some) for some in takes])
    sizes = [num for num in SIZES if num <= num_takes]
    witnessed = {
        str(num): _kept(apart, num, *table, num_witnesses(replace(wanted[0], takes=num)))
        for num in sizes if intensity
    }  # fmt: skip
    alone = {"recall": round(float(table[0].mean()), 4), "wer": round(float(table[1].sum() / num_takes / table[2]), 4)}
    by_errors = np.array(edits, dtype=float)
    return {
        "takes": {"1": alone} | {str(num): _kept(apart, num, *table) for num in sizes},
        **({"with_witnesses": witnessed} if witnessed else {}),
        "least_errors_of_4_takes": _mean(
            [_told(by_errors[list(group)].argmin(0), group, *table) for group in _groups(num_takes, 4)]
        ),
    }


def _apart(voice: Voice, takes: Sequence[Spoken]) -> NDArray[np.float64]:
    """Distances (T, T); what is kept only where all failed is infinitely far."""
    good = [len(take.codes_TK) > 0 and not take.hit_cap for take in takes]
    cepstra = [voice.codec.cepstra(take.codes_TK) if len(take.codes_TK) else np.zeros((1, 24)) for take in takes]
    return np.where(np.outer(good, good), take_distances(cepstra), FAR)


def _groups(num_takes: int, num: int) -> list[tuple[int, ...]]:
    return list(combinations(range(num_takes), num))


def _kept(
    apart_NTT: NDArray[np.float64], num: int, heard_TN: NDArray[Any], edits_TN: NDArray[Any], num_words: int,
    witnesses: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Recall and WER of the takes that are kept of `num`, over all groups of so many; witnesses stand behind takes."""
    assert num >= FEWEST
    told, softer = [], [*range(len(heard_TN), len(heard_TN) + witnesses)]
    for group in _groups(len(heard_TN), num):
        within = apart_NTT[:, group][:, :, [*group, *softer]]
        told.append(_told(within.sum(2).argmin(1), group, heard_TN, edits_TN, num_words))
    return _mean(told)


def _told(
    best_N: NDArray[Any], group: Sequence[int], heard_TN: NDArray[Any], edits_TN: NDArray[Any], num_words: int
) -> tuple[float, float]:
    kept_N, places = np.array(group)[best_N], np.arange(len(best_N))
    return float(heard_TN[kept_N, places].mean()), float(edits_TN[kept_N, places].sum() / num_words)


def _mean(told: Sequence[tuple[float, float]]) -> dict[str, float]:
    recall, wer = np.mean(told, axis=0)
    return {"recall": round(float(recall), 4), "wer": round(float(wer), 4)}


if __name__ == "__main__":
    main()
