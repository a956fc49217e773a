"""Beam search with a word model, against enumeration of every alignment; and which word models a folder may hold."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from affetto.errors import JudgeError
from affetto.judges.beam_search import WordModel, decode, find_word_model
from affetto.judges.ngrams import BackoffModel, write_arpa

TOKENS = ("-", " ", "a", "b", "ab")
BLANK, SPACE = 0, 1
NGRAMS = BackoffModel(
    2,
    {
        ("<unk>",): -2.0, ("<s>",): -99.0, ("</s>",): -1.0, ("a",): -0.5, ("ab",): -0.6, ("ba",): -1.2,
        ("<s>", "ab"): -0.2, ("a", "ba"): -0.1, ("ab", "</s>"): -0.3,
    },
    {("<s>",): -0.3, ("a",): -0.2, ("ab",): -0.1},
)  # fmt: skip
EVERYTHING_ALIKE = BackoffModel(1, {("<unk>",): 0.0, ("</s>",): 0.0}, {})


def _log_probs(num_frames: int, seed: int, sharpness: float = 1.5) -> NDArray[np.float64]:
    logits = sharpness * np.random.default_rng(seed).normal(size=(num_frames, len(TOKENS)))
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def _best_by_enumeration(log_probs_TV: NDArray[np.float64], model: WordModel) -> tuple[str, dict[str, float]]:
    """Sum over every sequence of tokens, one a frame; then the words' scores."""
    total: defaultdict[str, float] = defaultdict(float)
    for path in itertools.product(range(len(TOKENS)), repeat=len(log_probs_TV)):
        said = [token for token, _ in itertools.groupby(path)]
        text = "".join(TOKENS[token] for token in said if token != BLANK)
        total[" ".join(text.split())] += math.exp(sum(log_probs_TV[frame, token] for frame, token in enumerate(path)))
    scores = {}
    for text, probability in total.items():
        words = 0.0
        history: tuple[str, ...] = ("<s>",)
        for word in text.split():
            words += model.score(word, history)
            history = (*history, word)
        scores[text] = math.log(probability) + words + model.score_end(history)
    return max(scores, key=lambda text: scores[text]), scores


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "model",
    [
        WordModel(NGRAMS),
        WordModel(NGRAMS, alpha=1.3, beta=0.2, unk_score_offset=-1.0),
        WordModel(EVERYTHING_ALIKE, 0.0, 0.0, 0.0),
    ],
    ids=["settings of others", "words count more", "sound alone"],
)
def test_the_likeliest_text_of_all_alignments_is_found(model: WordModel, seed: int) -> None:
    log_probs_TV = _log_probs(6, seed)
    best, scores = _best_by_enumeration(log_probs_TV, model)
    found = decode(log_probs_TV, TOKENS, BLANK, SPACE, model, width=400)
    assert scores[found] == pytest.approx(scores[best], abs=1e-6)


def test_a_word_that_exists_is_heard_in_place_of_one_that_almost_sounds_likelier() -> None:
    # "ba" after "a" is listed, "bb" is not; the sound alone is a little for "bb".
    rows = [
        {"a": 0.98}, {" ": 0.98}, {"b": 0.98}, {"-": 0.98}, {"b": 0.5, "a": 0.45},
    ]  # fmt: skip
    probs_TV = np.full((len(rows), len(TOKENS)), 1e-4)
    for frame, row in enumerate(rows):
        for token, value in row.items():
            probs_TV[frame, TOKENS.index(token)] = value
    log_probs_TV = np.log(probs_TV / probs_TV.sum(axis=1, keepdims=True))
    assert decode(log_probs_TV, TOKENS, BLANK, SPACE, WordModel(EVERYTHING_ALIKE, 0.0, 0.0, 0.0)) == "a bb"
    assert decode(log_probs_TV, TOKENS, BLANK, SPACE, WordModel(NGRAMS)) == "a ba"


def test_an_unknown_word_that_is_said_clearly_is_heard() -> None:
    log_probs_TV = np.log(np.full((3, len(TOKENS)), 1e-9))
    for frame, token in enumerate("b-b"):
        log_probs_TV[frame, TOKENS.index(token)] = 0.0
    assert "bb" not in NGRAMS
    assert decode(log_probs_TV, TOKENS, BLANK, SPACE, WordModel(NGRAMS)) == "bb"


def test_silence_has_no_words() -> None:
    log_probs_TV = np.log(np.full((20, len(TOKENS)), 1e-12))
    log_probs_TV[:, BLANK] = 0.0
    assert decode(log_probs_TV, TOKENS, BLANK, SPACE, WordModel(NGRAMS)) == ""
    assert decode(log_probs_TV[:0], TOKENS, BLANK, SPACE, WordModel(NGRAMS)) == ""


def test_a_folder_without_a_word_model_has_none(tmp_path: Path) -> None:
    assert find_word_model(tmp_path) is None


def test_settings_of_a_folder_are_read_and_name_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "language_model"
    folder.mkdir()
    write_arpa(NGRAMS, folder / "2gram.arpa.gz")
    plain = find_word_model(tmp_path)
    (folder / "attrs.json").write_text(json.dumps({"alpha": 0.7, "beta": 2, "score_boundary": True}))
    chosen = find_word_model(tmp_path)
    assert plain is not None
    assert chosen is not None
    assert (plain.alpha, plain.beta, plain.unk_score_offset) == (0.5, 1.5, -10.0)
    assert (chosen.alpha, chosen.beta, chosen.unk_score_offset) == (0.7, 2.0, -10.0)
    assert plain.name != chosen.name
    assert chosen.ngrams.log10_probabilities == pytest.approx(dict(NGRAMS.log10_probabilities))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"5gram.bin": b"mmap lm"}, "KenLM binary"),
        ({"a.arpa": b"x", "b.arpa": b"x"}, "several language models"),
        ({"a.arpa": b"\\data\\\nngram 1=2\n\n\\1-grams:\n-1.0\ta\n\n\\end\\\n"}, "cut short"),
        ({"a.arpa": b"\\data\\\nngram 1=1\n\n\\1-grams:\n-1.0\ta\n"}, "cut short"),
        ({"a.arpa": b"\\data\\\nngram 1=1\n\n\\1-grams:\nhigh\ta\n\\end\\\n"}, "can't be read"),
        ({"a.arpa": b"\\data\\\nngram 2=1\n\n\\2-grams:\n-1.0\ta\n\\end\\\n"}, "expected 2 words"),
        ({"a.arpa.gz": b"no gzip"}, "can't be read"),
        ({"a.arpa": b"\xff\xfe"}, "can't be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    (tmp_path / "language_model").mkdir()
    for name, data in files.items():
        (tmp_path / "language_model" / name).write_bytes(data)
    with pytest.raises(JudgeError, match=message):
        find_word_model(tmp_path)


def test_settings_must_be_numbers(tmp_path: Path) -> None:
    (tmp_path / "language_model").mkdir()
    write_arpa(NGRAMS, tmp_path / "language_model" / "a.arpa")
    (tmp_path / "language_model" / "attrs.json").write_text('{"alpha": "much"}')
    with pytest.raises(JudgeError, match="must be numbers"):
        find_word_model(tmp_path)
