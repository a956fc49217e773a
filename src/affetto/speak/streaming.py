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
    """Of the request, as in `Heard`."""
    samples_N: NDArray[np.float32]
    """Mono, at the codec's rate; maybe none in the last piece."""
    is_last: bool
    """Whether it is the request's last piece."""


def can_stream(base: Base) -> bool:
    """Whether a base speaks frame by frame, and not a whole text at once."""
    return base.has_text_stream or isinstance(base.network, CsmNetwork)


def sound_of(told: Sequence[Heard], streams: SoundStreams) -> list[Piece]:
    """The sound of what `Engine.step` returned, in its order; `streams` must decode the engine's rows and no others."""
    # All open sounds advance together, so those without a frame must have ended.
    rest = {one.number: streams.finish(one.number) for one in told if one.codes_K is None}
    samples = streams.push({one.number: one.codes_K[None] for one in told if one.codes_K is not None})
    pieces = []
    for one in told:
        if one.number in samples and len(samples[one.number]):
            pieces.append(Piece(one.number, samples[one.number], is_last=False))
        if one.is_last:
            held = rest[one.number] if one.number in rest else streams.finish(one.number)
            pieces.append(Piece(one.number, held, is_last=True))
    return pieces


def stream(base: Base, requests: Sequence[Request], streams: SoundStreams, *, batch_size: int = 32) -> Iterator[Piece]:
    """The sound of all requests while they are spoken, `batch_size` at a time; a piece's number is a request's place.

    The base must pass `can_stream`; `streams` are of its codec.
    """
    for told in _frames(base, requests, batch_size):
        yield from sound_of(told, streams)


def _frames(base: Base, requests: Sequence[Request], batch_size: int) -> Iterator[list[Heard]]:
    """What was heard of each request, frame by frame."""
    if isinstance(base.network, CsmNetwork):
        yield from hear(base, requests, batch_size)
    else:
        from affetto.speak.dialogue import stream_words

        for start in range(0, len(requests), batch_size):
            for told in stream_words(base, requests[start : start + batch_size]):
                yield [one._replace(number=start + one.number) for one in told]
