"""The miniature's words and sentences: enough of them, none that gives the test away."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from affetto.audio.splits import normalise_text
from affetto.miniature import corpus
from affetto.miniature.corpus import acted_lines, general_lines, held_out_word_texts, judging_lines
from affetto.miniature.grammar import Grammar
from affetto.miniature.lexicon import COUNTABLE, HELD_OUT, INTRANSITIVE, NOUNS, TRANSITIVE, lexicon, plural
from affetto.types import EMOTIONS

EMOTIONAL = ("happ", "sad", "ang", "fear", "surpris", "neutral", "joy", "glad", "afraid", "furious", "scare")
"""Beginnings of words that name what an evaluation sentence is spoken with."""
EXCEPTIONS = {"saddle", "saddles"}


def every_line() -> dict[str, set[str]]:
    """Texts of each family and split, many more than any run asks for."""
    streams: dict[str, list[corpus.Line]] = {}
    for split in ("train", "validation", "test"):
        streams[f"base/{split}"] = list(general_lines(300, "base", split))
        streams[f"general/{split}"] = list(general_lines(300, "general", split))
        streams[f"acted/{split}"] = list(acted_lines("happy", {split: 100}))
        streams[f"judging/{split}"] = list(judging_lines(300, split, 0.3))
    return {name: {normalise_text(line.text) for line in lines} for name, lines in streams.items()}


@pytest.fixture(scope="module")
def texts() -> dict[str, set[str]]:
    return every_line()


def test_enough_words() -> None:
    assert len(lexicon()) >= 1500


def test_words_are_plain_lower_case() -> None:
    assert all(word.isascii() and word.isalpha() and word == word.lower() for word in lexicon())
    assert len(set(NOUNS)) == len(NOUNS)
    assert len(set(HELD_OUT)) == len(HELD_OUT)


def test_no_word_names_an_emotion() -> None:
    named = {word for word in lexicon() if word.startswith(EMOTIONAL)} - EXCEPTIONS
    assert not named
    assert lexicon().isdisjoint(EMOTIONS)


def test_held_out_words_are_in_no_text(texts: dict[str, set[str]]) -> None:
    held = {*HELD_OUT, *(plural(word) for word in HELD_OUT)}
    assert held.isdisjoint(lexicon())
    for name, sentences in texts.items():
        assert len(sentences) >= 90
        assert held.isdisjoint(word for sentence in sentences for word in sentence.split()), name


@pytest.mark.parametrize(
    ("noun", "wanted"),
    [
        ("cat", "cats"), ("bus", "buses"), ("box", "boxes"), ("watch", "watches"), ("dish", "dishes"), ("toy", "toys"),
        ("city", "cities"), ("key", "keys"), ("potato", "potatoes"), ("photo", "photos"), ("dress", "dresses"),
    ],
)  # fmt: skip
def test_plural(noun: str, wanted: str) -> None:
    assert noun in COUNTABLE
    assert plural(noun) == wanted


def test_verbs_have_four_forms() -> None:
    for base, third, _, ing in (*TRANSITIVE, *INTRANSITIVE):
        assert third.endswith("s")
        assert ing.endswith("ing")
        assert third[0] == ing[0] == base[0]


def test_grammar_says_only_known_words() -> None:
    grammar = Grammar(random.Random(5))
    known = lexicon() | {"an", "these", "those", "here", "felt", "seemed", "looked", "did", "be", "been", "had"}
    strange = {word for text in grammar.sentences(3000) for word in text.lower().split()} - known
    assert not strange


def test_sentences_have_the_promised_shape() -> None:
    for text in Grammar(random.Random(1)).sentences(2000):
        assert 10 <= len(text) <= 58
        assert 2 <= len(text.split()) <= 12
        assert text[0].isupper()
        assert text == " ".join(text.split())


def test_the_seed_decides_the_sentences() -> None:
    one, same, other = (list(Grammar(random.Random(seed)).sentences(50)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert len(set(one)) == 50


def test_avoided_sentences_are_not_said() -> None:
    said = set(Grammar(random.Random(1)).sentences(20))
    assert said.isdisjoint(Grammar(random.Random(1)).sentences(20, avoid=said))


def test_no_text_is_in_two_families_or_splits(texts: dict[str, set[str]]) -> None:
    assert len(texts) == 12
    for one, other in combinations(texts, 2):
        assert texts[one].isdisjoint(texts[other]), (one, other)


def test_more_lines_begin_with_the_same_ones() -> None:
    assert list(general_lines(30, "base", "train"))[:10] == list(general_lines(10, "base", "train"))


def test_general_speech_is_plain_and_spread_over_the_voices() -> None:
    lines = list(general_lines(60, "general", "test"))
    assert {line.emotion for line in lines} == {corpus.PLAIN}
    assert {line.speaker for line in lines} == {str(number) for number in range(len(corpus.VOICES))}
    assert len({line.id for line in lines}) == len(lines)
    assert {line.split for line in lines} == {"test"}


def test_only_actors_act() -> None:
    lines = [line for emotion in corpus.EMOTIONS for line in acted_lines(emotion, {"train": 5, "test": 3})]
    assert {line.voice for line in lines} == {corpus.VOICES[actor] for actor in corpus.ACTORS}
    assert {line.speaker for line in lines} == {str(actor) for actor in corpus.ACTORS}
    assert {line.strength for line in lines} == set(corpus.STRENGTHS)
    assert len({line.id for line in lines}) == len(lines)
    by_emotion = {emotion: {line.text for line in lines if line.emotion == emotion} for emotion in corpus.EMOTIONS}
    assert all(said == by_emotion["happy"] for said in by_emotion.values()), "the words must not tell the emotion"
    assert corpus.EMOTIONS == EMOTIONS


def test_judges_hear_neither_actors_nor_their_strengths() -> None:
    lines = list(judging_lines(600, "train", 0.3))
    actors = {corpus.VOICES[actor] for actor in corpus.ACTORS}
    assert actors.isdisjoint(line.voice for line in lines)
    assert len(set(corpus.JUDGING_VOICES)) == 18
    assert set(corpus.STRENGTHS).isdisjoint(line.strength for line in lines)
    assert {line.speaker for line in lines}.isdisjoint(str(number) for number in range(len(corpus.VOICES)))
    assert {line.emotion for line in lines} == {*corpus.EMOTIONS, corpus.PLAIN}
    share = sum(line.emotion == corpus.PLAIN for line in lines) / len(lines)
    assert share == pytest.approx(0.3, abs=0.06)


def test_sentences_with_held_out_words_have_them() -> None:
    said = held_out_word_texts(80)
    assert len(said) == len(set(said)) == 80
    held = {*HELD_OUT, *(plural(word) for word in HELD_OUT)}
    for text in said:
        assert held & set(text.split()), text
    used = {word for text in said for word in text.split()} & set(HELD_OUT)
    assert len(used) > len(HELD_OUT) / 2, "most held-out words should be tested"
