"""Pieces of words between begin and end, as CSM's chat template has them."""

from __future__ import annotations

import string

import pytest

from affetto.miniature.base import (
    AUDIO,
    AUDIO_EOS,
    BEGIN,
    CHARACTERS,
    END,
    NUM_MERGES,
    _trained_pieces,
    make_processor,
    make_tokenizer,
)
from affetto.miniature.lexicon import lexicon

TEXTS = ("Hello, world!", "I'm 3 years old.", "Say this with emotion: {x}", "", " two  spaces ", "Ünïcode €")


def ids(text: str) -> list[int]:
    return make_tokenizer()(text)["input_ids"]


def test_vocabulary_has_no_gaps() -> None:
    tokenizer = make_tokenizer()
    assert len(set(CHARACTERS)) == len(CHARACTERS)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert len(tokenizer) == len(CHARACTERS) + 5 + NUM_MERGES


def test_begin_and_end_enclose_the_text() -> None:
    tokenizer = make_tokenizer()
    found = tokenizer.convert_ids_to_tokens(ids("it was a bridge"))
    assert (found[0], found[-1]) == (BEGIN, END)
    assert "".join(found[1:-1]) == "it was a bridge"
    assert (tokenizer.bos_token, tokenizer.eos_token) == (BEGIN, END)


def test_pieces_are_the_same_each_time_they_are_trained() -> None:
    once = _trained_pieces()
    _trained_pieces.cache_clear()
    assert _trained_pieces() == once


def test_a_sentence_takes_fewer_tokens_than_letters_and_no_piece_spans_words() -> None:
    text = "the small children were walking under the bridge"
    assert len(ids(text)) < 0.7 * len(text)
    assert all(" " not in token[1:] for token in make_tokenizer().get_vocab())


def test_case_does_not_matter() -> None:
    assert ids("The KEY") == ids("the key")


@pytest.mark.parametrize("character", [chr(code) for code in range(128)])
def test_every_ascii_character_is_one_token(character: str) -> None:
    tokenizer = make_tokenizer()
    found = tokenizer.convert_ids_to_tokens(ids(character))
    wanted = character.lower() if character.lower() in CHARACTERS else "<|unknown|>"
    assert found == [BEGIN, wanted, END]


def test_what_english_needs_is_known() -> None:
    unknown = make_tokenizer().convert_tokens_to_ids("<|unknown|>")
    needed = string.ascii_letters + string.digits + " .,:;!?'\"-()[]{}<>%$&"
    assert unknown not in ids(needed)
    assert unknown not in [token for word in sorted(lexicon())[::40] for token in ids(word)]
    assert ids("é")[1:-1] == [unknown]


@pytest.mark.parametrize("text", TEXTS)
def test_pitfall_07_prompts_equal_the_chat_template(text: str) -> None:
    conversation = [{"role": "3", "content": [{"type": "text", "text": text}]}]
    templated = make_processor().apply_chat_template(conversation, tokenize=True, return_dict=True)
    assert list(templated["input_ids"][0]) == ids(f"[3]{text}")


def test_pitfall_07_turns_follow_one_another() -> None:
    turns = [{"role": str(role), "content": [{"type": "text", "text": f"turn {role}"}]} for role in range(2)]
    templated = make_processor().apply_chat_template(turns, tokenize=False)
    assert templated == f"{BEGIN}[0]turn 0{END}{BEGIN}[1]turn 1{END}"
    heard = [{"role": "0", "content": [{"type": "text", "text": "a"}, {"type": "audio"}]}]
    processor = make_processor()
    templated = processor.tokenizer.apply_chat_template(heard, chat_template=processor.chat_template, tokenize=False)
    assert templated == f"{BEGIN}[0]a{END}{AUDIO}{AUDIO_EOS}"


def test_padding_is_on_the_left() -> None:
    batch = make_tokenizer()(["a", "abc"], padding=True)
    assert batch["attention_mask"] == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
