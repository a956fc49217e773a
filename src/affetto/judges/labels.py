"""What judges call emotions, and what affetto calls them.

For judges only: corpora have tables of their own, because letter codes collide between them. Single letters and
numbers are therefore not in here, and neither are weak likenesses: `calm` is not neutral, `anxious` is not fearful,
`amused` is not happy. An unknown name stays as it is, so that it is listed and never mapped quietly.
"""

from __future__ import annotations

_NAMES: dict[str, tuple[str, ...]] = {
    "happy": ("happy", "happiness", "hap", "joy", "joyful", "exc", "excited", "excitement"),
    "sad": ("sad", "sadness"),
    "angry": ("angry", "anger", "ang"),
    "fearful": ("fearful", "fear", "fea", "afraid", "scared"),
    "surprised": ("surprised", "surprise", "sur", "ps", "pleasant_surprise", "pleasant_surprised"),
    "neutral": ("neutral", "neu", "neutrality"),
    "disgusted": ("disgusted", "disgust", "dis"),
    "other": ("other", "unk", "unknown"),
}

LABELS: dict[str, str] = {name: emotion for emotion, names in _NAMES.items() for name in names}


def to_affetto(name: str) -> str:
    """Affetto's name of a judge's label: case, brackets, and a bilingual prefix ("开心/happy") don't matter."""
    plain = name.rsplit("/", 1)[-1].strip().strip("<>[]|").strip().lower().replace(" ", "_").replace("-", "_")
    return LABELS.get(plain, plain)
