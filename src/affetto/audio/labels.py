"""Emotion labels of the corpora, one literal table each: the same letters mean different things in different corpora.

Keys are the corpus's own codes, values are affetto's names: `affetto.types.EMOTIONS`, `disgusted`, and the corpus's
word if none of these fits (`calm` isn't `neutral`, `sleepy` isn't `sad`). `other` is a label without a use: no
agreement, unknown. `WEAK` holds approximate readings, which apply only on request. Sources: the corpora's papers and
READMEs; for IEMOCAP the four-class convention, which counts excitement as happy.
"""

from __future__ import annotations

import re

from affetto.errors import DataError, did_you_mean

LABELS: dict[str, dict[str, str]] = {
    "ravdess": {  # third number of the file name
        "01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry", "06": "fearful", "07": "disgusted",
        "08": "surprised",
    },
    "crema-d": {  # third field; there is no surprise
        "ANG": "angry", "DIS": "disgusted", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
    },
    "esd": {  # folder name and third column
        "Neutral": "neutral", "Angry": "angry", "Happy": "happy", "Sad": "sad", "Surprise": "surprised",
    },
    "emov-db": {  # folder name's second part; josh has no Angry and no Disgust
        "Neutral": "neutral", "Angry": "angry", "Amused": "amused", "Sleepy": "sleepy", "Disgust": "disgusted",
        "Disgusted": "disgusted",
    },
    "expresso": {  # style; everything after whisper, and angry, fearful, disgusted, only in the conversations
        "default": "neutral", "narration": "narration", "happy": "happy", "sad": "sad", "angry": "angry",
        "fearful": "fearful", "disgusted": "disgusted", "confused": "confused", "enunciated": "enunciated",
        "laughing": "laughing", "whisper": "whisper", "animal": "animal", "animaldir": "animal_directed", "awe": "awe",
        "bored": "bored", "calm": "calm", "child": "child", "childdir": "child_directed", "desire": "desire",
        "fast": "fast", "nonverbal": "non_verbal", "projected": "projected", "sarcastic": "sarcastic",
        "sleepy": "sleepy", "sympathetic": "sympathetic",
    },
    "iemocap": {  # EmoEvaluation; there is little or no surprise
        "neu": "neutral", "hap": "happy", "exc": "happy", "sad": "sad", "ang": "angry", "fru": "frustrated",
        "fea": "fearful", "sur": "surprised", "dis": "disgusted", "oth": "other", "xxx": "other",
    },
    "meld": {  # Emotion column
        "neutral": "neutral", "joy": "happy", "sadness": "sad", "anger": "angry", "fear": "fearful",
        "surprise": "surprised", "disgust": "disgusted",
    },
    "tess": {  # third field; ps is pleasant surprise
        "neutral": "neutral", "happy": "happy", "sad": "sad", "angry": "angry", "fear": "fearful",
        "disgust": "disgusted", "ps": "surprised",
    },
    "savee": {  # letters before the number; see `savee_code`
        "n": "neutral", "h": "happy", "sa": "sad", "a": "angry", "f": "fearful", "su": "surprised", "d": "disgusted",
    },
    "emns": {  # emotion column
        "Neutral": "neutral", "Happy": "happy", "Excited": "happy", "Sad": "sad", "Angry": "angry",
        "Surprise": "surprised", "Surprised": "surprised", "Disgust": "disgusted", "Sarcastic": "sarcastic",
    },
    "jl-corpus": {  # second field: five primary emotions, five secondary
        "neutral": "neutral", "happy": "happy", "excited": "happy", "sad": "sad", "angry": "angry",
        "concerned": "concerned", "apologetic": "apologetic", "assertive": "assertive", "anxious": "anxious",
        "encouraging": "encouraging",
    },
    "msp-podcast": {  # EmoClass column
        "N": "neutral", "H": "happy", "S": "sad", "A": "angry", "F": "fearful", "U": "surprised", "D": "disgusted",
        "C": "contempt", "O": "other", "X": "other",
    },
    "folder": {  # names of a user's own folders: only whole words that are one emotion
        "neutral": "neutral", "calm": "calm",
        "happy": "happy", "happiness": "happy",
        "sad": "sad", "sadness": "sad",
        "angry": "angry", "anger": "angry",
        "fearful": "fearful", "fear": "fearful",
        "surprised": "surprised", "surprise": "surprised",
        "disgusted": "disgusted", "disgust": "disgusted",
    },
}  # fmt: skip

KNOWN_LABELS = frozenset(name for table in LABELS.values() for name in table.values())
"""The labels of all corpora, including affetto's own; clips with a label that isn't trained are simply not used."""

INTENSITIES: dict[str, dict[str, float | None]] = {
    "ravdess": {"01": 0.6, "02": 1.0},  # fourth number: normal, strong
    "crema-d": {"LO": 0.4, "MD": 0.7, "HI": 1.0, "XX": None, "X": None},  # fourth field: low, medium, high, unspecified
}
"""How strongly a clip is acted, by the corpus's own code. The authors give only an order; the numbers are ours
(docs/data.md)."""

WEAK: dict[str, dict[str, str]] = {
    "emov-db": {"Amused": "happy"},
    "jl-corpus": {"anxious": "fearful"},
}
"""Approximate readings of a label; used only by `emotion_of(..., use_weak=True)`."""

_SAVEE = re.compile(r"(?:(?:DC|JE|JK|KL)_)?(?P<code>sa|su|a|d|f|h|n)\d\d")


def emotion_of(corpus: str, code: str, *, use_weak: bool = False) -> str:
    """affetto's name for `code` in `corpus`. Raises `DataError` for corpora and codes without an entry."""
    if corpus not in LABELS:
        known = ", ".join(sorted(LABELS))
        raise DataError(f"no label table for corpus {corpus!r}{did_you_mean(corpus, LABELS)}; there are {known}")
    table = LABELS[corpus]
    if code not in table:
        known = ", ".join(table)
        raise DataError(f"{corpus} has no emotion code {code!r}{did_you_mean(code, table)}; codes are {known}")
    return WEAK.get(corpus, {}).get(code, table[code]) if use_weak else table[code]


def savee_code(stem: str) -> str:
    """The letters of a SAVEE name: `DC_sa07` gives `sa`, `a07` gives `a`. Raises `DataError` for other names."""
    match = _SAVEE.fullmatch(stem)
    if match is None:
        raise DataError(f"{stem!r} isn't a SAVEE name such as DC_a01 or DC_su15")
    return match["code"]
