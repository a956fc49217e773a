"""Back-off n-gram models: what they give by hand, files as SRILM and KenLM write them, and what is written is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from affetto.judges.ngrams import BackoffModel, read_arpa, write_arpa

ARPA = """
\\data\\
ngram 1=5
ngram 2=2
ngram 3=1

\\1-grams:
-1.5\t<unk>
-99\t<s>\t-0.25
-1.0\t</s>
-0.5\tkey\t-0.125
-0.75\tsilver\t-0.5

\\2-grams:
-0.25\t<s> silver\t-0.0625
-0.125\tsilver key

\\3-grams:
-0.03125\t<s> silver key

\\end\\
"""


@pytest.fixture
def trigrams(tmp_path: Path) -> BackoffModel:
    (tmp_path / "3gram.arpa").write_text(ARPA)
    return read_arpa(tmp_path / "3gram.arpa")


@pytest.mark.parametrize(
    ("word", "history", "expected"),
    [
        ("key", ("<s>", "silver"), -0.03125),
        ("key", ("key", "silver"), -0.125),  # "key silver" isn't listed and weighs nothing
        ("silver", ("<s>", "silver"), -0.0625 - 0.5 - 0.75),
        ("</s>", ("silver", "key"), -0.125 - 1.0),  # "silver key" has no weight, "key" has
        ("gold", ("<s>", "silver"), -0.0625 - 0.5 - 1.5),
        ("key", ("gold",), -0.5),
        ("key", (), -0.5),
        ("key", ("silver", "key", "<s>", "silver"), -0.03125),  # only two words back
    ],
)
def test_back_off_by_hand(trigrams: BackoffModel, word: str, history: tuple[str, ...], expected: float) -> None:
    assert trigrams.log10_probability(word, history) == pytest.approx(expected)


def test_marks_are_no_words(trigrams: BackoffModel) -> None:
    assert trigrams.vocabulary == ["key", "silver"]
    assert "<unk>" not in trigrams
    assert "key" in trigrams


def test_spaces_in_place_of_tabs_are_read(tmp_path: Path, trigrams: BackoffModel) -> None:
    (tmp_path / "spaces.arpa").write_text(ARPA.replace("\t", " "))
    assert read_arpa(tmp_path / "spaces.arpa") == trigrams


@pytest.mark.parametrize("name", ["model.arpa", "model.arpa.gz"])
def test_what_is_written_is_read_and_always_the_same_bytes(tmp_path: Path, trigrams: BackoffModel, name: str) -> None:
    write_arpa(trigrams, tmp_path / name)
    assert read_arpa(tmp_path / name) == trigrams
    first = (tmp_path / name).read_bytes()
    write_arpa(trigrams, tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
