from __future__ import annotations

from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from affetto.metrics import spelling
from affetto.metrics.spelling import normalise, number_words
from affetto.metrics.words import evaluate

LJSPEECH = Path(__file__).resolve().parents[3] / "shared" / "data" / "LJSpeech-1.1" / "metadata.csv"
WHISPER = EnglishTextNormalizer({"colour": "color", "favourite": "favorite"})


def ours(text: str) -> str:
    return " ".join(normalise(text))


def theirs(text: str) -> str:
    return str(WHISPER(text)).strip()


SAME = (
    "[LAUGHTER] Um, hello there", "(laughs) No!", "well, hmm... okay", "mm-hmm", "uh-huh", "Mhm. Mmm?", "", "um",
    "a[noise]b", "colo(u)r", "<unk> the <b>end</b>", "() it [] is <>", "not (closed", "nor [this", "a < b",
    "I can't, you won't, we don't.", "They'd've gone; they'll've left", "I'm sure we're right, aren't we?",
    "Let's go, y'all.", "I'm gonna, wanna, gotta", "it's what he's said", "Mr. Smith and Dr. Who", "Mrs. Jones",
    'She said "well-known" - twice!', "snake_case, a/b, e-mail", "the dogs' bowls", "my favourite colour", "umbrella",
    "the one", "HELLO   there\n",
)  # fmt: skip
"""Both write the same."""
SAME_NUMBERS = (
    "It cost $1,250.", "twenty-one", "one hundred and five men", "50%", "50 percent", "the 3rd of May", "3.14", "1985",
    "two thirds", "half past 3", "5 mm", "1,234,567", "the 21st", "the twenty first", "a 3-year-old", "2 and a half",
    "£5 and €10", "$3.50", "one thousand and one nights", "um 5 uh 6", "[1] two", "0",
)  # fmt: skip
"""Theirs has digits, and these are the same numbers."""
DIFFERENT = {
    "nineteen eighty five": ("nineteen eighty five", "1985"),
    "thirteen hundred": ("thirteen hundred", "1300"),
    "oh seven": ("oh seven", "07"),
    "007": ("zero zero seven", "7"),
    "John's dog": ("johns dog", "john is dog"),
    "he's gone": ("he is gone", "he has gone"),
    "we'd been there": ("we would been there", "we had been there"),
    "salt & pepper": ("salt and pepper", "salt pepper"),
    "It’s late": ("it is late", "it s late"),
    "I 'm": ("i m", "i am"),
    "shan't": ("shall not", "sha not"),
    "hmm...": ("", "."),
    "ain't": ("is not", "aint"),
    "cannot": ("can not", "cannot"),
    "ok": ("okay", "ok"),
    "o'clock": ("oclock", "0 clock"),
    "prof": ("prof", "professor"),
    "woulda": ("woulda", "would have"),
    "ma'am": ("maam", "madam"),
    "café": ("café", "cafe"),
}
"""Where ours differs on purpose, as its docstring says: what ours and theirs write."""


@pytest.mark.parametrize("text", SAME)
def test_both_normalisers_write_the_same(text: str) -> None:
    assert ours(text) == theirs(text)


@pytest.mark.parametrize("text", SAME_NUMBERS)
def test_both_normalisers_read_the_same_numbers(text: str) -> None:
    assert ours(text) == ours(theirs(text))


@pytest.mark.parametrize("text", DIFFERENT)
def test_the_normalisers_differ_only_as_stated(text: str) -> None:
    assert (ours(text), theirs(text)) == DIFFERENT[text]


_PARTS = st.sampled_from([
    "dogs", "The", "can't", "won't", "we're", "they'll", "I've", "isn't", "let's", "I'd", "Mr.", "colour", "well-known",
    "um", "Uh,", "hmm.", "mm", "mhm", "MMM!", "[LAUGHTER]", "(she laughs)", "<unk>", "[a, b]", "—", "yes;", "“no”",
])  # fmt: skip


@given(st.lists(_PARTS, max_size=10).map(" ".join))
@settings(deadline=None)
def test_both_normalisers_write_the_same_whatever_stands_together(text: str) -> None:
    assert ours(text) == theirs(text)


@given(st.integers(0, 999_999))
@settings(deadline=None)
def test_both_normalisers_read_the_same_number_words(value: int) -> None:
    said = number_words(str(value))
    assert ours(theirs(said)) == said


def test_asides_and_hesitations_are_no_errors() -> None:
    assert evaluate(["hello there"], ["[LAUGHTER] Um, hello (coughs) there <unk> hmm"])["wer"] == 0


def test_evaluate_counts_words_and_syllables() -> None:
    assert spelling.evaluate("[sighs] Um, it's 21 tables.") == {"num_words": 5, "num_syllables": 7}


@pytest.mark.parametrize("text", [b"bytes", None, 3, ["a", "list"]])
def test_what_is_no_text_is_refused(text: object) -> None:
    for check in (spelling.validate, spelling.evaluate):
        with pytest.raises(ValueError, match=f"string, not {type(text).__name__}"):
            check(text)


@pytest.mark.skipif(not LJSPEECH.is_file(), reason="the texts of shared/data aren't beside this checkout")
def test_word_errors_of_real_texts_hardly_depend_on_the_normaliser() -> None:
    texts = [line.split("|")[1] for line in LJSPEECH.read_text(encoding="utf-8").splitlines()]
    heard = [_misheard(text, np.random.default_rng(index)) for index, text in enumerate(texts)]
    reference = jiwer.wer([theirs(text) for text in texts], [theirs(text) for text in heard])
    assert 0.1 < reference < 0.3
    assert evaluate(texts, heard)["wer"] == pytest.approx(reference, abs=0.005)
    assert evaluate(texts, texts)["wer"] == 0


def _misheard(text: str, rng: np.random.Generator) -> str:
    """`text` with a tenth of its words lost and a tenth replaced, and hesitations and asides in it."""
    heard: list[str] = []
    for word in text.split():
        chance = rng.random()
        heard += (
            [] if chance < 0.1 else ["banana"] if chance < 0.2 else ["um,", "[noise]", word] if chance < 0.3 else [word]
        )
    return " ".join(heard)
