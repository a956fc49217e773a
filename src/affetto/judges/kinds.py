"""What a judge is: its kinds, its tiers, the protocols that models are put behind, and the judges of one evaluation.

A judge's `tier` says where it comes from, and nothing that was found offline is ever reported under a hub model's
name: `miniature` (ships with affetto, hears the miniature's voices only), `bundled` (hears people; comes with affetto
or a dependency), `package` (a Python package that somebody installed beside affetto, named with its version), `local`
(a file or folder on disk, named after it and its weights' hash), `hub` (a Hugging Face id, pinned to a commit). Several
quality judges of different tiers are `mixed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["emotion", "words", "quality", "voice", "dimensions", "embedding"]
KINDS: tuple[Kind, ...] = ("emotion", "words", "quality", "voice", "dimensions", "embedding")
LABELLED: tuple[Kind, ...] = ("emotion", "embedding")
"""Kinds whose judges have labels, among which the target emotion must be."""
Tier = Literal["miniature", "bundled", "package", "hub", "local", "mixed"]
DIMENSIONS = ("arousal", "dominance", "valence")


class _Judge(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def tier(self) -> str: ...
    @property
    def licence(self) -> str | None: ...
    @property
    def sample_rate(self) -> int: ...


class EmotionJudge(_Judge, Protocol):
    """Says how likely each of its emotions is."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Emotions in affetto's vocabulary, one per column."""
        ...

    def posteriors(self, sounds: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Probabilities (N, L) of mono sounds at `sample_rate`; rows sum to 1 and don't depend on their neighbours."""
        ...


class WordJudge(_Judge, Protocol):
    """Writes down what it hears."""

    def transcribe(self, sounds: Sequence[NDArray[np.float32]]) -> list[str]:
        """English text of mono sounds at `sample_rate`."""
        ...


class QualityJudge(_Judge, Protocol):
    """Predicts listening scores."""

    def score(self, sounds: Sequence[NDArray[np.float32]]) -> list[dict[str, float]]:
        """Scores by metric name (`mos_overall`, …) of mono sounds at `sample_rate`, as they are."""
        ...


class VectorJudge(_Judge, Protocol):
    """Answers with vectors that can be compared."""

    def embed(self, sounds: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """Vectors (D,) of length 1, whose products are cosines; None for a sound too short for the model."""
        ...


class VoiceJudge(VectorJudge, Protocol):
    """Tells speakers apart."""


class EmbeddingJudge(VectorJudge, Protocol):
    """Puts utterances that sound like the same emotion near each other; only where somebody asks for it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Emotions in affetto's vocabulary that its model learned to tell apart."""
        ...


class DimensionJudge(_Judge, Protocol):
    """Places speech on emotion's dimensions."""

    def measure(self, sounds: Sequence[NDArray[np.float32]]) -> list[dict[str, float]]:
        """Values of `DIMENSIONS` by name, on the model's own scale, of mono sounds at `sample_rate`."""
        ...


AnyJudge = EmotionJudge | WordJudge | QualityJudge | VoiceJudge | DimensionJudge | EmbeddingJudge


@dataclass(frozen=True)
class Judges:
    """The judges of one evaluation; `reasons` says by kind why one is missing."""

    emotion: EmotionJudge | None = None
    words: WordJudge | None = None
    quality: QualityJudge | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    voice: VoiceJudge | None = None
    dimensions: DimensionJudge | None = None
    embedding: EmbeddingJudge | None = None

    def reason(self, kind: str) -> str:
        """Why there is no judge of that kind."""
        return self.reasons.get(kind, f"no {kind} judge was given")
