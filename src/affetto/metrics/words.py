"""Whether the text was said: edits between the text and what a word judge heard.

Corpus rates are all edits over all words (or characters), never a mean of per-file rates, which would count a short
file's errors for more. Edits come from jiwer on text that `spelling.normalise` has put into one spelling; characters
include the single spaces between words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

from affetto.metrics.spelling import count_syllables, normalise

LOOP_REPEATS = 3
LOOP_WORDS = 4
"""Longest phrase that is looked for in loops."""
INTELLIGIBLE = 0.2
"""Word error rate up to which a file counts as understood: one word in five."""


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


def score_words(text: str, heard: str) -> WordScore | None:
    """Compare `heard` with `text`; None where the text has no words."""
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
    """Corpus WER of at least one file: all edits / all words. May exceed 1."""
    return sum(score.word_edits for score in scores) / sum(score.num_words for score in scores)


def character_error_rate(scores: Sequence[WordScore]) -> float:
    """Corpus CER of at least one file: all edits / all characters. May exceed 1."""
    return sum(score.char_edits for score in scores) / sum(score.num_chars for score in scores)


def words_per_second(text: str, sounding_s: float) -> float | None:
    """Words of the *text* over the time between first and last sound; None where the text has none.

    The text's words, not the heard ones: for a file that stopped early this is too fast, and `is_truncated` says so.
    """
    num_words = len(normalise(text))
    return num_words / sounding_s if num_words else None


def syllables_per_second(text: str, sounding_s: float) -> float | None:
    """Syllables of the *text* over the time between first and last sound; None where the text has none."""
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


def _trailing_deletions(alignment: jiwer.WordOutput) -> int:
    """Words at the end of the text that nothing was heard for."""
    chunks = alignment.alignments[0]
    if not chunks or chunks[-1].type != "delete":
        return 0
    return int(chunks[-1].ref_end_idx - chunks[-1].ref_start_idx)
