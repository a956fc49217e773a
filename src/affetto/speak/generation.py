"""Generation: batches of requests, spoken frame by frame, each with its own gate, seed and length.

A row's random numbers come from its own seed alone, so what it says doesn't depend on its neighbours, except for the
rounding of batched products. Sampling settings are part of the request; nothing is kept between calls.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from threading import Lock, RLock
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import Module

from affetto.errors import ConfigError
from affetto.model.base import Base
from affetto.model.batch import Row, Turn
from affetto.model.csm import CsmNetwork
from affetto.model.moshi import MoshiNetwork
from affetto.model.network import Network
from affetto.speak.engine import Engine
from affetto.speak.parallel import rows_at_once, shares_of
from affetto.speak.requests import Request, Spoken
from affetto.speak.sampling import Sampling, dice, require_numbers
from affetto.speak.state import Heard
from affetto.speak.takes import best_takes, num_witnesses
from affetto.speak.weights import SpeakingWeights
from affetto.types import Codec


def frame_cap(text: str, frame_rate: float) -> int:
    """More frames than any reading of `text` needs: 1.5 s and 0.18 s per character (slow speech takes 0.1 s)."""
    return math.ceil(frame_rate * (1.5 + 0.18 * len(text)))


QUICKEST_S = 0.04
"""Seconds per character of the fastest possible reading."""


def frames_that_fit(base: Base, text: str, num_ids: int) -> int:
    """Frames that `text`, a prompt of `num_ids` ids, may take: its `frame_cap`, or fewer if the window ends first.

    So a text that might fit is begun, and the user is told if it was cut off (`cut_off`). ConfigError if not even the
    fastest reading would fit.
    """
    cap, room = frame_cap(text, base.frame_rate), base.network.room(num_ids)
    if room is None or cap <= room:
        return cap
    if room < max(1.0, base.frame_rate * QUICKEST_S * len(text)):
        most = len(text) * base.window // (num_ids + cap)
        raise ConfigError(
            f"a text of {len(text)} characters can't be spoken at once: {base.id} looks back over {base.window} "
            f"positions, which is enough for about {most}. Split it into sentences and speak one after another"
        )
    return room


def cut_off(base: Base, text: str, spoken: Spoken) -> str:
    """The warning about speech that the frame cap ended rather than the base."""
    after = f"cut off after {len(spoken.codes_TK) / base.frame_rate:.1f} s"
    if len(spoken.codes_TK) < frame_cap(text, base.frame_rate):
        return f"{after}, where the base's window ends; split the text"
    return f"{after}: the base didn't stop; try another seed"


def generate(
    base: Base,
    requests: Sequence[Request],
    *,
    batch_size: int = 32,
    on_progress: Callable[[int], object] | None = None,
    on_frame: Callable[[int, NDArray[np.int64]], object] | None = None,
) -> list[Spoken]:
    """Speak all requests, `batch_size` at a time; results in the order of the requests.

    `on_progress` gets the number of requests that just ended, `on_frame` a request's place and its next frame (K,).
    BaseModelError if the base's weights are damaged so that it computes NaN.
    """
    assert all(request.takes == 1 for request in requests), "takes are compared by `generate_best`"
    if not isinstance(base.network, CsmNetwork):
        return _batch_by_batch(base, requests, batch_size, on_progress)
    weights = weights_of(base.network)  # made here once; the threads only read them
    parts = [range(len(requests))] if on_frame else shares_of(weights, requests, batch_size)
    if len(parts) == 1:
        return _row_by_row(base, requests, batch_size, on_progress, on_frame)
    # So are the weights with the adapters of the one gate that all rows have.
    weights.arranged([requests[0].gate if any(requests[0].gate) else ()])
    lock = Lock()

    def advance(num: int) -> None:
        with lock:
            if on_progress:
                on_progress(num)

    def say(part: Sequence[int]) -> list[Spoken]:
        return _row_by_row(base, [requests[index] for index in part], batch_size // len(parts), advance, None)

    with ThreadPoolExecutor(len(parts)) as pool:
        spoken = dict(zip(chain(*parts), chain(*pool.map(say, parts)), strict=True))
    return [spoken[index] for index in range(len(requests))]


def _row_by_row(
    base: Base, requests: Sequence[Request], batch_size: int, on_progress: Callable[[int], object] | None,
    on_frame: Callable[[int, NDArray[np.int64]], object] | None,
) -> list[Spoken]:  # fmt: skip
    """`generate` of a CSM, in this thread."""
    frames: list[list[NDArray[np.int64]]] = [[] for _ in requests]
    for frame in hear(base, requests, batch_size):
        for heard in frame:
            if heard.codes_K is not None:
                frames[heard.number].append(heard.codes_K)
                if on_frame:
                    on_frame(heard.number, heard.codes_K)
        num_ended = sum(heard.is_last for heard in frame)
        if on_progress and num_ended:
            on_progress(num_ended)
    no_frames = np.zeros((0, base.num_codebooks), dtype=np.int64)
    return [
        Spoken(np.stack(codes) if codes else no_frames, hit_cap=len(codes) >= request.max_frames)
        for request, codes in zip(requests, frames, strict=True)
    ]


def generate_best(
    base: Base, codec: Codec, requests: Sequence[Request], *, batch_size: int = 32,
    on_progress: Callable[[int], object] | None = None,
) -> list[Spoken]:  # fmt: skip
    """`generate` for requests of several takes, of which the best is kept: see `affetto.speak.takes`."""
    rows = rows_at_once(base, requests, batch_size)
    if all(request.takes == 1 for request in requests):
        return generate(base, requests, batch_size=rows, on_progress=on_progress)
    num_told, num_said, num_takes = 0, 0, sum(request.takes + num_witnesses(request) for request in requests)

    def advance(num: int) -> None:
        # Takes of a request end at different times, so progress is the share of takes that have ended.
        nonlocal num_told, num_said
        num_said += num
        num_done = num_said * len(requests) // num_takes
        if on_progress and num_done > num_told:
            on_progress(num_done - num_told)
        num_told = num_done

    def say(singles: list[Request]) -> list[Spoken]:
        return generate(base, singles, batch_size=rows, on_progress=advance)

    return best_takes(codec, requests, say)


def hear(base: Base, requests: Sequence[Request], batch_size: int) -> Iterator[list[Heard]]:
    """Speak requests with a CSM, `batch_size` at once; yields what each frame says, numbered by request."""
    assert isinstance(base.network, CsmNetwork)
    if batch_size < 1:
        raise ConfigError(f"batch_size must be 1 or more, not {batch_size}")
    if silent := [index for index, request in enumerate(requests) if request.max_frames <= 0]:
        yield [Heard(index, None, is_last=True) for index in silent]
    order = [index for index, request in enumerate(requests) if request.max_frames > 0]
    # Rows with the same gate go together, because that makes adapters cheapest; within a gate, rows of similar length.
    order.sort(key=lambda index: (requests[index].gate, requests[index].max_frames, index))
    engine, waiting = Engine(weights_of(base.network), base=str(base.folder)), deque(order)
    speaking: dict[int, int] = {}
    try:
        while waiting or engine.num_speaking:
            num_free = batch_size - engine.num_speaking
            # Joining moves the whole batch, so rows don't join one by one as others leave.
            if waiting and 4 * num_free >= batch_size:
                joining = [waiting.popleft() for _ in range(min(num_free, len(waiting)))]
                speaking |= dict(zip(engine.join([requests[index] for index in joining]), joining, strict=True))
            yield [Heard(speaking[heard.number], heard.codes_K, heard.is_last) for heard in engine.step()]
    finally:
        engine.close()


def _batch_by_batch(
    base: Base, requests: Sequence[Request], batch_size: int, on_progress: Callable[[int], object] | None
) -> list[Spoken]:
    """`generate` for a base that isn't a CSM, in batches of similar length."""
    from affetto.speak.dialogue import say_words

    say = say_words if isinstance(base.network, MoshiNetwork) else _say_whole
    order = sorted(range(len(requests)), key=lambda index: (requests[index].max_frames, index))
    spoken: dict[int, Spoken] = {}
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        spoken |= dict(zip(part, say(base, [requests[index] for index in part]), strict=True))
        if on_progress:
            on_progress(len(part))
    return [spoken[index] for index in range(len(requests))]


@torch.inference_mode()
def _say_whole(base: Base, requests: Sequence[Request]) -> list[Spoken]:
    """Speak with `Network.speak`, drawing codes with the requests' own random numbers."""
    network, device = base.network, base.device
    sampling = Sampling(requests, network.codebook_size, device, network.least_temperature)
    uniform_BXK = torch.zeros(len(requests), 0, base.num_codebooks, device=device)

    def pick(logits_BKC: torch.Tensor, step: int) -> torch.Tensor:
        nonlocal uniform_BXK
        if step == 0:
            require_numbers([logits_BKC], str(base.folder), [request.gate for request in requests])
        if step >= uniform_BXK.shape[1]:
            # The number of steps isn't known in advance. A longer draw begins with the numbers of a shorter one.
            draws = [dice(request.seed, 2 * step + 64, base.num_codebooks) for request in requests]
            uniform_BXK = torch.stack(draws).to(device)
        columns = [sampling.pick(logits_BKC[:, k], uniform_BXK[:, step, [k]], k) for k in range(base.num_codebooks)]
        return torch.stack(columns, dim=1)

    rows = [Row("", (*request.context, Turn(request.text_ids, None)), request.gate) for request in requests]
    with eval_mode(network):
        said = network.speak(rows, [request.max_frames for request in requests], pick)
    return [Spoken(codes_TK, hit_cap) for codes_TK, hit_cap in said]


_LOCKS: WeakKeyDictionary[Network, RLock] = WeakKeyDictionary()
_LOCKS_LOCK = Lock()


@contextmanager
def eval_mode(network: Network) -> Iterator[None]:
    """Put the network into eval mode and lock it for this thread: all threads share its mode and its gates.

    In train mode activation checkpointing would drop the key-value cache.
    """
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(network, RLock())
    with lock:
        was_training = network.training
        network.eval()
        try:
            yield
        finally:
            network.train(was_training)


_WEIGHTS: WeakKeyDictionary[CsmNetwork, tuple[object, SpeakingWeights]] = WeakKeyDictionary()


@torch.inference_mode()
def weights_of(network: CsmNetwork) -> SpeakingWeights:
    """The network's weights for the engine; made once, and again when a weight has changed or an adapter was added."""
    cached = _WEIGHTS.get(network)
    if cached is None or cached[0] != fingerprint(network):
        weights = SpeakingWeights(network)
        # Taken only now: on a GPU, `SpeakingWeights` moves the network's own weights.
        cached = _WEIGHTS[network] = (fingerprint(network), weights)
    return cached[1]


def fingerprint(network: CsmNetwork) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight of the network, or of its adapters, is replaced or written to."""
    versions: list[tuple[int, int]] = []
    modules: list[Module] = [network]
    # Not `network.parameters()`, which takes as long as four frames, since it also collects names.
    while modules:
        module = modules.pop()
        modules += filter(None, module._modules.values())
        versions += [
            (weight.data_ptr(), -1 if weight.is_inference() else weight._version)
            for weight in module._parameters.values()
            if weight is not None
        ]
    return tuple(versions)
