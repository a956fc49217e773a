"""What it is worth to say a sentence several times and keep the take that the base itself weighs best.

    python benchmarks/takes.py emotion_models/happy/best [ADAPTER ...] [--sentences 96] [--takes 8]

Every sentence is said `--takes` times by the base and by each adapter at its recommended intensity, all takes are
judged (emotion and words), and the best of 1, 2, 4 ... of them kept, in groups that share no take: the means over all
groups are what a user of so many takes gets. Texts are the miniature's validation texts, on which lambda was chosen
(other lambdas stand beside it), and its test texts. Adds to `benchmarks/results/takes.json`, by adapter; about four
minutes of a core for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from facts import run_facts
from numpy.typing import NDArray

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.evaluate.scoring import Item, score_files
from affetto.evaluate.sentences import Sentence, ask
from affetto.evaluate.strengths import of_strengths
from affetto.files import read_json, write_json
from affetto.judges.choice import choose_judges
from affetto.model.csm import CsmNetwork
from affetto.pipeline import prepare_clips
from affetto.speak.generation import weights_of
from affetto.speak.takes import LAMBDA, log_likelihoods
from affetto.speak.voice import Voice

RESULT = Path(__file__).parent / "results" / "takes.json"
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SEED = 4_000_000


def main() -> None:
    """Measure every adapter beside the base; print and write the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("adapters", type=Path, nargs="+", metavar="ADAPTER", help="emotion_models/<emotion>/best")
    parser.add_argument("--sentences", type=int, default=96)
    parser.add_argument("--takes", type=int, default=8)
    options = parser.parse_args()
    if options.takes < 4:
        parser.error("--takes is 4 or more: lambdas are compared by the best of four")
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
        found[name] = run_facts() | {"sentences": options.sentences, "lambda": LAMBDA, "rows": rows}
        write_json(RESULT, found)
    print(RESULT.read_text(encoding="utf-8"))


def _sentences(prepared: Prepared, emotion: str, split: Any, facts: dict[str, Any], most: int) -> list[Sentence]:
    clips = [*prepared.select(emotion, split), *prepared.select(None, split)]
    texts = list(dict.fromkeys(clip.text for clip in clips if clip.text))[:most]
    voices = facts["trained_speakers"]
    return [
        Sentence(text, name, facts["speakers"][name], seed=SEED + index)
        for index, text in enumerate(texts)
        for name in [voices[index % len(voices)]]
    ]


def _measure(
    voice: Voice, emotion: str, sentences: Sequence[Sentence], intensity: float, num_takes: int
) -> dict[str, Any]:
    assert isinstance(voice.base.network, CsmNetwork)
    judges = of_strengths(choose_judges({}, emotion))
    wanted = ask(
        voice, sentences, emotion if intensity else None, intensity=intensity, cued=intensity > 0, takes=num_takes,
        temperature=Config().sampling_temperature,
    )  # fmt: skip
    heard, edits, after_text, after_none = [], [], [], []
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
        weights = weights_of(voice.base.network)
        lengths = np.array([max(1, len(said.codes_TK)) for said in spoken])
        silent = [replace(one, text_ids=one.wordless_ids) for one in asked]
        after_text.append(log_likelihoods(weights, asked, spoken) / lengths)
        after_none.append(log_likelihoods(weights, silent, spoken) / lengths)
    scores = {weight: np.array(after_text) - weight * np.array(after_none) for weight in LAMBDAS}
    takes = [2**power for power in range(num_takes.bit_length()) if 2**power <= num_takes]
    table = np.array(heard), np.array(edits), sum(num_words)
    return {
        "takes": {str(num): _best(scores[LAMBDA], num, *table) for num in takes},
        "lambdas_of_4_takes": {f"{weight:g}": _best(scores[weight], 4, *table) for weight in LAMBDAS},
        "least_errors_of_4_takes": _best(-np.array(edits, dtype=float), 4, *table),
    }


def _best(
    scores_TN: NDArray[np.float64], num: int, heard_TN: NDArray[Any], edits_TN: NDArray[Any], num_words: int
) -> dict[str, float]:
    """Recall and WER of the best of `num` takes, over groups of so many."""
    groups = np.arange(len(scores_TN) // num * num).reshape(-1, num)
    places = np.arange(scores_TN.shape[1])
    kept = [group[scores_TN[group].argmax(axis=0)] for group in groups]
    return {
        "recall": round(float(np.mean([heard_TN[best, places].mean() for best in kept])), 4),
        "wer": round(float(np.mean([edits_TN[best, places].sum() / num_words for best in kept])), 4),
    }


if __name__ == "__main__":
    main()
