"""An open grammar over the lexicon: endless plain sentences, the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

from affetto.miniature import lexicon as words

_SUBJECT_PRONOUNS = ("I", "you", "he", "she", "we", "they", "it")
_OBJECT_PRONOUNS = ("me", "you", "him", "her", "us", "them", "it")


class Grammar:
    """Draws sentences of three to nine words from `rng`.

    `nouns` replaces the lexicon's nouns, which is how the pronunciation test puts held-out words
    into sentences that are otherwise familiar.
    """

    def __init__(self, rng: random.Random, nouns: tuple[str, ...] | None = None) -> None:
        self.rng = rng
        self.nouns = nouns or words.NOUNS
        self.countable = nouns or words.COUNTABLE

    def sentence(self) -> str:
        """One sentence, capitalised and without punctuation."""
        shapes = (self._statement, self._past_place, self._question, self._order, self._is, self._two)
        weights = (30, 25, 12, 10, 13, 10)
        text = self.rng.choices(shapes, weights)[0]()
        return text[0].upper() + text[1:]

    def sentences(self, count: int, avoid: frozenset[str] | set[str] = frozenset()) -> Iterator[str]:
        """`count` different sentences, none of them in `avoid`."""
        seen: set[str] = set()
        while len(seen) < count:
            text = self.sentence()
            if text not in seen and text not in avoid and 10 <= len(text) <= 58:
                seen.add(text)
                yield text

    def _pick(self, options: tuple[str, ...]) -> str:
        return self.rng.choice(options)

    def _noun_phrase(self) -> str:
        kind = self.rng.random()
        if kind < 0.14:
            return f"{self._pick(words.NUMBERS)} {self._adjective()}{words.plural(self._pick(self.countable))}"
        if kind < 0.30:
            determiner = self._pick(("the", "my", "your", "our", "their", "some", "many", "these", "those"))
            return f"{determiner} {self._adjective()}{words.plural(self._pick(self.countable))}"
        if kind < 0.36:
            return self._pick(words.NAMES)
        determiner = self._pick(words.DETERMINERS) if self.rng.random() < 0.55 else "the"
        rest = f"{self._adjective()}{self._pick(self.nouns)}"
        if determiner == "a":
            determiner = "an" if _starts_with_vowel_sound(rest) else "a"
        return f"{determiner} {rest}"

    def _adjective(self) -> str:
        return f"{self._pick(words.ADJECTIVES)} " if self.rng.random() < 0.45 else ""

    def _subject(self) -> str:
        kind = self.rng.random()
        if kind < 0.3:
            return self._pick(_SUBJECT_PRONOUNS)
        if kind < 0.5:
            return self._pick(words.NAMES)
        return self._noun_phrase()

    def _place(self) -> str:
        return f"{self._pick(words.PREPOSITIONS)} {self._noun_phrase()}"

    def _tail(self) -> str:
        kind = self.rng.random()
        if kind < 0.25:
            return f" {self._pick(words.ADVERBS)}"
        return f" {self._place()}" if kind < 0.6 else ""

    def _object(self) -> str:
        return self._pick(_OBJECT_PRONOUNS) if self.rng.random() < 0.12 else self._noun_phrase()

    def _statement(self) -> str:
        verb = self.rng.choice(words.TRANSITIVE)
        form = self.rng.random()
        if form < 0.6:
            head = verb[2]
        elif form < 0.8:
            helpers = ("will", "can", "could", "should", "must", "would", "may", "did not", "will not")
            head = f"{self._pick(helpers)} {verb[0]}"
        else:
            head = f"{self._pick(('had been', 'will be', 'must be'))} {verb[3]}"
        return f"{self._subject()} {head} {self._object()}{self._tail()}"

    def _past_place(self) -> str:
        verb = self.rng.choice(words.INTRANSITIVE)
        return f"{self._subject()} {verb[2]} {self._place()}{self._tail() if self.rng.random() < 0.3 else ''}"

    def _question(self) -> str:
        verb = self.rng.choice(words.TRANSITIVE)
        if self.rng.random() < 0.5:
            return (
                f"{self._pick(('did', 'can', 'will', 'should', 'could'))} {self._subject()} {verb[0]} {self._object()}"
            )
        opening = self._pick(("where", "when", "why", "how", "what"))
        return f"{opening} did {self._subject()} {self.rng.choice(words.INTRANSITIVE)[0]}{self._tail()}"

    def _order(self) -> str:
        verb = self.rng.choice(words.TRANSITIVE)
        opening = self._pick(("please ", "", "never ", "always ", "just "))
        return f"{opening}{verb[0]} {self._object()}{self._tail()}"

    def _is(self) -> str:
        if self.rng.random() < 0.4:
            there = self._pick(("there stood", "there lay", "here came"))
            return f"{there} {self._noun_phrase()} {self._place()}"
        link = self._pick(("had been", "seemed", "looked", "felt", "stayed"))
        degree = self._pick(("", "", "very ", "too ", "quite ", "almost ", "not "))
        return f"{self._noun_phrase()} {link} {degree}{self._pick(words.ADJECTIVES)}"

    def _two(self) -> str:
        first, second = self.rng.choice(words.INTRANSITIVE), self.rng.choice(words.TRANSITIVE)
        joint = self._pick(("and", "but", "because", "when", "while", "so"))
        one, other = self._pick(_SUBJECT_PRONOUNS), self._pick(_SUBJECT_PRONOUNS)
        return f"{one} {first[2]} {joint} {other} {second[2]} {self._object()}"


def _starts_with_vowel_sound(phrase: str) -> bool:
    word = phrase.split()[0]
    return word.startswith(("hour", "honest")) or (word[0] in "aeiou" and not word.startswith(("us", "uni")))
