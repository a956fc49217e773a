"""CTC decoding with a word model: prefix beam search (Hannun et al. 2014, arXiv:1408.2873).

A prefix's score is ln p(letters | sound), summed over its alignments, + alpha · ln p(words) + beta · words; the
settings mean the same as in a `language_model/attrs.json` of transformers' Wav2Vec2ProcessorWithLM. Words that the
model doesn't list can be heard, at a penalty. With alpha, beta and penalty 0 it finds the likeliest letters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affetto.errors import JudgeError
from affetto.files import hash_file, hash_text, read_json
from affetto.judges.ngrams import END, START, BackoffModel, read_arpa

BEAM_WIDTH = 32
_BEAM_DEPTH = 12.0
"""Prefixes that are this many nats behind the best are dropped."""
_LEAST_TOKEN = -9.0
"""ln of the probability below which a token isn't tried."""
_NEVER = -math.inf
_LN_10 = math.log(10.0)

_Prefix = tuple[tuple[str, ...], str, int]
"""Complete words with `START`, letters of the incomplete word, last token."""


@dataclass(frozen=True)
class WordModel:
    """An n-gram model and its weights."""

    ngrams: BackoffModel
    alpha: float = 0.5
    """Weight of the model's log-probability."""
    beta: float = 1.5
    """Nats added per word, against the model's preference for few words."""
    unk_score_offset: float = -10.0
    """Added to log10 p of a word that the model doesn't list."""
    name: str = ""
    """Hash of its files."""

    @cached_property
    def beginnings(self) -> frozenset[str]:
        """All prefixes of all words in the vocabulary."""
        return frozenset(word[:end] for word in self.ngrams.vocabulary for end in range(1, len(word) + 1))

    @property
    def price_of_unknown(self) -> float:
        """Nats, negative, added for a word that isn't listed."""
        return self.alpha * self.unk_score_offset * _LN_10

    def score(self, word: str, words: tuple[str, ...]) -> float:
        """Nats for `word` after `words`."""
        penalty = 0.0 if word in self.ngrams else self.price_of_unknown
        return self.alpha * self.ngrams.log10_probability(word, words) * _LN_10 + self.beta + penalty

    def score_end(self, words: tuple[str, ...]) -> float:
        """Nats for ending after `words`."""
        return self.alpha * self.ngrams.log10_probability(END, words) * _LN_10


def find_word_model(folder: Path) -> WordModel | None:
    """The word model of a judge's folder: `language_model/*.arpa` or `.arpa.gz`, settings in attrs.json beside it.

    None if there is none; raises JudgeError if it can't be read, as KenLM's binary files can't.
    """
    folder = folder / "language_model"
    models = sorted([*folder.glob("*.arpa"), *folder.glob("*.arpa.gz")])
    if not models:
        if binaries := sorted(folder.glob("*.bin")):
            raise JudgeError(
                f"{binaries[0]} is a KenLM binary, which affetto doesn't read: put the .arpa that it was made from "
                f"beside it, or remove {folder} to hear without it"
            )
        return None
    if len(models) > 1:
        names = ", ".join(path.name for path in models)
        raise JudgeError(f"{folder} holds several language models ({names}): keep one")
    attrs = folder / "attrs.json"
    settings = read_json(attrs) if attrs.is_file() else {}
    try:
        chosen = {key: float(settings[key]) for key in ("alpha", "beta", "unk_score_offset") if key in settings}
    except (TypeError, ValueError) as error:
        raise JudgeError(f"{attrs}: alpha, beta and unk_score_offset must be numbers ({error})") from error
    name = hash_text(hash_file(models[0]), *(f"{key}={value}" for key, value in sorted(chosen.items())))
    return WordModel(read_arpa(models[0]), **chosen, name=name)


def decode(
    log_probs_TV: NDArray[np.floating], tokens: Sequence[str], blank: int, delimiter: int, model: WordModel,
    width: int = BEAM_WIDTH,
) -> str:  # fmt: skip
    """The likeliest words, by sound and `model` together, of natural log-probabilities (frames, tokens).

    `tokens` are the letters that each column stands for; `blank` and `delimiter` are the columns of CTC's blank and of
    the space between words.
    """
    beam: dict[_Prefix, _Score] = {((START,), "", -1): _Score(0.0, _NEVER, 0.0)}
    for row_V in log_probs_TV:
        tried = np.flatnonzero(row_V > _LEAST_TOKEN)
        columns = tried.tolist() if len(tried) else [int(row_V.argmax())]
        new: dict[_Prefix, _Score] = {}
        for prefix, score in beam.items():
            for column in columns:
                for longer, added in _extended(prefix, score, column, float(row_V[column]), tokens, blank, delimiter):
                    _merge(new, longer, added, prefix, score, model)
        beam = _pruned(new, model, width)
    ends: defaultdict[tuple[str, ...], float] = defaultdict(lambda: _NEVER)
    for (words, part, _), score in beam.items():
        whole = (*words, part) if part else words
        text = score.text + (model.score(part, words) if part else 0.0) + model.score_end(whole)
        ends[whole] = _added(ends[whole], score.sound + text)
    return " ".join(max(ends, key=lambda words: ends[words])[1:])


class _Score:
    """A prefix's ln p over alignments that end in a blank, ln p over the others, and nats for its words."""

    __slots__ = ("blank", "other", "text")

    def __init__(self, blank: float, other: float, text: float) -> None:
        self.blank, self.other, self.text = blank, other, text

    @property
    def sound(self) -> float:
        return _added(self.blank, self.other)


def _extended(
    prefix: _Prefix, score: _Score, column: int, value: float, tokens: Sequence[str], blank: int, delimiter: int
) -> Iterator[tuple[_Prefix, tuple[float, float]]]:
    """The prefixes that `prefix` becomes with one frame's token, each with the (blank, other) that it gets from it."""
    words, part, last = prefix
    if column == blank:
        yield prefix, (score.sound + value, _NEVER)
        return
    if column == last:
        # The same token goes on; repeating it needs a blank in between.
        yield prefix, (_NEVER, score.other + value)
    before = score.blank if column == last else score.sound
    if before == _NEVER:
        return
    if column != delimiter:
        yield (words, part + tokens[column], column), (_NEVER, before + value)
    else:
        yield ((*words, part) if part else words, "", column), (_NEVER, before + value)


def _merge(
    new: dict[_Prefix, _Score], longer: _Prefix, added: tuple[float, float], prefix: _Prefix, score: _Score,
    model: WordModel,
) -> None:  # fmt: skip
    merged = new.get(longer)
    if merged is None:
        words, part, _ = prefix
        is_complete = len(longer[0]) > len(words)
        new[longer] = _Score(*added, score.text + (model.score(part, words) if is_complete else 0.0))
    else:
        merged.blank, merged.other = _added(merged.blank, added[0]), _added(merged.other, added[1])


def _pruned(beam: dict[_Prefix, _Score], model: WordModel, width: int) -> dict[_Prefix, _Score]:
    ranked = sorted(((_rank(prefix, score, model), prefix) for prefix, score in beam.items()), reverse=True)[:width]
    least = ranked[0][0] - _BEAM_DEPTH
    return {prefix: beam[prefix] for rank, prefix in ranked if rank >= least}


def _rank(prefix: _Prefix, score: _Score, model: WordModel) -> float:
    """Score, with the penalty of an unknown word if the letters can only become one."""
    part = prefix[1]
    is_unknown = part != "" and part not in model.beginnings
    return score.sound + score.text + (model.price_of_unknown if is_unknown else 0.0)


def _added(first: float, second: float) -> float:
    """ln(e^first + e^second)."""
    if first < second:
        first, second = second, first
    return first if second == _NEVER else first + math.log1p(math.exp(second - first))
