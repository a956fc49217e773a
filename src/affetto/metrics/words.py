"""Whether the text was said: edits between the text and what a word judge heard.

Corpus rates are all edits over all words (or characters), never a mean of per-file rates, which would count a short
file's errors for more. Edits come from jiwer on text that `spelling.normalise` has put into one spelling; characters
include the single spaces between words.

That is how Whisper was evaluated (Radford et al. 2022), with a smaller normaliser (`spelling` says where they differ),
so rates are near published ones and not the same. jiwer finds the fewest edits, all of one cost; NIST's sclite aligns
at costs of 4 for a substitution and 3 for the others, which can split edits otherwise. The flags are affetto's own.
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
"""Longest phrase that is looked for in loops."""
INTELLIGIBLE = 0.2
"""Word error rate up to which a file counts as understood: one word in five."""
EDITS = ("substitutions", "deletions", "insertions")
FLAGS = ("intelligible", "truncated", "repeated", "runaway")
RATES = ("words_per_s", "syllables_per_s", "seconds_per_word")


@dataclass(frozen=True)
class WordScore:
    """One file's edits and what went wrong with its words."""

    substitutions: int
    deletions: int
    insertions: int
    num_words: int
    """Words of the text."""
    char_edits: int
    num_chars: int
    is_truncated: bool
    """The end of the text was not heard: at least two words and a fifth of them."""
    is_repeated: bool
    """A phrase of up to four words came at least three times in a row, more often than in the text."""
    is_runaway: bool
    """Far more was said than the text has: over one and a half times its words, plus two."""

    @property
    def word_edits(self) -> int:
        """Substitutions, deletions and insertions of words."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def is_intelligible(self) -> bool:
        """Whether nearly all was understood: at most `INTELLIGIBLE` edits per word."""
        return self.word_edits <= INTELLIGIBLE * self.num_words

    def to_values(self) -> dict[str, float]:
        """One file's values under the results' names; flags are 0 or 1."""
        return {
            "wer": word_error_rate([self]), "cer": character_error_rate([self]),
            "word_edits": self.word_edits, "num_words": self.num_words,
            "char_edits": self.char_edits, "num_chars": self.num_chars,
            **{name: getattr(self, name) for name in EDITS},
            **{name: int(getattr(self, f"is_{name}")) for name in FLAGS},
        }  # fmt: skip


def validate(texts: Sequence[str], heard: Sequence[str], sounding_s: Sequence[float] | None = None) -> None:
    """Raise ValueError if these aren't equally many strings, and positive times in seconds if given."""
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
    """All metrics over files that should say `texts` and in which `heard` was, named as the results' aggregates.

    `wer` and `cer` are corpus rates, `EDITS` are per word of the corpus, `FLAGS` shares of the files, `RATES` means of
    theirs, where `sounding_s` has each file's seconds between first and last sound. Files whose text has no words enter
    nothing; what no file has is None. ValueError as `validate`.
    """
    validate(texts, heard, sounding_s)
    scores = [score for score in map(score_words, texts, heard) if score is not None]
    rates = [] if sounding_s is None else [rate_values(*file) for file in zip(texts, sounding_s, strict=True)]
    known = {name: [value for rate in rates if (value := rate[name]) is not None] for name in RATES}
    return {**_pooled(scores), **{name: sum(each) / len(each) if each else None for name, each in known.items()}}


def score_words(text: str, heard: str) -> WordScore | None:
    """Compare `heard` with `text`; None if the text has no words."""
    wanted, got = normalise(text), normalise(heard)
    if not wanted:
        return None
    by_word = jiwer.process_words(" ".join(wanted), " ".join(got))
    by_char = jiwer.process_characters(" ".join(wanted), " ".join(got))
    num_missing = _trailing_deletions(by_word)
    loops = longest_loop(got)
    return WordScore(
        substitutions=by_word.substitutions,
        deletions=by_word.deletions,
        insertions=by_word.insertions,
        num_words=len(wanted),
        char_edits=by_char.substitutions + by_char.deletions + by_char.insertions,
        num_chars=len(" ".join(wanted)),
        is_truncated=num_missing >= max(2, math.ceil(0.2 * len(wanted))),
        is_repeated=loops >= LOOP_REPEATS and loops > longest_loop(wanted),
        is_runaway=len(got) > 1.5 * len(wanted) + 2,
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
    """`RATES` of one file, None if the text has no words. ValueError as `words_per_second`."""
    words_per_s = words_per_second(text, sounding_s)
    return {
        "words_per_s": words_per_s,
        "syllables_per_s": syllables_per_second(text, sounding_s),
        "seconds_per_word": None if words_per_s is None else 1 / words_per_s,
    }


def words_per_second(text: str, sounding_s: float) -> float | None:
    """Words of the *text* over the time between first and last sound; None if the text has none.

    The text's words, not the heard ones: for a file that stopped early this is too fast, and `is_truncated` says so.
    ValueError if the time isn't positive.
    """
    _check_time(sounding_s)
    num_words = len(normalise(text))
    return num_words / sounding_s if num_words else None


def syllables_per_second(text: str, sounding_s: float) -> float | None:
    """The same for syllables of the *text*. ValueError as `words_per_second`."""
    _check_time(sounding_s)
    num_syllables = sum(count_syllables(word) for word in normalise(text))
    return num_syllables / sounding_s if num_syllables else None


def longest_loop(words: Sequence[str]) -> int:
    """Most times in a row that one phrase of 1 to `LOOP_WORDS` words comes; 0 without words."""
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
        raise ValueError(f"the time that sounds must be a positive number of seconds, not {sounding_s}; leave it out")


def _trailing_deletions(alignment: jiwer.WordOutput) -> int:
    """Words at the end of the text that nothing was heard for."""
    chunks = alignment.alignments[0]
    if not chunks or chunks[-1].type != "delete":
        return 0
    return int(chunks[-1].ref_end_idx - chunks[-1].ref_start_idx)
