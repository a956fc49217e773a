"""The language model of the miniature's recogniser: bigrams of the base's training texts, and the lexicon's words.

No test text is among the base's texts (`corpus` keeps texts apart by family and split).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from affetto.files import write_json
from affetto.judges.ngrams import END, START, UNKNOWN, BackoffModel, Ngram, write_arpa
from affetto.miniature.lexicon import HELD_OUT, lexicon, plural

_DISCOUNT = 0.7
_LEAST_COUNT = 3
"""Least count of a listed pair of words; others are left to the single words' probabilities."""
_SETTINGS = {"alpha": 0.5, "beta": 1.5, "unk_score_offset": -10.0, "score_boundary": True}


def save_language_model(sentences: Iterable[str], folder: Path) -> None:
    """Write the model of `sentences` into the folder of a word judge (`language_model/`)."""
    vocabulary = {*map(str.lower, lexicon()), *HELD_OUT, *map(plural, HELD_OUT)}
    (folder / "language_model").mkdir(parents=True, exist_ok=True)
    write_arpa(estimate_bigrams(sentences, vocabulary), folder / "language_model" / "2gram.arpa.gz")
    write_json(folder / "language_model" / "attrs.json", _SETTINGS)


def estimate_bigrams(sentences: Iterable[str], vocabulary: Iterable[str]) -> BackoffModel:
    """Bigrams by absolute discounting (Ney, Essen & Kneser 1994), with the discounted mass going to the single words.

    Every word of `vocabulary` counts once more than it occurs, as does the unknown word. Pairs that occur less than
    three times aren't listed, and each history's back-off weight makes its probabilities sum to one.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    words: Counter[str] = Counter(dict.fromkeys((*sorted(vocabulary), UNKNOWN), 1))
    for sentence in sentences:
        said = (START, *sentence.lower().split(), END)
        words.update(said[1:])
        pairs.update(pairwise(said))
    total = words.total()
    single = {word: count / total for word, count in words.items()}

    by_history: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for (history, word), count in pairs.items():
        by_history[history][word] = count
    probabilities: dict[Ngram, float] = {(word,): math.log10(value) for word, value in single.items()}
    probabilities[(START,)] = -99.0
    backoffs: dict[Ngram, float] = {}
    for history, followers in by_history.items():
        num_seen = sum(followers.values())
        given_back = _DISCOUNT * len(followers) / num_seen
        listed = {
            word: (count - _DISCOUNT) / num_seen + given_back * single[word]
            for word, count in followers.items() if count >= _LEAST_COUNT
        }  # fmt: skip
        probabilities |= {(history, word): math.log10(value) for word, value in listed.items()}
        left, left_single = 1.0 - sum(listed.values()), 1.0 - sum(single[word] for word in listed)
        backoffs[(history,)] = math.log10(left / left_single)
    return BackoffModel(2, probabilities, backoffs)
