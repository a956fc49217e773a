"""The Fisher pass: a curvature estimated in one pass of the frozen base, gates at zero, over general speech."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from affetto.files import hash_text
from affetto.model.batch import Batch, Row, collate
from affetto.model.rows_at_once import depth_frames_at_once, rows_at_once
from affetto.preserve.curvature import Curvature
from affetto.preserve.fisher_pass import as_it_is, is_depth, look, to_host

FisherKind = Literal["true", "empirical"]
C = TypeVar("C", bound=Curvature)


def estimate_fisher(
    network: Any,
    sites: Mapping[str, nn.Module],
    rows: Sequence[Row],
    curvature: C,
    *,
    kind: FisherKind = "true",
    seed: int = 0,
    rows_per_batch: int = 8,
    on_progress: Callable[[int], object] | None = None,
) -> C:
    """Feed `curvature` with every code of `rows`, and with the text beside them where the base has one.

    `sites` are the adapted layers by path. Labels are sampled from a generator per clip, so the result doesn't depend
    on the batch size. Nor does it depend on the parts into which a large decoder's frames are cut: their records wait
    in the host's memory, and every curvature is fed whole clips. `kind="empirical"` takes the data's labels, for
    comparison only.
    """
    network.eval()
    at_once = rows_at_once(network, rows, rows_per_batch, with_gradient=True)
    device = next(network.parameters()).device
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        batch = collate([Row(row.clip_id, row.turns) for row in part], network.num_codebooks).to(device)
        part_frames = depth_frames_at_once(network)
        keep = to_host if len(batch.depth_M) > part_frames else as_it_is
        labels = DrawnLabels(batch, seed) if kind == "true" else GivenLabels(batch)
        records = look(network, sites, batch, labels, part_frames=part_frames, keep=keep)
        frames_C = _frames_by_clip(network.depth_rows(batch), len(part))
        for site in list(records):
            frames = frames_C if is_depth(site) else None
            clips = (_by_clip(values.to(device), frames) for values in records.pop(site))
            curvature.update(site, batch.clip_ids, *clips)
        curvature.num_codes += len(batch.frames_N2) + batch.depth_targets_MJ.numel()
        curvature.num_clips += len(part)
        if on_progress:
            on_progress(len(part))
    return curvature


class GivenLabels:
    """The data's own labels."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def c0(self, logits_NV: Tensor) -> Tensor:  # noqa: ARG002
        """Codebook zero (N,)."""
        return self.batch.c0_targets_N

    def depth(self, logits_MJV: Tensor, part: slice) -> Tensor:  # noqa: ARG002
        """The other codebooks (M, J) of the frames `part`."""
        return self.batch.depth_targets_MJ[part]

    def text(self, logits_NW: Tensor) -> Tensor:  # noqa: ARG002
        """The text beside the frames (N,)."""
        return self.batch.text_targets_N


class DrawnLabels:
    """Labels sampled from the base itself, with a random generator per clip.

    Sampling is an exponential race (as in `torch.multinomial`): each code gets an exponential time, divided by its
    probability, and the first to arrive wins. A clip's times are drawn together, so that no label depends on which
    frames or clips share a batch.
    """

    def __init__(self, batch: Batch, seed: int) -> None:
        self.rows_N = batch.frames_N2[:, 0].cpu()
        self.rows_M = self.rows_N[batch.depth_M.cpu()]
        self.clip_ids, self.seed = batch.clip_ids, seed
        self.generators = [self._generator(clip_id) for clip_id in batch.clip_ids]
        self.times_MJV: Tensor | None = None

    def c0(self, logits_NV: Tensor) -> Tensor:
        """Codebook zero (N,)."""
        return first(logits_NV, self._times(self.rows_N, logits_NV, self.generators))

    def depth(self, logits_MJV: Tensor, part: slice) -> Tensor:
        """The other codebooks (M, J) of the frames `part`."""
        if self.times_MJV is None:
            self.times_MJV = self._times(self.rows_M, logits_MJV, self.generators)
        return first(logits_MJV, self.times_MJV[part])

    def text(self, logits_NW: Tensor) -> Tensor:
        """The text beside the frames (N,)."""
        return first(
            logits_NW, self._times(self.rows_N, logits_NW, [self._generator(c, "text") for c in self.clip_ids])
        )

    def _generator(self, clip_id: str, *what: str) -> torch.Generator:
        return torch.Generator().manual_seed(int(hash_text(str(self.seed), clip_id, *what)[:15], 16))

    @staticmethod
    def _times(rows: Tensor, like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Exponential times (len(rows), …, V) in double precision, on the host."""
        times = torch.empty(len(rows), *like.shape[1:], dtype=torch.float64)
        for b, generator in enumerate(generators):
            mine = rows == b
            times[mine] = torch.empty_like(times[mine]).exponential_(generator=generator)
        return times


def first(logits: Tensor, times: Tensor) -> Tensor:
    """The winners (…) of the race between codes (…, V); `times` (…, V) are those of equally likely codes."""
    weights = logits.detach().double().softmax(dim=-1).to(times.device)
    return (weights / times).argmax(dim=-1).to(logits.device)


def _frames_by_clip(owner_M: Tensor, num_clips: int) -> list[int]:
    """The number of depth decoder frames of each clip."""
    assert (owner_M[1:] >= owner_M[:-1]).all(), "frames stand clip by clip"
    counts: list[int] = torch.bincount(owner_M, minlength=num_clips).tolist()
    return counts


def _by_clip(values: Tensor, frames: Sequence[int] | None) -> list[Tensor]:
    """Split (rows, P, D) by clip into (positions, D). A row of the backbone is a clip; of the depth decoder's rows each
    clip has its number of `frames`."""
    return list(values) if frames is None else [own.flatten(0, 1) for own in torch.split(values, list(frames))]
