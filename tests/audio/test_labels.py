"""Label tables: the letter codes that collide across corpora resolve by corpus."""

from __future__ import annotations

import pytest

from affetto.audio.labels import LABELS, WEAK, emotion_of, savee_code
from affetto.errors import DataError
from affetto.types import EMOTIONS


@pytest.mark.parametrize(
    ("corpus", "code", "emotion"),
    [
        ("savee", "a", "angry"),
        ("msp-podcast", "A", "angry"),
        ("msp-podcast", "S", "sad"),
        ("savee", "sa", "sad"),
        ("savee", "su", "surprised"),
        ("msp-podcast", "U", "surprised"),
        ("savee", "n", "neutral"),
        ("savee", "d", "disgusted"),
        ("tess", "ps", "surprised"),
        ("iemocap", "exc", "happy"),
        ("meld", "joy", "happy"),
        ("ravdess", "02", "calm"),
        ("ravdess", "07", "disgusted"),
        ("ravdess", "08", "surprised"),
        ("crema-d", "FEA", "fearful"),
        ("esd", "Surprise", "surprised"),
        ("emov-db", "Amused", "amused"),
        ("jl-corpus", "anxious", "anxious"),
        ("expresso", "default", "neutral"),
        ("emns", "Excited", "happy"),
    ],
)
def test_pitfall_24_codes_resolve_by_corpus(corpus: str, code: str, emotion: str) -> None:
    assert emotion_of(corpus, code) == emotion


@pytest.mark.parametrize(
    ("stem", "code"),
    [("DC_a01", "a"), ("JE_sa15", "sa"), ("JK_su02", "su"), ("KL_n30", "n"), ("su09", "su"), ("d11", "d")],
)
def test_pitfall_24_savee_pairs_before_single_letters(stem: str, code: str) -> None:
    assert savee_code(stem) == code


@pytest.mark.parametrize("stem", ["DC_s01", "DC_a", "XX_a01", "a1", "DC_sad01"])
def test_names_that_are_not_savee(stem: str) -> None:
    with pytest.raises(DataError, match="SAVEE"):
        savee_code(stem)


@pytest.mark.parametrize(("corpus", "code"), [("savee", "s"), ("savee", "A"), ("crema-d", "SUR"), ("ravdess", "09")])
def test_a_code_of_another_corpus_is_refused(corpus: str, code: str) -> None:
    with pytest.raises(DataError, match=f"no emotion code '{code}'"):
        emotion_of(corpus, code)


def test_unknown_corpus_names_the_near_one() -> None:
    with pytest.raises(DataError, match="did you mean 'ravdess'"):
        emotion_of("ravdes", "01")


def test_pitfall_24_calm_is_not_neutral_in_any_table() -> None:
    calm = [table[code] for table in LABELS.values() for code in table if table[code] == "calm" or code == "calm"]
    assert calm
    assert set(calm) == {"calm"}
    assert "calm" not in EMOTIONS


def test_pitfall_24_classes_that_a_corpus_lacks_stay_missing() -> None:
    assert "surprised" not in LABELS["crema-d"].values()


def test_weak_readings_are_off_by_default_and_stretch_existing_codes() -> None:
    assert WEAK
    for corpus, table in WEAK.items():
        for code, emotion in table.items():
            assert emotion_of(corpus, code) != emotion
            assert emotion_of(corpus, code, use_weak=True) == emotion
            assert emotion in EMOTIONS
    assert emotion_of("ravdess", "03", use_weak=True) == "happy"
