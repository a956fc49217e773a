"""Which recogniser aligns, and that of any CTC class it hears what the class says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForCTC

from affetto.codes.timing import aligned_words
from affetto.errors import JudgeError
from affetto.judges.aligner import find_aligner
from affetto.judges.choice import default_judge
from tiny_judges import bert_words, group_norm_words, whisper_words

SOUND = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)


@pytest.mark.parametrize("make", [bert_words, group_norm_words])
def test_a_chosen_recogniser_says_what_its_class_says(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "words")
    aligner = find_aligner({"words": str(folder)})
    model = AutoModelForCTC.from_pretrained(folder).eval()
    inputs = AutoFeatureExtractor.from_pretrained(folder)([SOUND], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected_TV = model(**inputs).logits[0].double().log_softmax(-1).numpy()
    heard_TV = aligner.log_probs(SOUND)
    assert len(heard_TV) > 30
    np.testing.assert_allclose(heard_TV, expected_TV[: len(heard_TV)], atol=1e-5)
    np.testing.assert_allclose(np.exp(heard_TV).sum(axis=1), 1.0)
    letters = [token for token, _ in groupby(heard_TV.argmax(axis=1)) if token != aligner.blank]
    assert aligner.tokenizer.decode(heard_TV.argmax(axis=1), skip_special_tokens=True)  # type: ignore[attr-defined]
    assert aligner.transcribe([SOUND])[0].replace(" ", "").lower() == "".join(  # type: ignore[attr-defined]
        token for token in aligner.tokenizer.convert_ids_to_tokens(letters) if len(token) == 1 and token != "|"  # type: ignore[attr-defined]
    ).lower()  # fmt: skip


def test_letters_in_upper_case(tmp_path: Path) -> None:
    aligner = find_aligner({"words": str(group_norm_words(tmp_path / "words"))})
    spelled = aligner.tokenizer.convert_ids_to_tokens(aligner.spell("Señor's,"))  # type: ignore[attr-defined]
    assert spelled == list("SENOR'S")
    assert (aligner.blank, aligner.between) == (0, 4)
    found = aligned_words("hello, world", SOUND, aligner)
    assert [word.text for word in found.words] == ["hello,", "world"]
    assert 0 <= found.words[0].start_s < found.words[1].start_s < 1.0


def test_a_judge_without_a_ctc_head_leaves_it_to_the_miniatures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aligner = find_aligner({"words": str(whisper_words(tmp_path / "words"))})
    assert aligner.id == default_judge("words").id
    assert "has no CTC head" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("choices", [{}, {"words": "none"}, {"quality": "none"}])
def test_without_a_word_judge_the_miniatures_aligns(choices: dict[str, str]) -> None:
    assert find_aligner(choices).id.startswith("miniature/words@")


def test_a_recogniser_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="there is no folder"):
        find_aligner({"words": str(tmp_path / "nowhere")})
