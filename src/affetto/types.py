"""The small things that travel between stages. One shape legend for the whole package:

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
"""The guide's six. Users add their own names beside them."""


@dataclass(frozen=True)
class Clip:
    """One utterance on disk."""

    id: str
    audio: Path
    """Absolute path of the sound file."""
    text: str | None
    """What is said; None where nobody wrote it down (such clips can be scored but not trained on)."""
    emotion: str | None
    """Label in affetto's vocabulary; None is general speech."""
    speaker: str
    corpus: str
    split: str | None = None
    """One of `SPLITS`; None until `affetto.audio.splits` has decided."""
    start_s: float | None = None
    end_s: float | None = None
    """Segment of the file; None is its start or end."""
    context: tuple[str, ...] = ()
    """Ids of earlier turns of the same conversation, oldest first; heard by the model, never trained on."""
    transcribed_by: str | None = None
    """Judge that wrote the text down; None is people."""
    channel: int | None = None
    """Of the file, counted from 1, where each channel is another speaker; None is the mean of all."""
    intensity: float | None = None
    """How strongly the emotion is acted, above 0 and up to 1, the corpus's strongest; None is 1. The adapter trains on
    the clip under that gate."""

    @property
    def gate(self) -> float:
        """The gate of an adapter that trains on the clip."""
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
        """Whether what was read is right in spite of it: labels that were put right."""
        return self.kind == "mislabelled"


SPEAKING_TEMPERATURE = 0.6
"""Of sampled codes, unless somebody says otherwise (docs/log.md)."""
SPEAKING_TAKES = 6
"""How often a sentence is said, of which one take is kept, unless somebody says otherwise (docs/training.md)."""


class SoundStream(Protocol):
    """One sound in pieces: all that it gives, joined, is what the codec makes of all codes at once."""

    def push(self, codes_TK: NDArray[np.integer]) -> NDArray[np.float32]:
        """Mono samples that no later code changes, maybe none yet."""
        ...

    def finish(self) -> NDArray[np.float32]:
        """The samples that were held back; the stream has ended."""
        ...


class SoundStreams(Protocol):
    """Many sounds in pieces, each under a number of the caller's, and each as a `SoundStream` gives it."""

    def push(self, codes: Mapping[int, NDArray[np.integer]]) -> dict[int, NDArray[np.float32]]:
        """Mono samples of each sound that no later code changes, maybe none yet, of its next codes (T, K).

        A new number begins a sound. All open sounds go on together, by as many frames each; DataError otherwise.
        """
        ...

    def finish(self, number: int) -> NDArray[np.float32]:
        """The samples of a sound that were held back; it has ended. None of a number that isn't open."""
        ...


class CodeStream(Protocol):
    """Samples of one sound in pieces; all that it gives, joined, are the codes of all whole frames at once."""

    def push(self, samples: NDArray[np.floating]) -> NDArray[np.int64]:
        """Codes (T, K) of the frames that are whole now, maybe none; the rest waits for more samples."""
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
        """One sound to be decoded while its codes come. BaseModelError where the codec looks ahead."""
        ...

    def open_streams(self) -> SoundStreams:
        """Many sounds to be decoded together while their codes come. BaseModelError where the codec looks ahead."""
        ...


@runtime_checkable
class BatchCodec(Codec, Protocol):
    """A codec that can code clips together, where it knows that to be faster."""

    def encode_batch(self, sounds: Sequence[NDArray[np.floating]]) -> list[NDArray[np.int64]]:
        """What `encode` gives of each of `sounds`, in their order."""
        ...
