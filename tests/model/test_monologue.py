"""The inner monologue: words stand where they are said, and every one of them is said once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.errors import DataError
from affetto.model.base import Base
from affetto.model.batch import collate
from affetto.model.monologue import (
    END_PADDING,
    PADDING,
    TAIL_FRAMES,
    Word,
    annotated_words,
    monologue_turn,
    spread_words,
    text_stream,
)
from affetto.model.rows import make_rows
from affetto.types import Clip


class Letters:
    """A tokenizer with one token per letter, 100 for the first in a word."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [100 + n for n in range(len(text))]}


def test_words_stand_where_they_are_said() -> None:
    words = [Word("ab", 0.0), Word("c", 0.3), Word("def", 0.34)]
    text_T = text_stream(words, 12, Letters(), 12.5)
    # 0.3 s is in frame 3; the third word, of frame 4, needs not wait.
    assert text_T.tolist() == [100, 101, END_PADDING, 100, 100, 101, 102] + [PADDING] * 5


def test_a_word_waits_for_the_one_before_it() -> None:
    text_T = text_stream([Word("abcdef", 0.16), Word("g", 0.2)], 12, Letters(), 12.5)
    assert text_T.tolist() == [PADDING, END_PADDING, 100, 101, 102, 103, 104, 105, 100, PADDING, PADDING, PADDING]


def test_a_late_word_begins_early_enough() -> None:
    text_T = text_stream([Word("abc", 0.9), Word("d", 0.95)], 6, Letters(), 12.5)
    assert text_T.tolist() == [PADDING, END_PADDING, 100, 101, 102, 100]


def test_more_tokens_than_frames() -> None:
    with pytest.raises(DataError, match=r"loud: its text has 7 tokens and its sound 6 frames of 0\.08 s"):
        text_stream([Word("abcdefg", 0.0)], 6, Letters(), 12.5, "loud")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 3)), min_size=1, max_size=6), st.integers(0, 30))
def test_every_token_is_said_once_in_order(words: list[tuple[int, float]], spare: int) -> None:
    ordered = [Word("x" * length, at) for length, at in sorted(words, key=lambda pair: pair[1])]
    total = sum(length for length, _ in words)
    text_T = text_stream(ordered, total + spare, Letters(), 12.5)
    said = text_T[(text_T != PADDING) & (text_T != END_PADDING)].tolist()
    assert said == [100 + n for word in ordered for n in range(len(word.text))]
    # The padding before a word is marked, and no other.
    for place, token in enumerate(text_T):
        assert (token == END_PADDING) == (
            token in (PADDING, END_PADDING) and list(text_T[place + 1 : place + 2]) == [100]
        )


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


def test_a_turn_is_the_clip_and_half_a_second_of_silence(tmp_path: Path) -> None:
    codes_TK = np.arange(40).reshape(10, 4)
    silence_TK = 1000 + np.arange(80).reshape(20, 4)
    clip = Clip("c", tmp_path / "c.wav", "ab cd", "happy", "x", "made-up", "train")
    turn = monologue_turn(clip, codes_TK, silence_TK, Letters(), 12.5)
    assert turn.codes_TK is not None
    assert turn.streams is not None
    np.testing.assert_array_equal(turn.codes_TK, np.concatenate([codes_TK, silence_TK[:TAIL_FRAMES]]))
    np.testing.assert_array_equal(turn.streams.user_TK, silence_TK[: 10 + TAIL_FRAMES])
    is_word = np.isin(turn.streams.text_T, [100, 101])
    assert is_word.sum() == 4
    np.testing.assert_array_equal(turn.streams.text_weights_T, np.where(is_word, 1.0, 0.5))


def test_rows_of_moshi(tiny_moshi: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No template wraps what is said; earlier turns are heard before it; annotations beside the sound are used."""
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    clips = {
        name: Clip(name, tmp_path / f"{name}.wav", "the key", "happy", "x", "made-up", "train", context=context)
        for name, context in (("a", ()), ("b", ("a",)))
    }
    annotate(tmp_path / "b.json", ["hello", [0.4, 0.6], "SPEAKER_MAIN"])
    rows = make_rows(
        tiny_moshi, [clips["b"]], lambda _: np.zeros((8, 4), dtype=np.int64), {"x": 0},
        template="Say this with emotion: {text}", by_id=clips,
    )  # fmt: skip
    first, last = rows[0].turns
    assert first.streams is not None
    assert last.streams is not None
    tokens = [tiny_moshi.tokenizer.convert_ids_to_tokens(turn.streams.text_T.tolist()) for turn in (first, last)]
    assert [[piece for piece in turn if piece not in ("<pad>", "<unk>")] for turn in tokens] == [
        ["▁the", "▁key"], ["▁hello"],
    ]  # fmt: skip
    assert tokens[1].index("▁hello") == 5
    batch = collate(rows, 4)
    assert len(batch.frames_N2) == 8 + TAIL_FRAMES - 1
