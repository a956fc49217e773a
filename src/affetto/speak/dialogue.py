"""Speaking with Moshi, step by step: given words, or its own answers to a user.

Each step of 80 ms hears the previous frame and says the next one: a token of the inner monologue, the first code, and
the acoustic codes of the previous frame (`affetto.model.moshi`). All rows of a batch begin together, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from affetto.codes.silence import silence_codes
from affetto.model.base import Base
from affetto.model.batch import stack_gates
from affetto.model.monologue import END_PADDING, PADDING
from affetto.model.moshi import MoshiNetwork
from affetto.speak.arguments import require_seed
from affetto.speak.generation import eval_mode
from affetto.speak.requests import Request, Spoken
from affetto.speak.sampling import Sampling, dice, require_numbers
from affetto.speak.state import Heard

PATIENCE_FRAMES = 12
"""How long a given word waits for Moshi to begin it by itself: a second."""
END_FRAMES = 12
"""Frames after the last word that belong to it."""
PickText = Callable[[Tensor, int], Tensor]
"""Tokens (B,) of step s from their logits (B, W)."""


@dataclass(frozen=True)
class Frame:
    """What a batch said in one frame: tokens of the inner monologue (B,) and codes (B, K)."""

    text_B: Tensor
    codes_BK: Tensor


@torch.inference_mode()
def converse(
    base: Base, user: Iterable[Tensor], pick_text: PickText, requests: Sequence[Request], num_frames: int,
    is_over: Callable[[], bool] = lambda: False,
) -> Iterator[Frame]:  # fmt: skip
    """Speak while hearing the user, frame by frame, for at most `num_frames` or until `is_over`.

    `user` gives the user's codes (B, K) of each frame, and may be as slow as a microphone: a frame is taken once the
    previous one has been yielded. Frames are yielded a step late, when their acoustic codes are known. Only the gates,
    seeds and sampling of the requests are used. Each step attends to the last `network.window` positions, its own
    included, and older ones are dropped, as in the ring cache of the `moshi` package's transformer. BaseModelError if
    the first logits are NaN.
    """
    network = base.network
    assert isinstance(network, MoshiNetwork)
    num_rows, num_codebooks, frames = len(requests), network.num_codebooks, iter(user)
    start_B1 = torch.full((num_rows, 1), network.audio_start, device=base.device)
    heard_BC = start_B1.expand(-1, 2 * num_codebooks)
    text_B = torch.full((num_rows,), network.text_start, device=base.device)
    late_user_BJ = late_own_BJ = start_B1.expand(-1, num_codebooks - 1)
    cache = DynamicCache(config=network.backbone.config)
    sampling = Sampling(requests, network.codebook_size, base.device)
    uniform_BTK = torch.stack([dice(request.seed, num_frames + 1, num_codebooks) for request in requests])
    uniform_BTK = uniform_BTK.to(base.device)
    gates = [request.gate for request in requests]
    gate_BE = stack_gates(gates).to(base.device)
    previous: Frame | None = None
    # One step more than there are frames, for the acoustic codes of the last one.
    for step in range(num_frames + 1):
        # Gates are set only during a step, because the caller may use the network between steps.
        with eval_mode(network), network.gates.set(gate_BE):
            embeds_B1D = network.embed_step(text_B[:, None], heard_BC[:, None])
            state_BD = network.backbone(
                inputs_embeds=embeds_B1D, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            check = partial(require_numbers, base=str(base.folder), gates=gates) if step == 0 else _no_check
            check([text_BW := network.text_logits(state_BD)])
            text_B = pick_text(text_BW, step)
            codes_BK = _codes(network, state_BD, text_B, sampling, uniform_BTK[:, step], check)
        if previous is not None:
            late_own_BJ = codes_BK[:, 1:]
            yield Frame(previous.text_B, torch.cat([previous.codes_BK[:, :1], late_own_BJ], dim=1))
        if is_over() or step == num_frames or (user_BK := next(frames, None)) is None:
            return
        previous, user_BK = Frame(text_B, codes_BK), user_BK.to(base.device)
        heard_BC = torch.cat([codes_BK[:, :1], late_own_BJ, user_BK[:, :1], late_user_BJ], dim=1)
        late_user_BJ = user_BK[:, 1:]


def _no_check(_logits: Sequence[Tensor]) -> None:
    """Later steps aren't checked."""


def _codes(
    network: MoshiNetwork, state_BD: Tensor, text_B: Tensor, sampling: Sampling, uniform_BK: Tensor,
    check: Callable[[Sequence[Tensor]], None],
) -> Tensor:  # fmt: skip
    """All codes (B, K) of a step: its frame's first code, and the acoustic codes of the previous frame."""
    # Needs no window: a step has fewer codes than the depth transformer looks back over.
    cache, previous_B = DynamicCache(), text_B
    codes = []
    for k in range(network.num_codebooks):
        hidden_B1D = network.depth_states(state_BD, previous_B[:, None], first=k, cache=cache)
        logits_BC = network.code_logits(hidden_B1D, range(k, k + 1))[:, 0, : network.codebook_size]
        check([logits_BC])
        previous_B = sampling.pick(logits_BC, uniform_BK[:, [k]], k)
        codes.append(previous_B)
    return torch.stack(codes, dim=1)


def say_words(base: Base, requests: Sequence[Request]) -> list[Spoken]:
    """Say the words of each request to a silent user: the inner monologue is given, but Moshi times the words."""
    readers, frames = _read_aloud(base, requests)
    codes_BTK = torch.stack([frame.codes_BK for frame in frames], dim=1).cpu().numpy()
    return [Spoken(codes_TK[: reader.end], reader.hit_cap) for codes_TK, reader in zip(codes_BTK, readers, strict=True)]


def stream_words(base: Base, requests: Sequence[Request]) -> Iterator[list[Heard]]:
    """`say_words` frame by frame, each as soon as it is known; numbers are the requests' places."""
    readers, frames = _read_aloud(base, requests)
    speaking = list(range(len(requests)))
    for place, frame in enumerate(frames):
        ends, codes_BK = [readers[row].end for row in speaking], frame.codes_BK.cpu().numpy()
        ended = {row for row, end in zip(speaking, ends, strict=True) if end is not None and place >= end}
        yield [Heard(row, None if row in ended else codes_BK[row], is_last=row in ended) for row in speaking]
        speaking = [row for row in speaking if row not in ended]
    yield [Heard(row, None, is_last=True) for row in speaking]


def _read_aloud(base: Base, requests: Sequence[Request]) -> tuple[list[_Reader], Iterator[Frame]]:
    """The frames of a batch in which every row reads its words, and the readers, which know where each row ends."""
    longest = max(request.max_frames for request in requests)
    assert not any(request.context for request in requests), "earlier turns are not spoken to yet"
    readers = [_Reader(_words(base, request.text_ids), request.max_frames) for request in requests]

    def pick(logits_BW: Tensor, step: int) -> Tensor:
        picked = logits_BW.argmax(dim=1).tolist()
        tokens = [reader.next(token, step) for reader, token in zip(readers, picked, strict=True)]
        return torch.tensor(tokens, device=logits_BW.device)

    silence_TK = torch.from_numpy(silence_codes(base.folder, max(1, longest)))
    user = (silence_K.expand(len(requests), -1) for silence_K in silence_TK)
    return readers, converse(
        base, user, pick, requests, longest, is_over=lambda: all(reader.end is not None for reader in readers)
    )


def continue_dialogue(
    base: Base, user_TK: NDArray[np.integer], *, seed: int = 0, temperature: float = 0.8, top_k: int = 250,
    text_temperature: float = 0.7, text_top_k: int = 25, gate: tuple[float, ...] = (),
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """What Moshi thinks (T,) and says (T, K) while it hears the user's codes (T, K); see `stream_dialogue`."""
    said = list(
        stream_dialogue(
            base, user_TK, len(user_TK), seed=seed, temperature=temperature, top_k=top_k,
            text_temperature=text_temperature, text_top_k=text_top_k, gate=gate,
        )
    )  # fmt: skip
    return np.array([text for text, _ in said], dtype=np.int64), np.stack([codes_K for _, codes_K in said])


def stream_dialogue(
    base: Base, user: Iterable[NDArray[np.integer]], max_frames: int, *, seed: int = 0, temperature: float = 0.8,
    top_k: int = 250, text_temperature: float = 0.7, text_top_k: int = 25, gate: tuple[float, ...] = (),
) -> Iterator[tuple[int, NDArray[np.int64]]]:  # fmt: skip
    """What Moshi thinks (a token) and says (codes (K,)), frame by frame while it hears the user's codes (K,).

    `user` may be as slow as a microphone: a frame is taken once the previous one has been yielded. Temperatures of 0
    are greedy; the defaults are those of the `moshi` package's `LMGen`. ConfigError for an invalid seed.
    """
    seed = require_seed(seed)
    request = Request((), max_frames, gate, seed=seed, temperature=temperature, top_k=top_k)
    generator = torch.Generator().manual_seed(seed + 1)

    def pick(logits_BW: Tensor, _: int) -> Tensor:
        if text_temperature == 0:
            return logits_BW.argmax(dim=1)
        best, places = (logits_BW.double().cpu() / text_temperature).topk(min(text_top_k or 10**9, logits_BW.shape[1]))
        drawn = torch.multinomial(best.softmax(dim=1), 1, generator=generator)
        return places.gather(1, drawn)[:, 0].to(logits_BW.device)

    heard = (torch.from_numpy(np.asarray(user_K, dtype=np.int64))[None] for user_K in user)
    for frame in converse(base, heard, pick, [request], max_frames):
        yield int(frame.text_B), frame.codes_BK[0].cpu().numpy()


@dataclass
class _Reader:
    """Feeds a row its words, and knows how far it is."""

    words: list[list[int]]
    max_frames: int
    pending: list[int] = field(default_factory=list)
    """Tokens of the current word that are still to come."""
    num_waited: int = 0
    """Frames that the next word has waited."""
    num_after: int = 0
    """Frames since the last word."""
    last_token: int = PADDING
    end: int | None = None
    """Number of frames that are said, once it is known."""
    hit_cap: bool = False

    def next(self, picked: int, step: int) -> int:
        """The token of step `step`: the next one that is due, or `picked`, Moshi's choice, if that is a pause."""
        if self.end is None and step >= self.max_frames:
            self.end, self.hit_cap = self.max_frames, bool(self.words or self.pending)
        if not self.words and not self.pending:
            self.num_after += 1
        token = self._token(picked)
        if self.num_after > END_FRAMES and self.end is None:
            self.end = step
        self.last_token = token
        return token

    def _token(self, picked: int) -> int:
        if self.pending:
            return self.pending.pop(0)
        if not self.words:
            return PADDING
        is_pause = picked == PADDING or (picked == END_PADDING and self.last_token != END_PADDING)
        if is_pause and self.num_waited < PATIENCE_FRAMES:
            self.num_waited += 1
            return picked
        self.num_waited, self.pending = 0, self.words.pop(0)
        return self.pending.pop(0)


def _words(base: Base, ids: Sequence[int]) -> list[list[int]]:
    """Tokens word by word: SentencePiece begins each with its mark for a space."""
    words: list[list[int]] = []
    for token, piece in zip(ids, base.tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        if piece.startswith("▁") or not words:
            words.append([])
        words[-1].append(token)
    return words
