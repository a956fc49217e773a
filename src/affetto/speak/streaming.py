"""Streaming: the sound of many requests while they are spoken, drawn in one batch and decoded in one pass per frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affetto.model.base import Base
from affetto.model.csm import CsmNetwork
from affetto.speak.generation import hear
from affetto.speak.requests import Request
from affetto.speak.state import Heard
from affetto.types import SoundStreams


@dataclass(frozen=True)
class Piece:
    """A piece of one request's sound."""

    number: int
    """The request's number, as in `Heard`."""
    samples_N: NDArray[np.float32]
    """Mono, at the codec's rate; the last piece may have none."""
    is_last: bool
    """Whether it is the request's last piece."""


def can_stream(base: Base) -> bool:
    """Whether a base speaks frame by frame rather than a whole text at once."""
    return base.has_text_stream or isinstance(base.network, CsmNetwork)


def sound_of(frame: Sequence[Heard], streams: SoundStreams) -> list[Piece]:
    """The sound of a frame that `Engine.step` returned, in its order; `streams` must decode only the engine's rows."""
    # All open sounds advance together, so those without a frame must be finished first.
    rests = {heard.number: streams.finish(heard.number) for heard in frame if heard.codes_K is None}
    samples = streams.push({heard.number: heard.codes_K[None] for heard in frame if heard.codes_K is not None})
    pieces = []
    for heard in frame:
        number = heard.number
        if number in samples and len(samples[number]):
            pieces.append(Piece(number, samples[number], is_last=False))
        if heard.is_last:
            rest = rests[number] if number in rests else streams.finish(number)
            pieces.append(Piece(number, rest, is_last=True))
    return pieces


def stream(base: Base, requests: Sequence[Request], streams: SoundStreams, *, batch_size: int = 32) -> Iterator[Piece]:
    """The sound of all requests while they are spoken, `batch_size` at a time; a piece's number is a request's place.

    The base must pass `can_stream`; `streams` are of its codec.
    """
    for frame in _frames(base, requests, batch_size):
        yield from sound_of(frame, streams)


def _frames(base: Base, requests: Sequence[Request], batch_size: int) -> Iterator[list[Heard]]:
    """What each request says, frame by frame."""
    if isinstance(base.network, CsmNetwork):
        yield from hear(base, requests, batch_size)
    else:
        from affetto.speak.dialogue import stream_words

        for start in range(0, len(requests), batch_size):
            for frame in stream_words(base, requests[start : start + batch_size]):
                yield [heard._replace(number=start + heard.number) for heard in frame]
