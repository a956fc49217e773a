"""Types that travel between stages, and the package's legend of shape suffixes:

B rows of a batch, S positions of a row, T audio frames, K codebooks, V codes per codebook, D width, R LoRA rank,
E emotions of a bank, N items of a list. `c0` is codebook zero, `depth` the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
EMOTIONS = ("happy", "sad", "angry", "fearful", "surprised", "neutral")
"""The guide's six emotions; users can add their own."""


@dataclass(frozen=True)
class Clip:
    """One utterance on disk."""

    id: str
    audio: Path
    """Absolute path of the sound file."""
    text: str | None
    """What is said; None if there is no transcript (such clips can be scored but not trained on)."""
    emotion: str | None
    """Label in affetto's vocabulary; None is general speech."""
    speaker: str
    corpus: str
    split: str | None = None
    """One of `SPLITS`; None until `affetto.audio.splits` has decided."""
    start_s: float | None = None
    end_s: float | None = None
    """Segment of the file; None means the file's start or end."""
    context: tuple[str, ...] = ()
    """Ids of earlier turns of the same conversation, oldest first; heard by the model, never trained on."""
    transcribed_by: str | None = None
    """The judge that transcribed it; None if people did."""
    channel: int | None = None
    """Channel of the file, counted from 1, if each channel is another speaker; None means the mean of all."""
    intensity: float | None = None
    """How strongly the emotion is acted, above 0 and up to 1 (the corpus's strongest); None means 1. It is the gate
    under which the adapter trains on the clip."""

    @property
    def gate(self) -> float:
        """The gate under which an adapter trains on the clip."""
        return 1.0 if self.intensity is None else self.intensity


@dataclass(frozen=True)
class Problem:
    """Something wrong with one clip or manifest row, in words that say what to do."""

    where: str
    """Clip id, or `manifest.jsonl:12`."""
    kind: str
    """Short constant: missing-file, unreadable, empty, silent, clipped, too-long, too-short, not-finite, missing-text,
    wrong-text, unknown-emotion, mislabelled (the clip is kept, with the right
    labels, or a folder whose name is no known emotion, or a table that isn't read, is told of), duplicate-id, bad-row,
    bad-context, bad-segment, unaligned, bad-annotation, split-overlap, missing-split, unplaced; and doubts, which cost
    no clip: odd-tempo, odd-duration, duplicate-sound, unbalanced, confounded, text-mismatch, label-doubt."""
    message: str

    @property
    def costs_no_clip(self) -> bool:
        """Whether the clip is kept nonetheless, as with labels that were corrected."""
        return self.kind == "mislabelled"


SPEAKING_TEMPERATURE = 0.6
"""Default sampling temperature (docs/log.md)."""
SPEAKING_TAKES = 6
"""Default number of takes of a sentence, of which the best is kept (docs/training.md)."""


class SoundStream(Protocol):
    """Decodes one sound in pieces, which joined are what the codec decodes from all codes at once."""

    def push(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        """The mono samples that no later code can change, maybe none yet."""
        ...

    def finish(self) -> NDArray[np.float32]:
        """End the stream; returns the samples that were held back."""
        ...


class SoundStreams(Protocol):
    """Decodes many sounds in pieces, each under a number of the caller's and each as a `SoundStream` would."""

    def push(self, codes: Mapping[int, NDArray[np.integer]]) -> dict[int, NDArray[np.float32]]:
        """From the next codes (T, K) of each sound, the mono samples that no later code can change, maybe none yet.

        A new number begins a sound. All open sounds must advance together, by equally many frames (DataError).
        """
        ...

    def finish(self, number: int) -> NDArray[np.float32]:
        """End a sound; returns the samples that were held back, which are none for a number that isn't open."""
        ...


class CodeStream(Protocol):
    """Encodes one sound in pieces; the codes, joined, are those of encoding all whole frames at once."""

    def push(self, samples: NDArray[np.floating]) -> NDArray[np.int64]:
        """Codes (T, K) of the frames that are complete now, maybe none; the rest waits for more samples."""
        ...


class Codec(Protocol):
    """Samples to codes and back."""

    name: str
    sample_rate: int
    frame_rate: float
    num_codebooks: int
    codebook_size: int

    def encode(self, samples: NDArray[np.floating]) -> NDArray[np.int64]:
        """Codes (T, K) of mono samples at `sample_rate`."""
        ...

    def decode(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        """Mono samples of codes (T, K)."""
        ...

    def cepstra(self, codes_TK: NDArray[np.integer]) -> NDArray[np.floating]:
        """Mel-cepstra (S, C), one every 20 ms, of what codes (T, K) sound like; T is at least 1."""
        ...

    def open_stream(self) -> SoundStream:
        """A decoder of one sound while its codes arrive. BaseModelError if the codec looks ahead."""
        ...

    def open_streams(self) -> SoundStreams:
        """A decoder of many sounds while their codes arrive. BaseModelError if the codec looks ahead."""
        ...


@runtime_checkable
class BatchCodec(Codec, Protocol):
    """A codec that can encode clips in batches, where that is faster."""

    def encode_batch(self, sounds: Sequence[NDArray[np.floating]]) -> list[NDArray[np.int64]]:
        """`encode` of each of `sounds`, in order."""
        ...
