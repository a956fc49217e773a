"""Maps judges' names for emotions to affetto's.

For judges only: corpora have their own tables, because letter codes collide between them. So single letters and numbers
are not in here, and neither are approximate matches: `calm` is not neutral, `anxious` is not fearful, `amused` is not
happy. An unknown name stays as it is, so that it is listed and never mapped silently.
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
    """affetto's name for a judge's label; case, brackets and a bilingual prefix ("开心/happy") don't matter."""
    plain = name.rsplit("/", 1)[-1].strip().strip("<>[]|").strip().lower().replace(" ", "_").replace("-", "_")
    return LABELS.get(plain, plain)
