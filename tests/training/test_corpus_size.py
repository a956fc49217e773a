"""What a step reads, and what making its batch takes, is the same in a corpus of any size; counted, not timed."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from affetto.model.batch import Row, Turn
from affetto.preserve.teacher import TeacherClip
from affetto.training import loop
from affetto.training.batches import plan_run
from affetto.training.step import LossWeights

NUM_STEPS, FRAMES, BATCH = 12, 9, 6


class Counted:
    """A sequence that counts what is read of it, and can only be read place by place."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows, self.num_read = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Row:
        self.num_read += 1
        return self.rows[place]

    def __iter__(self) -> Any:
        raise AssertionError("the whole corpus was gone through")


class Answers:
    """A teacher's cache that counts who is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getitem__(self, clip_id: str) -> TeacherClip:
        self.asked.append(clip_id)
        answer = torch.zeros(FRAMES + 1, 5)
        return TeacherClip(answer, np.arange(2), torch.zeros(2, 7, 5))


def corpus(count: int, name: str) -> Counted:
    codes_TK = np.zeros((FRAMES, 8), dtype=np.int16)
    return Counted([Row(f"{name}-{number}", (Turn((1, 2, 3), codes_TK),), (1.0,)) for number in range(count)])


def run_over(count: int) -> Any:
    """What `_micro_batches` looks at of a run over `count` emotional clips and as many general ones."""
    plan = plan_run(
        [FRAMES + 1] * count, [FRAMES + 1] * count, batch_size=BATCH, accumulation=2, replay_ratio=0.5, num_epochs=2,
        seed=0,
    )  # fmt: skip
    return SimpleNamespace(
        plan=plan,
        accelerator=SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu")),
        streams=SimpleNamespace(emotional=corpus(count, "happy"), rehearsal=corpus(count, "general")),
        config=SimpleNamespace(seed=0, depth_frames_share=0.5),
        weights=LossWeights(0.5, 0.5, 1.0, 0.5, 0.0, "rehearsal"),
        teacher=Answers(),
        base=SimpleNamespace(num_codebooks=8),
    )


def measured(count: int) -> dict[str, float]:
    """Rows read and answers asked for in `NUM_STEPS` steps, and the most memory that one of them took."""
    run = run_over(count)
    loop._micro_batches(run, 0)
    run.streams.emotional.num_read = run.streams.rehearsal.num_read = 0
    run.teacher.asked.clear()
    most = 0
    tracemalloc.start()
    try:
        for step in range(NUM_STEPS):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            made = loop._micro_batches(run, step)
            assert len(made) == 2
            most = max(most, tracemalloc.get_traced_memory()[1] - before)
            del made
    finally:
        tracemalloc.stop()
    read = run.streams.emotional.num_read + run.streams.rehearsal.num_read
    return {"read": read, "asked": len(run.teacher.asked), "most": most}


def test_a_step_reads_its_own_rows_whatever_the_corpus() -> None:
    small, large = measured(96), measured(9_600)
    assert small["read"] == large["read"] == NUM_STEPS * 2 * BATCH
    assert small["asked"] == large["asked"] == NUM_STEPS * BATCH
    assert large["most"] == pytest.approx(small["most"], rel=0.25)
    assert small["most"] > 1000, "memory is followed"


def test_the_plan_grows_by_its_rows_alone() -> None:
    """A larger corpus has more steps in an epoch; none of them is larger."""
    small, large = run_over(96).plan, run_over(9_600).plan
    for plan in (small, large):
        sizes = {len(micro.emotional) + len(micro.general) for step in plan.steps for micro in step}
        assert sizes <= {BATCH - 2, BATCH - 1, BATCH, BATCH + 1, BATCH + 2}
    assert large.num_steps == pytest.approx(100 * small.num_steps, rel=0.05)
