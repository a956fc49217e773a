"""Drawing codes, by each row's own temperatures, top-k and seed, on the device and without waiting for the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from affetto.errors import BaseModelError
from affetto.speak.requests import Request


def dice(seed: int, num_frames: int, num_codebooks: int) -> Tensor:
    """Uniform numbers in [0, 1) for all frames of a row, (T, K), float32, from its own seed alone.

    Drawn in double precision on the host, so that a seed says the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_frames, num_codebooks, generator=generator, dtype=torch.float64).float()


class Warmth:
    """The temperatures of a batch's rows, for the first codebook or for the others."""

    def __init__(self, temperatures: Sequence[float], device: torch.device) -> None:
        self.is_greedy = max(temperatures) == 0
        self.temperature_B = torch.tensor(temperatures, dtype=torch.float32, device=device)
        """0 is greedy."""
        self.divisor_B1 = self.temperature_B[:, None].clamp(min=1e-6)
        self.is_greedy_B = self.temperature_B == 0 if min(temperatures) == 0 else None


class Sampling:
    """How the rows of a batch draw their codes; rows that aren't greedy have at least `least_temperature`."""

    def __init__(
        self, requests: Sequence[Request], codebook_size: int, device: torch.device, least_temperature: float = 0.0
    ) -> None:
        first, depth = (
            Warmth([max(value, least_temperature) if value else 0.0 for value in temperatures], device)
            for temperatures in zip(*(request.temperatures for request in requests), strict=True)
        )
        self.warmths = first, depth
        self.top_k_B = torch.tensor([min(request.top_k, codebook_size) for request in requests], device=device)
        self.max_top_k = max(min(request.top_k, codebook_size) for request in requests)
        self.has_top_k_B1 = (self.top_k_B > 0)[:, None]
        self.last_place_B1 = (self.top_k_B - 1).clamp(min=0)[:, None]
        self.zero = torch.zeros((), dtype=torch.float32, device=device)

    def pick(self, logits_BC: Tensor, uniform_B1: Tensor, book: int) -> Tensor:
        """Codebook `book`'s code per row (B,): the first whose cumulative probability exceeds `uniform`, or the
        likeliest one if the row is greedy."""
        warmth = self.warmths[book > 0]
        if warmth.is_greedy:
            return logits_BC.argmax(dim=-1)
        scores_BC = logits_BC / warmth.divisor_B1
        if self.max_top_k > 0:
            best_BM = scores_BC.topk(self.max_top_k, dim=-1).values
            least_B1 = best_BM.gather(1, self.last_place_B1)
            scores_BC = scores_BC.masked_fill(self.has_top_k_B1 & (scores_BC < least_B1), -torch.inf)
        cumulative_BC = torch.softmax(scores_BC, -1).cumsum(-1)
        total_B1 = cumulative_BC[:, -1:]
        # Below the total and from the right, so that a code of probability zero is never drawn.
        target_B1 = torch.minimum(uniform_B1 * total_B1, total_B1.nextafter(self.zero))
        drawn_B1 = torch.searchsorted(cumulative_BC, target_B1, right=True)
        if warmth.is_greedy_B is not None:
            drawn_B1 = torch.where(warmth.is_greedy_B[:, None], logits_BC.argmax(dim=-1, keepdim=True), drawn_B1)
        return drawn_B1.view(-1)


def require_numbers(logits: Iterable[Tensor], base: str, gates: Iterable[Sequence[float]]) -> None:
    """Raise BaseModelError if the first logits of a generation are NaN or infinite; barred codes may be -inf.

    `gates` are the rows' intensities per adapter: an adapter that is on is a likelier cause than the base's weights.

    This waits for the device, so it is called once per generation: damaged weights show in the first logits. Only
    torch's attention on a CPU hides them, as it gives zeros for a query that is NaN (as for one that attends to
    nothing); then they show in the next frame, see `require_codes`.
    """
    if not bool(torch.stack([(part < torch.inf).all() for part in logits]).all()):
        raise _damaged(base, gates)


def require_codes(codes_BK: NDArray[np.int64], codebook_size: int, base: str, gates: Iterable[Sequence[float]]) -> None:
    """Raise BaseModelError for a code that doesn't exist: drawing from NaN gives the one past the last. The arguments
    are as for `require_numbers`."""
    if int(codes_BK.max(initial=0)) >= codebook_size:
        raise _damaged(base, gates)


def _damaged(base: str, gates: Iterable[Sequence[float]]) -> BaseModelError:
    problem, remedy = f"{base}: what it says is NaN or infinite", "copy or fetch the checkpoint again"
    if strongest := max(chain.from_iterable(gates), default=0.0):
        return BaseModelError(
            f"{problem} with an adapter at intensity {strongest:g}: speak at a lower one. If the base alone does this, "
            f"some of its weights are damaged: {remedy}"
        )
    return BaseModelError(f"{problem}, so some of its weights are damaged; {remedy}")
