"""Judges: their kinds, tiers and protocols, and the set of judges of one evaluation.

A judge's `tier` says where it comes from, and a local file is never reported under a hub model's name: `miniature`
(ships with affetto, hears only the miniature's voices), `bundled` (hears people; comes with affetto or a dependency),
`package` (a separately installed Python package, named with its version), `local` (a file or folder on disk, named
after it and its weights' hash), `hub` (a Hugging Face id, pinned to a commit). Several quality judges of different
tiers are `mixed`.
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
"""Kinds whose judges have labels, which must include the target emotion."""
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
    """Estimates how likely each of its emotions is."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Emotions in affetto's vocabulary, one per column."""
        ...

    def posteriors(self, sounds: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Probabilities (N, L) of mono sounds at `sample_rate`; rows sum to 1 and don't depend on their neighbours."""
        ...


class WordJudge(_Judge, Protocol):
    """Transcribes speech."""

    def transcribe(self, sounds: Sequence[NDArray[np.float32]]) -> list[str]:
        """English text of mono sounds at `sample_rate`."""
        ...


class QualityJudge(_Judge, Protocol):
    """Predicts listening scores."""

    def score(self, sounds: Sequence[NDArray[np.float32]]) -> list[dict[str, float]]:
        """Unclipped scores by metric name (`mos_overall`, …) of mono sounds at `sample_rate`."""
        ...


class VectorJudge(_Judge, Protocol):
    """Computes vectors that can be compared."""

    def embed(self, sounds: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """Unit vectors (D,), whose dot products are cosines; None for a sound too short for the model."""
        ...


class VoiceJudge(VectorJudge, Protocol):
    """Tells speakers apart."""


class EmbeddingJudge(VectorJudge, Protocol):
    """Puts utterances that sound like the same emotion near each other; used only on request."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Emotions in affetto's vocabulary that its model was trained to classify."""
        ...


class DimensionJudge(_Judge, Protocol):
    """Places speech on emotion's dimensions."""

    def measure(self, sounds: Sequence[NDArray[np.float32]]) -> list[dict[str, float]]:
        """Values of `DIMENSIONS` by name, on the model's own scale, of mono sounds at `sample_rate`."""
        ...


AnyJudge = EmotionJudge | WordJudge | QualityJudge | VoiceJudge | DimensionJudge | EmbeddingJudge


@dataclass(frozen=True)
class Judges:
    """The judges of one evaluation; `reasons` says, by kind, why one is missing."""

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
