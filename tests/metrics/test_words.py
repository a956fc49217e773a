from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.metrics import words
from affetto.metrics.spelling import count_syllables, normalise, number_words, ordinal_words

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: value for value, word in enumerate(_SMALL)} | {
    word: 10 * (index + 2) for index, word in enumerate(_TENS)
}


def _value(text: str) -> int:
    """Number of English words, read from the left: an inverse that shares no code with the writer."""
    total = part = 0
    for word in text.split():
        if word == "thousand":
            total, part = total + 1000 * part, 0
        elif word == "hundred":
            part *= 100
        else:
            part += _VALUES[word]
    return total + part


@given(st.integers(0, 999_999))
def test_number_words_can_be_read_back(value: int) -> None:
    assert _value(number_words(str(value))) == value


@pytest.mark.parametrize(
    ("digits", "said"),
    [
        ("0", "zero"),
        ("19", "nineteen"),
        ("40", "forty"),
        ("100", "one hundred"),
        ("999999", "nine hundred ninety nine thousand nine hundred ninety nine"),
        ("1000000", "one zero zero zero zero zero zero"),
        ("007", "zero zero seven"),
    ],
)
def test_number_words_at_the_edges(digits: str, said: str) -> None:
    assert number_words(digits) == said


@pytest.mark.parametrize(
    ("digits", "said"),
    [("1", "first"), ("12", "twelfth"), ("20", "twentieth"), ("21", "twenty first"), ("4", "fourth")],
)
def test_ordinals(digits: str, said: str) -> None:
    assert ordinal_words(digits) == said


@pytest.mark.parametrize(
    ("written", "also"),
    [
        ("Kids are talking, by the door!", "kids are talking by the door"),
        ("I can't; you won't. It’s late.", "i can not you will not it is late"),
        ("They'd've gone", "they would have gone"),
        ("John's dogs' bowls", "johns dogs bowls"),
        ("My favourite colour is grey", "my favorite color is gray"),
        ("105 men", "one hundred and five men"),
        ("salt and five eggs", "salt and 5 eggs"),
        ("It cost $1,250.", "it cost one thousand two hundred fifty dollars"),
        ("the 3rd of May", "the third of may"),
        ("3.14", "three point one four"),
        ("Mr. Smith & Dr. Who", "mister smith and doctor who"),
        ("twenty-one", "21"),
        ("50%", "fifty percent"),
        ("ＨＥＬＬＯ", "hello"),
        ("…", ""),
    ],
)
def test_one_spelling_for_the_same_words(written: str, also: str) -> None:
    assert normalise(written) == normalise(also)


def test_different_words_stay_different() -> None:
    pairs = [("can", "can't"), ("fifteen", "50"), ("one hundred", "one thousand"), ("salt and five", "salt five")]
    assert all(normalise(one) != normalise(other) for one, other in pairs)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=300)
def test_normalising_again_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(" ".join(once)) == once


@given(st.text(alphabet="abc '0129,.$%-_&", max_size=30))
def test_what_is_left_is_words(text: str) -> None:
    assert all(re.fullmatch("[a-z]+", word) for word in normalise(text))


def _levenshtein(one: list[str], other: list[str]) -> int:
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


_SENTENCES = st.lists(st.sampled_from(["dogs", "are", "sitting", "by", "the", "door"]), max_size=7).map(" ".join)


@given(_SENTENCES.filter(bool), _SENTENCES)
def test_edits_are_levenshteins(text: str, heard: str) -> None:
    score = words.score_words(text, heard)
    assert score is not None
    assert score.word_edits == _levenshtein(text.split(), heard.split())
    assert score.char_edits == _levenshtein(list(text), list(heard))
    assert (score.num_words, score.num_chars) == (len(text.split()), len(text))


def test_pitfall_27_corpus_rates_are_sums_over_sums() -> None:
    pairs = [("stop", "top"), ("the dogs are sitting by the old door", "the dogs are sitting by the old door")]
    scores = [score for text, heard in pairs if (score := words.score_words(text, heard)) is not None]
    assert words.word_error_rate(scores) == 1 / 9
    assert words.character_error_rate(scores) == 1 / (4 + 36)
    assert words.word_error_rate(scores) != pytest.approx((1 + 0) / 2), "a mean of rates would be 0.5"


def test_a_text_without_words_has_no_score() -> None:
    assert words.score_words("…!", "hello") is None
    assert words.words_per_second("…!", 2.0) is None


@pytest.mark.parametrize(
    ("heard", "flags"),
    [
        ("the dogs are sitting by the old door", (False, False, False)),
        ("the dogs are sitting by", (True, False, False)),
        ("", (True, False, False)),
        ("the dogs are sitting by the old", (False, False, False)),
        ("the dogs are sitting sitting sitting by the old door", (False, True, False)),
        ("the dogs are sitting by the old door by the old door by the old door", (False, True, True)),
        ("the dogs are sitting by the old door and then they all went home to eat", (False, False, True)),
    ],
)
def test_flags_say_what_went_wrong(heard: str, flags: tuple[bool, bool, bool]) -> None:
    score = words.score_words("The dogs are sitting by the old door.", heard)
    assert score is not None
    assert (score.is_truncated, score.is_repeated, score.is_runaway) == flags


def test_a_loop_that_the_text_asks_for_is_no_loop() -> None:
    score = words.score_words("No no no no!", "no no no no")
    assert score is not None
    assert not score.is_repeated


@given(st.lists(st.sampled_from("ab"), max_size=12))
def test_loops_equal_a_search_over_all_phrases(said: list[str]) -> None:
    most = min(1, len(said))
    for size in range(1, words.LOOP_WORDS + 1):
        for start in range(len(said) - size + 1):
            times = 1
            while said[start + times * size : start + (times + 1) * size] == said[start : start + size]:
                times += 1
            most = max(most, times)
    assert words.longest_loop(said) == most


def test_words_per_second_counts_the_texts_words() -> None:
    assert words.words_per_second("It's 21 dogs.", 2.5) == pytest.approx(5 / 2.5)


@pytest.mark.parametrize(
    ("text", "num_syllables"),
    [
        ("time", 1),
        ("table", 2),
        ("walked", 1),
        ("wanted", 2),
        ("times", 1),
        ("wishes", 2),
        ("hundred", 2),
        ("being", 2),
        ("piano", 3),
        ("nation", 2),
        ("completely", 3),
        ("movement", 2),
        ("the", 1),
        ("Kids are talking by the door.", 7),
        ("Dogs are sitting by the door.", 7),
        ("The birch canoe slid on the smooth planks.", 9),
        ("Glue the sheet to the dark blue background.", 9),
        ("It's easy to tell the depth of a well.", 11),
        ("These days a chicken leg is a rare dish.", 10),
        ("42", 3),
        ("", 0),
    ],
)
def test_syllables_are_counted_as_a_reader_would(text: str, num_syllables: int) -> None:
    assert sum(count_syllables(word) for word in normalise(text)) == num_syllables
    rate = words.syllables_per_second(text, 2.0)
    assert rate == (num_syllables / 2 if num_syllables else None)


def test_the_kinds_of_edits_add_up() -> None:
    score = words.score_words("one two three four five six seven", "one too three five six seven eight")
    assert score is not None
    assert (score.substitutions, score.deletions, score.insertions) == (1, 1, 1)
    assert score.word_edits == 3
    assert not score.is_intelligible, "three edits in seven words"
    close = words.score_words("one two three four five", "one two three four nine")
    assert close is not None
    assert close.is_intelligible


PAIRS = (
    ("Stop!", "top", 0.5),
    ("The dogs are sitting by the old door.", "the dogs are sitting by", 2.0),
    ("…", "hello", 1.0),
    ("No way.", "no way no way no way no way no way", 1.0),
)
TEXTS, HEARD, SOUNDING_S = (list(column) for column in zip(*PAIRS, strict=True))


def test_evaluate_has_all_metrics_of_the_files_that_have_words() -> None:
    found = words.evaluate(TEXTS, HEARD, SOUNDING_S)
    assert found == pytest.approx({
        "wer": (1 + 3 + 8) / 11, "cer": (1 + 13 + 7 * 4) / (4 + 36 + 6),
        "substitutions": 1 / 11, "deletions": 3 / 11, "insertions": 8 / 11,
        "intelligible": 0, "truncated": 1 / 3, "repeated": 1 / 3, "runaway": 1 / 3,
        "words_per_s": (1 / 0.5 + 8 / 2 + 2 / 1) / 3, "syllables_per_s": (1 / 0.5 + 9 / 2 + 2 / 1) / 3,
        "seconds_per_word": (0.5 + 2 / 8 + 1 / 2) / 3,
    })  # fmt: skip
    without_times = words.evaluate(TEXTS, HEARD)
    assert {name for name, value in without_times.items() if value is None} == set(words.RATES)
    assert without_times.items() <= {**found, **dict.fromkeys(words.RATES)}.items()


def test_evaluate_without_words_has_every_name_and_no_number() -> None:
    names = words.evaluate(TEXTS, HEARD, SOUNDING_S).keys()
    assert words.evaluate([], [], []) == words.evaluate(["…!"], ["hello"], [1.0]) == dict.fromkeys(names)


def test_one_files_values_are_its_score() -> None:
    score = words.score_words("one two three four five", "one two three four nine nine")
    assert score is not None
    assert score.to_values() == {
        "wer": 2 / 5, "cer": 7 / 23, "word_edits": 2, "num_words": 5, "char_edits": 7, "num_chars": 23,
        "substitutions": 1, "deletions": 0, "insertions": 1,
        "intelligible": 0, "truncated": 0, "repeated": 0, "runaway": 0,
    }  # fmt: skip
    assert all(type(score.to_values()[name]) is int for name in words.FLAGS)


@pytest.mark.parametrize(
    ("texts", "heard", "sounding_s", "message"),
    [
        ("one text", ["heard"], None, "texts must be a list"),
        (["one text"], "heard", None, "heard must be a list"),
        ([b"bytes"], ["heard"], None, "string, not bytes"),
        (["one"], [None], None, "string, not NoneType"),
        (["one", "two"], ["one"], None, "2 texts and 1 transcripts"),
        (["one"], ["one"], [1.0, 2.0], "1 texts and 2 times"),
        (["one"], ["one"], [0.0], "positive number of seconds, not 0.0"),
        (["one"], ["one"], [float("nan")], "not nan"),
        (["one"], ["one"], [float("inf")], "not inf"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    texts: list[str], heard: list[str], sounding_s: list[float] | None, message: str
) -> None:
    for check in (words.validate, words.evaluate):
        with pytest.raises(ValueError, match=message):
            check(texts, heard, sounding_s)


@pytest.mark.parametrize("rate", [words.word_error_rate, words.character_error_rate])
def test_no_scores_have_no_error_rate(rate: Callable[[list[words.WordScore]], float]) -> None:
    with pytest.raises(ValueError, match="at least one file whose text has words"):
        rate([])


@pytest.mark.parametrize("rate", [words.words_per_second, words.syllables_per_second, words.rate_values])
def test_no_time_has_no_speaking_rate(rate: Callable[[str, float], object]) -> None:
    with pytest.raises(ValueError, match=r"positive number of seconds, not -1\.0"):
        rate("hello", -1.0)
