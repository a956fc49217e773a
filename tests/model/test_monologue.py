"""The inner monologue: words stand where they are said, and every one of them is said once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.codes.silence import silence_codes
from affetto.codes.timing import Beside, Word
from affetto.errors import DataError
from affetto.model.base import Base
from affetto.model.batch import Row, collate
from affetto.model.losses import code_losses, text_loss
from affetto.model.monologue import END_PADDING, PADDING, TAIL_FRAMES, heard_turn, monologue_turn, text_stream
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


def annotate(path: Path, *alignments: object) -> Path:
    path.write_text(json.dumps({"alignments": list(alignments)}))
    return path


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


def test_the_other_speaker_is_the_user(tmp_path: Path) -> None:
    own_TK, user_TK = np.arange(40).reshape(10, 4), 100 + np.arange(40).reshape(10, 4)
    silence_TK = 1000 + np.arange(80).reshape(20, 4)
    clip = Clip("c", tmp_path / "c.wav", "ab cd", "happy", "x", "made-up", "train")
    beside = Beside((Word("ab", 0.0), Word("cd", 0.56)), user_TK)
    turn = monologue_turn(clip, own_TK, silence_TK, Letters(), 12.5, beside)
    assert turn.streams is not None
    np.testing.assert_array_equal(turn.codes_TK, np.concatenate([own_TK, silence_TK[:TAIL_FRAMES]]))
    np.testing.assert_array_equal(turn.streams.user_TK, np.concatenate([user_TK, silence_TK[:TAIL_FRAMES]]))
    assert turn.streams.text_T[:9].tolist() == [100, 101, *[PADDING] * 4, END_PADDING, 100, 101]


def test_a_heard_turn_is_the_users() -> None:
    silence_TK = 1000 + np.arange(80).reshape(20, 4)
    turn = heard_turn(np.arange(40).reshape(10, 4), silence_TK)
    assert turn.streams is not None
    np.testing.assert_array_equal(turn.codes_TK, silence_TK[: 10 + TAIL_FRAMES])
    np.testing.assert_array_equal(turn.streams.user_TK[:10], np.arange(40).reshape(10, 4))
    np.testing.assert_array_equal(turn.streams.user_TK[10:], silence_TK[:TAIL_FRAMES])
    assert turn.streams.text_T.tolist() == [PADDING] * (10 + TAIL_FRAMES)


CODES = {name: np.random.default_rng(number).integers(0, 32, (4, 4)) for number, name in enumerate("abcd")}


def _conversation(base: Base, folder: Path, beside: dict[str, Beside] | None = None) -> Row:
    """The last of four turns: the model's own voice (x), the user (y), both in two channels (y), the model (x)."""
    clips = {
        name: Clip(name, folder / f"{name}.wav", "the key", "happy", who, "made-up", "train", context=context)
        for name, who, context in zip("abcd", "xyyx", ((), (), (), ("a", "b", "c")), strict=True)
    }
    return make_rows(
        base, [clips["d"]], lambda clip: CODES[clip.id], {"x": 0, "y": 1}, by_id=clips,
        beside_of=lambda clip: (beside or {}).get(clip.id),
    )[0]  # fmt: skip


def test_earlier_turns_stand_where_their_speakers_do(
    tiny_moshi: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    beside = {"c": Beside((Word("hello", 0.0),), CODES["a"])}
    turns = _conversation(tiny_moshi, tmp_path, beside).turns
    heard = {"own": [], "user": [], "said": []}
    for turn in turns:
        assert turn.codes_TK is not None
        assert turn.streams is not None
        heard["own"].append(turn.codes_TK[:4].tolist())
        heard["user"].append(turn.streams.user_TK[:4].tolist())
        heard["said"].append(bool((turn.streams.text_T > PADDING).any()))
    silence = silence_codes(tiny_moshi.folder, 4).tolist()
    own = {name: codes.tolist() for name, codes in CODES.items()}
    assert heard["own"] == [own["a"], silence, own["c"], own["d"]]
    assert heard["user"] == [silence, own["b"], own["a"], silence]
    assert heard["said"] == [True, False, True, True]


def test_only_the_last_turn_of_its_own_is_learned(
    tiny_moshi: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier turns and the user are heard; of neither is there a target."""
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    row = _conversation(tiny_moshi, tmp_path)
    last = row.turns[-1]
    batch = collate([row], 4)
    first = row.num_positions - len(last.codes_TK)  # type: ignore[arg-type]
    assert batch.frames_N2.tolist() == [[0, first + n] for n in range(4 + TAIL_FRAMES - 1)]
    np.testing.assert_array_equal(batch.depth_codes_MK.numpy(), last.codes_TK[:-1])  # type: ignore[index]

    def loss(changed: Row) -> float:
        batch = collate([changed], 4)
        with torch.no_grad():
            logits = tiny_moshi.network(batch)
        c0, depth = code_losses(logits, batch)
        return float((c0 + depth).beside(text_loss(logits, batch)).total)

    def other_user(place: int, frame: int) -> Row:
        turn = row.turns[place]
        assert turn.streams is not None
        user_TK = turn.streams.user_TK.copy()
        user_TK[frame] = (user_TK[frame] + 1) % 32
        changed = replace(turn, streams=replace(turn.streams, user_TK=user_TK))
        return replace(row, turns=tuple(changed if n == place else each for n, each in enumerate(row.turns)))

    assert loss(other_user(1, 3)) != loss(row), "an earlier turn is heard"
    assert loss(other_user(3, 3)) != loss(row), "the user is heard"
    assert loss(other_user(3, -1)) == loss(row), "what is heard last comes before nothing that is learned"
