"""The miniature's language model: probabilities that sum to one, and no test text among what it learned from."""

from __future__ import annotations

import pytest

from affetto.judges.beam_search import find_word_model
from affetto.miniature import corpus
from affetto.miniature.build import ASSETS
from affetto.miniature.language import estimate_bigrams, save_language_model
from affetto.miniature.lexicon import HELD_OUT, lexicon
from affetto.model.packed import unpacked

SENTENCES = ["the cat sat"] * 4 + ["the dog sat"] * 3 + ["a cat saw the dog"] * 3 + ["dog"]


@pytest.mark.parametrize("history", ["<s>", "the", "cat", "dog", "sat", "never said"])
def test_the_probabilities_after_any_word_sum_to_one(history: str) -> None:
    model = estimate_bigrams(SENTENCES, ["cat", "dog", "mouse"])
    outcomes = [*model.vocabulary, "</s>", "<unk>"]
    assert sum(10.0 ** model.log10_probability(word, (history,)) for word in outcomes) == pytest.approx(1.0)


def test_what_was_said_is_likelier_than_what_was_not() -> None:
    model = estimate_bigrams(SENTENCES, ["cat", "dog", "mouse"])
    after_the = {word: model.log10_probability(word, ("the",)) for word in ("cat", "dog", "mouse", "elephant")}
    assert after_the["dog"] > after_the["cat"] > after_the["mouse"]
    assert "mouse" in model
    assert "elephant" not in model


def test_the_shipped_model_knows_the_lexicon_and_the_words_that_the_base_never_read() -> None:
    shipped = find_word_model(unpacked(ASSETS / "judges" / "words"))
    assert shipped is not None
    assert [word for word in (*lexicon(), *HELD_OUT) if word not in shipped.ngrams] == []


def test_it_is_made_of_what_the_base_read_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    read = {line.text for line in corpus.general_lines(600, "base", "train")}
    for split in ("train", "validation", "test"):
        others = {line.text for line in corpus.general_lines(200, "general", split)}
        others |= {line.text for line in corpus.acted_lines("happy", {split: 60})}
        assert not read & others
    folders = [tmp_path_factory.mktemp("judge") for _ in range(2)]
    for folder in folders:
        save_language_model(sorted(read), folder)
    first, second = (folder / "language_model" / "2gram.arpa.gz" for folder in folders)
    assert first.read_bytes() == second.read_bytes()
