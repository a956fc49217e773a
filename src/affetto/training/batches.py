"""Which rows a step trains on: a pure function of the seed and the step, so resuming needs no sampler state.

Every batch mixes two streams, emotional and general, by `replay_ratio`. Rows of similar length go together, and a batch
is full when it has the frames of `batch_size` mean clips, not a certain number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from affetto.errors import DataError
from affetto.model.batch import Batch, Row, collate, moved_to, pinned
from affetto.preserve.teacher import TeacherCache

_WINDOW = 8
"""Number of batches whose rows are sorted by length together."""


@dataclass(frozen=True)
class Places:
    """The indices of one stream's predictions, by loss.

    Masks would do, but selecting by a mask makes the host wait for the GPU to count it.
    """

    ce_N: Tensor
    """Among the batch's N frames."""
    ce_M: Tensor
    """Among its M depth frames: those drawn for the cross-entropy."""
    kl_N: Tensor
    kl_M: Tensor
    """The frames that have a teacher's answer, …"""
    taught_N: Tensor
    taught_M: Tensor
    """… and the places of those answers among all answers."""

    def to(self, device: torch.device | str) -> Places:
        """The same on `device`."""
        return replace(self, **{name: moved_to(value, device) for name, value in self.__dict__.items()})

    def pinned(self) -> Places:
        """The same in pinned memory, from which copying to a GPU is quick."""
        return replace(self, **{name: pinned(value) for name, value in self.__dict__.items()})


@dataclass(frozen=True)
class TrainBatch:
    """A batch, which of its predictions count for which loss, and the teacher's answers."""

    batch: Batch
    teacher_c0: Tensor
    """Log-probabilities (frames with an answer, V)."""
    teacher_depth: Tensor
    """Log-probabilities (depth frames with an answer, J, V)."""
    places: Mapping[str, Places]
    """By stream, "emotion" and "rehearsal"."""
    teacher_text: Tensor | None = None
    """Log-probabilities (frames with an answer, W), where the text runs beside the frames."""

    def to(self, device: torch.device | str) -> TrainBatch:
        """The batch on `device`."""
        moved = {name: moved_to(value, device) for name, value in self.__dict__.items() if isinstance(value, Tensor)}
        places = {stream: mine.to(device) for stream, mine in self.places.items()}
        return replace(self, batch=self.batch.to(device), places=places, **moved)

    def pinned(self) -> TrainBatch:
        """The batch in pinned memory, from which `to` a GPU is quick."""
        ready = {name: pinned(value) for name, value in self.__dict__.items() if isinstance(value, Tensor)}
        places = {stream: mine.pinned() for stream, mine in self.places.items()}
        return replace(self, batch=self.batch.pinned(), places=places, **ready)


@dataclass(frozen=True)
class MicroBatch:
    """The rows that go through the network together, by their places in the two streams."""

    emotional: tuple[int, ...]
    general: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Every micro-batch of a run, by optimizer step."""

    steps: tuple[tuple[MicroBatch, ...], ...]
    epoch_ends: tuple[int, ...]
    """Steps after which an epoch is complete."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return len(self.steps)

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` steps."""
        before = 0
        for number, end in enumerate(self.epoch_ends):
            if step <= end:
                return number + (step - before) / (end - before)
            before = end
        return float(len(self.epoch_ends))


def plan_run(
    emotional_frames: Sequence[int],
    general_frames: Sequence[int],
    *,
    batch_size: int,
    accumulation: int,
    replay_ratio: float,
    num_epochs: int,
    seed: int,
) -> Plan:
    """Plan a run over clips of the given lengths.

    Each epoch shows every emotional clip once; its last step has fewer micro-batches if they don't divide evenly.
    """
    if not emotional_frames:
        raise DataError("there is no emotional clip to train on")
    if replay_ratio > 0 and not general_frames:
        raise DataError(
            "replay_ratio is above 0 but there is no general speech to rehearse; give some (and a "
            "rehearsal_buffer_size above 0), or set replay_ratio to 0"
        )
    budget = batch_size * (1 - replay_ratio) * float(np.mean(emotional_frames))
    rng = np.random.default_rng((seed, 1))
    queue: list[int] = []
    owed = 0.5  # so that floors round
    steps: list[tuple[MicroBatch, ...]] = []
    ends = []
    for _ in range(num_epochs):
        micro = []
        for group in _groups(emotional_frames, budget, rng):
            owed += len(group) * replay_ratio / (1 - replay_ratio)
            take = int(owed)
            owed -= take
            while len(queue) < take:
                queue += rng.permutation(len(general_frames)).tolist()
            micro.append(MicroBatch(tuple(group), tuple(queue[:take])))
            queue = queue[take:]
        steps += [tuple(micro[start : start + accumulation]) for start in range(0, len(micro), accumulation)]
        ends.append(len(steps))
    return Plan(tuple(steps), tuple(ends))


def _groups(frames: Sequence[int], budget: float, rng: np.random.Generator) -> list[list[int]]:
    """All indices in groups of about `budget` frames, exceeded by at most half a clip unless a clip is longer."""
    window = max(1, round(_WINDOW * budget / float(np.mean(frames))))
    parts = np.array_split(rng.permutation(len(frames)), -(-len(frames) // window))
    groups: list[list[int]] = []
    for part in parts:
        order = sorted(part.tolist(), key=lambda index: frames[index])
        size = sum(frames[index] for index in order)
        share = size / max(1, round(size / budget))
        by_number: dict[int, list[int]] = {}
        before = 0
        for index in order:
            by_number.setdefault(int((before + frames[index] / 2) / share), []).append(index)
            before += frames[index]
        groups += by_number.values()
    rng.shuffle(groups)
    return groups


def assemble(
    emotional: Sequence[Row],
    general: Sequence[Row],
    teacher: TeacherCache | None,
    taught: Mapping[str, bool],
    num_codebooks: int,
    depth_share: float,
    rng: np.random.Generator,
    learned: Mapping[str, bool] | None = None,
) -> TrainBatch:
    """Make the batch of one micro-step.

    `taught` says for each stream ("emotion", "rehearsal") whether it needs the teacher's answers. The depth frames of
    the cross-entropy are drawn here, uniformly over all frames of a stream, so that the end-of-audio frame has the
    same chance as any other. If a taught stream's cross-entropy has no weight (`learned`; None: all have one), it is
    computed on the teacher's frames, for the log, and no others go through the depth decoder.
    """
    rows = [*emotional, *general]
    drawn = [*_draw(emotional, depth_share, rng), *_draw(general, depth_share, rng)]
    asked = [taught["emotion"]] * len(emotional) + [taught["rehearsal"]] * len(general)
    assert teacher is not None or not any(asked), "the teacher is asked, but there is none"
    answers = [teacher[row.clip_id] if teacher and ask else None for row, ask in zip(rows, asked, strict=True)]
    fixed = [answer.depth_frames if answer else np.zeros(0, dtype=np.int64) for answer in answers]
    counts = dict.fromkeys(taught, True) if learned is None else learned
    is_drawn = [counts["emotion"]] * len(emotional) + [counts["rehearsal"]] * len(general)
    drawn = [
        frames if is_needed or answer is None else answer.depth_frames
        for frames, is_needed, answer in zip(drawn, is_drawn, answers, strict=True)
    ]
    chosen = [np.union1d(a, b).astype(np.int64) for a, b in zip(drawn, fixed, strict=True)]
    batch = collate(rows, num_codebooks, chosen)
    lengths = [row.num_frames for row in rows]
    is_general = [False] * len(emotional) + [True] * len(general)
    given = [answer for answer in answers if answer]
    vocabulary = given[0].c0_TV.shape[-1] if given else 1
    texts = [answer.text_TW for answer in given if answer.text_TW is not None]
    general_N = torch.from_numpy(np.repeat(is_general, lengths))
    counted = {
        "ce_M": torch.from_numpy(np.concatenate([np.isin(a, b) for a, b in zip(chosen, drawn, strict=True)])),
        "kl_N": torch.from_numpy(np.repeat([answer is not None for answer in answers], lengths)),
        "kl_M": torch.from_numpy(np.concatenate([np.isin(a, b) for a, b in zip(chosen, fixed, strict=True)])),
    }
    return TrainBatch(
        batch=batch,
        teacher_c0=torch.cat([answer.c0_TV for answer in given]) if given else torch.zeros(0, vocabulary),
        teacher_depth=torch.cat([answer.depth_FJV for answer in given])
        if given
        else torch.zeros(0, num_codebooks - 1, vocabulary),
        places={
            stream: _places(in_N, depth_M=batch.depth_M, **counted)
            for stream, in_N in (("emotion", ~general_N), ("rehearsal", general_N))
        },
        teacher_text=torch.cat(texts) if texts else None,
    )


def _places(in_N: Tensor, *, depth_M: Tensor, ce_M: Tensor, kl_N: Tensor, kl_M: Tensor) -> Places:
    """Of the stream whose frames are `in_N`."""
    in_M = in_N[depth_M]

    def where(mask: Tensor) -> Tensor:
        return mask.nonzero().squeeze(1)

    return Places(
        where(in_N), where(in_M & ce_M), where(in_N & kl_N), where(in_M & kl_M), where(in_N[kl_N]), where(in_M[kl_M])
    )


def _draw(rows: Sequence[Row], share: float, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """The frames drawn from each row, uniformly over all frames of all rows."""
    lengths = [row.num_frames for row in rows]
    total = sum(lengths)
    if total == 0:
        return []
    chosen = np.zeros(total, dtype=bool)
    chosen[rng.permutation(total)[: max(1, round(share * total))]] = True
    return [np.flatnonzero(part) for part in np.split(chosen, np.cumsum(lengths)[:-1])]
