"""When words are said: annotated, aligned by a recogniser, spread."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from affetto.codes.timing import aligned_words, annotated_words, spread_words
from affetto.errors import DataError
from affetto.judges.aligner import find_aligner
from affetto.miniature import corpus
from affetto.model.beside import MOST_DOUBT

LETTERS = "_|abcdefgh"


class Told:
    """A recogniser of 10 frames a second that hears what it is told to: one letter a frame, `_` being the blank."""

    id, sample_rate, blank, between = "told", 1000, 0, 1

    def __init__(self, heard: str) -> None:
        self.heard = heard

    def log_probs(self, sound: NDArray[np.float32]) -> NDArray[np.float64]:
        assert len(sound) == 100 * len(self.heard)
        log_probs_TV = np.full((len(self.heard), len(LETTERS)), np.log(0.01))
        for frame, letter in enumerate(self.heard):
            log_probs_TV[frame, LETTERS.index(letter)] = np.log(0.91)
        return log_probs_TV

    def spell(self, word: str) -> list[int]:
        return [LETTERS.index(letter) for letter in word if letter in LETTERS[2:]]


def told(text: str, heard: str) -> tuple[list[tuple[str, float]], float]:
    found = aligned_words(text, np.zeros(100 * len(heard), dtype=np.float32), Told(heard))
    return [(word.text, round(word.start_s, 6)) for word in found.words], found.doubt


def test_a_word_begins_with_its_first_letter() -> None:
    assert told("ab, cd!", "__ab_|__ccd_") == ([("ab,", 0.2), ("cd!", 0.8)], 0.0)


def test_what_cannot_be_spelled_follows_the_word_before_it() -> None:
    words, doubt = told("7 ab – 12 c", "_a_b__|c_")
    assert words == [("7", 0.0), ("ab", 0.1), ("–", 0.4), ("12", 0.4), ("c", 0.7)]
    assert doubt == 0.0


def test_doubt_is_what_the_text_costs_a_token() -> None:
    _, doubt = told("ab", "_a_h_")
    assert doubt == pytest.approx(np.log(0.91 / 0.01) / 2)


def test_more_letters_than_frames() -> None:
    with pytest.raises(DataError, match=r"takes 7 tokens of told, which hears 6 frames.*Mend the text"):
        told("abc def", "abcdef")


def test_nothing_to_spell() -> None:
    with pytest.raises(DataError, match=r"told knows no letter of its text.*write numbers.*--judge words=ID"):
        told("1984 !", "abcdef")


def test_the_miniatures_words_are_found_where_they_were_rendered() -> None:
    """Truth: where espeak-ng says that it began each word. 80 ms is a frame of Mimi's."""
    aligner, differences = find_aligner({}), []
    lines = [*corpus.general_lines(4, "general", "test"), *list(corpus.acted_lines("sad", {"test": 1}))[:1]]
    for line in lines:
        rendered = corpus.render_timed(line)
        sound = soxr.resample(rendered.samples, corpus.SAMPLE_RATE, aligner.sample_rate).astype(np.float32)
        found = aligned_words(line.text, sound, aligner)
        starts_s = [word.start_s for word in found.words]
        assert starts_s == sorted(starts_s)
        assert [word.text for word in found.words] == line.text.split()
        assert found.doubt < 1
        place, truth = 0, dict(rendered.word_starts)
        for word in found.words:
            place = line.text.index(word.text, place)
            if place in truth:
                differences.append(word.start_s - truth[place])
            place += len(word.text)
        other = aligned_words(lines[lines.index(line) - 1].text, sound, aligner)
        assert other.doubt > MOST_DOUBT, "another clip's text is told from its own"
    assert len(differences) > 30
    assert np.abs(differences).max() < 0.2
    assert np.quantile(np.abs(differences), 0.9) < 0.08


def test_the_recogniser_spells_in_its_own_letters() -> None:
    aligner = find_aligner({})
    assert aligner.spell("Café,") == aligner.spell("cafe")
    assert aligner.spell("three") == aligner.spell("THREE!")
    assert len(aligner.spell("three")) == 3, "groups of letters that it has a token for"
    assert aligner.spell("42 –") == []
    assert (aligner.blank, aligner.between) == (0, 2)


def test_spread_words_share_the_clip_by_their_letters() -> None:
    words = spread_words("a bcd efg", 1.0)
    assert [word.text for word in words] == ["a", "bcd", "efg"]
    assert [word.start_s for word in words] == pytest.approx([0.0, 0.9 * 2 / 10, 0.9 * 6 / 10])


def annotate(path: Path, *alignments: object) -> Path:
    path.write_text(json.dumps({"alignments": list(alignments)}))
    return path


def test_annotations_of_moshi_finetune(tmp_path: Path) -> None:
    path = annotate(
        tmp_path / "a.json", ["later", [1.5, 1.9], "SPEAKER_MAIN"], ["no", [0.5, 0.7], "SPEAKER_OTHER"],
        [" first ", [1.1, 1.4], "SPEAKER_MAIN"], ["out", [2.5, 2.7], "SPEAKER_MAIN"],
    )  # fmt: skip
    words = annotated_words(path, 1.0, 2.0)
    assert [(word.text, round(word.start_s, 6)) for word in words] == [("first", 0.1), ("later", 0.5)]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"alignments": [["a", 3, "SPEAKER_MAIN"]]}', '{"alignments": [["a"]]}']
)
def test_what_is_no_annotation_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json is no annotation.*SPEAKER_MAIN"):
        annotated_words(tmp_path / "a.json")


def test_an_annotation_without_our_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no word of SPEAKER_MAIN in the clip"):
        annotated_words(annotate(tmp_path / "a.json", ["you", [0.0, 0.4], "SPEAKER_OTHER"]))
