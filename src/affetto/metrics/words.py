"""Whether the text was said: edits between the text and what a word judge heard.

Corpus rates are all edits over all words (or characters), never a mean of per-file rates, which would give a short
file's errors more weight. Edits come from jiwer on text normalised by `spelling.normalise`; characters include the
single spaces between words.

Whisper was evaluated the same way (Radford et al. 2022), but with a larger normaliser (`spelling` lists differences),
so rates are near published ones but not the same. jiwer minimises the number of edits, all at one cost; NIST's sclite
aligns at costs of 4 for a substitution and 3 for the others, which can split edits differently. The flags are affetto's
own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

from affetto.metrics import spelling
from affetto.metrics.spelling import count_syllables, normalise

LOOP_REPEATS = 3
LOOP_WORDS = 4
"""Longest phrase, in words, that loops are searched for."""
INTELLIGIBLE = 0.2
"""Word error rate up to which a file counts as understood: one word in five."""
EDITS = ("substitutions", "deletions", "insertions")
FLAGS = ("intelligible", "truncated", "repeated", "runaway")
RATES = ("words_per_s", "syllables_per_s", "seconds_per_word")


@dataclass(frozen=True)
class WordScore:
    """One file's edits and flags."""

    substitutions: int
    deletions: int
    insertions: int
    num_words: int
    """Number of words of the text."""
    char_edits: int
    num_chars: int
    is_truncated: bool
    """The end of the text was not heard: at least two words and a fifth of all."""
    is_repeated: bool
    """A phrase of up to four words was heard at least three times in a row, more often than in the text."""
    is_runaway: bool
    """Far more was heard than the text has: over one and a half times its words, plus two."""

    @property
    def word_edits(self) -> int:
        """Substitutions, deletions and insertions of words."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def is_intelligible(self) -> bool:
        """Whether there are at most `INTELLIGIBLE` edits per word."""
        return self.word_edits <= INTELLIGIBLE * self.num_words

    def to_values(self) -> dict[str, float]:
        """One file's values by their names in the results; flags are 0 or 1."""
        return {
            "wer": word_error_rate([self]), "cer": character_error_rate([self]),
            "word_edits": self.word_edits, "num_words": self.num_words,
            "char_edits": self.char_edits, "num_chars": self.num_chars,
            **{name: getattr(self, name) for name in EDITS},
            **{name: int(getattr(self, f"is_{name}")) for name in FLAGS},
        }  # fmt: skip


def validate(texts: Sequence[str], heard: Sequence[str], sounding_s: Sequence[float] | None = None) -> None:
    """Raise ValueError unless these are equally many strings and, if given, positive times in seconds."""
    for name, strings in (("texts", texts), ("heard", heard)):
        if isinstance(strings, str):
            raise ValueError(f"{name} must be a list of strings, one per file, not one string; put it into a list")
        for string in strings:
            spelling.validate(string)
    if len(texts) != len(heard):
        raise ValueError(f"{len(texts)} texts and {len(heard)} transcripts; give one of each per file, '' for silence")
    if sounding_s is None:
        return
    if len(sounding_s) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(sounding_s)} times; give one of each per file")
    for time_s in sounding_s:
        _check_time(time_s)


def evaluate(
    texts: Sequence[str], heard: Sequence[str], sounding_s: Sequence[float] | None = None
) -> dict[str, float | None]:
    """All metrics over files that should say `texts` and in which `heard` was heard, named as the results' aggregates.

    `wer` and `cer` are corpus rates, `EDITS` are per word of the corpus, `FLAGS` are shares of the files, `RATES` are
    means over files; `sounding_s` has each file's seconds between first and last sound. Files whose text has no words
    are left out; a value that no file has is None. ValueError as in `validate`.
    """
    validate(texts, heard, sounding_s)
    scores = [score for score in map(score_words, texts, heard) if score is not None]
    rates = [] if sounding_s is None else [rate_values(*file) for file in zip(texts, sounding_s, strict=True)]
    by_name = {name: [value for rate in rates if (value := rate[name]) is not None] for name in RATES}
    means = {name: sum(values) / len(values) if values else None for name, values in by_name.items()}
    return {**_pooled(scores), **means}


def score_words(text: str, heard: str) -> WordScore | None:
    """Compare `heard` with `text`; None if the text has no words."""
    expected, actual = normalise(text), normalise(heard)
    if not expected:
        return None
    by_word = jiwer.process_words(" ".join(expected), " ".join(actual))
    by_char = jiwer.process_characters(" ".join(expected), " ".join(actual))
    num_missing = _trailing_deletions(by_word)
    loops = longest_loop(actual)
    return WordScore(
        substitutions=by_word.substitutions,
        deletions=by_word.deletions,
        insertions=by_word.insertions,
        num_words=len(expected),
        char_edits=by_char.substitutions + by_char.deletions + by_char.insertions,
        num_chars=len(" ".join(expected)),
        is_truncated=num_missing >= max(2, math.ceil(0.2 * len(expected))),
        is_repeated=loops >= LOOP_REPEATS and loops > longest_loop(expected),
        is_runaway=len(actual) > 1.5 * len(expected) + 2,
    )


def word_error_rate(scores: Sequence[WordScore]) -> float:
    """Corpus WER: all edits / all words. May exceed 1. ValueError without a score."""
    _check_scores(scores)
    return sum(score.word_edits for score in scores) / sum(score.num_words for score in scores)


def character_error_rate(scores: Sequence[WordScore]) -> float:
    """Corpus CER: all edits / all characters. May exceed 1. ValueError without a score."""
    _check_scores(scores)
    return sum(score.char_edits for score in scores) / sum(score.num_chars for score in scores)


def rate_values(text: str, sounding_s: float) -> dict[str, float | None]:
    """`RATES` of one file, None if the text has no words. ValueError as in `words_per_second`."""
    words_per_s = words_per_second(text, sounding_s)
    return {
        "words_per_s": words_per_s,
        "syllables_per_s": syllables_per_second(text, sounding_s),
        "seconds_per_word": None if words_per_s is None else 1 / words_per_s,
    }


def words_per_second(text: str, sounding_s: float) -> float | None:
    """Words of the *text* over the time between first and last sound; None if the text has none.

    The text's words, not the heard ones: for a file that stopped early the rate is too high, and `is_truncated` is set.
    ValueError if the time isn't positive.
    """
    _check_time(sounding_s)
    num_words = len(normalise(text))
    return num_words / sounding_s if num_words else None


def syllables_per_second(text: str, sounding_s: float) -> float | None:
    """The same for syllables of the *text*. ValueError as in `words_per_second`."""
    _check_time(sounding_s)
    num_syllables = sum(count_syllables(word) for word in normalise(text))
    return num_syllables / sounding_s if num_syllables else None


def longest_loop(words: Sequence[str]) -> int:
    """Most repetitions in a row of one phrase of 1 to `LOOP_WORDS` words; 0 without words."""
    most = min(1, len(words))
    for size in range(1, LOOP_WORDS + 1):
        matched = 0
        for index in range(size, len(words)):
            matched = matched + 1 if words[index] == words[index - size] else 0
            most = max(most, matched // size + 1)
    return most


def _pooled(scores: Sequence[WordScore]) -> dict[str, float | None]:
    if not scores:
        return dict.fromkeys(("wer", "cer", *EDITS, *FLAGS))
    num_words = sum(score.num_words for score in scores)
    return {
        "wer": word_error_rate(scores),
        "cer": character_error_rate(scores),
        **{name: sum(getattr(score, name) for score in scores) / num_words for name in EDITS},
        **{name: sum(getattr(score, f"is_{name}") for score in scores) / len(scores) for name in FLAGS},
    }


def _check_scores(scores: Sequence[WordScore]) -> None:
    if not scores:
        raise ValueError("an error rate needs at least one file whose text has words; none was scored")


def _check_time(sounding_s: float) -> None:
    if not 0 < sounding_s < math.inf:
        raise ValueError(f"the sounding time must be a positive number of seconds, not {sounding_s}; leave it out")


def _trailing_deletions(alignment: jiwer.WordOutput) -> int:
    """Number of words at the end of the text that were not heard."""
    chunks = alignment.alignments[0]
    if not chunks or chunks[-1].type != "delete":
        return 0
    return int(chunks[-1].ref_end_idx - chunks[-1].ref_start_idx)
