"""Plans and batches: who is shown when, and which frames the depth decoder learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from affetto.errors import DataError
from affetto.model.base import Base
from affetto.model.batch import Row
from affetto.preserve.teacher import TeacherCache, teacher_cache
from affetto.training.batches import MicroBatch, Plan, TrainBatch, assemble, plan_run
from batch_masks import masks

UNTAUGHT = {"emotion": False, "rehearsal": False}


def plan(emotional: list[int], general: list[int], **changes: float) -> Plan:
    given = {"batch_size": 12, "accumulation": 1, "replay_ratio": 0.3, "num_epochs": 3, "seed": 0} | changes
    return plan_run(emotional, general, **given)  # type: ignore[arg-type]


def epochs(run: Plan) -> list[list[MicroBatch]]:
    starts = (0, *run.epoch_ends[:-1])
    return [
        [micro for step in run.steps[start:end] for micro in step]
        for start, end in zip(starts, run.epoch_ends, strict=True)
    ]


@given(
    emotional=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    general=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    batch_size=st.integers(1, 20),
    accumulation=st.integers(1, 4),
    replay_ratio=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]),
    num_epochs=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_every_plan_shows_each_emotional_clip_once_an_epoch_and_replays_its_share(
    emotional: list[int], general: list[int], batch_size: int, accumulation: int, replay_ratio: float,
    num_epochs: int, seed: int,
) -> None:  # fmt: skip
    run = plan_run(
        emotional, general, batch_size=batch_size, accumulation=accumulation, replay_ratio=replay_ratio,
        num_epochs=num_epochs, seed=seed,
    )  # fmt: skip
    assert run.num_steps == run.epoch_ends[-1] == len(run.steps)
    assert len(run.epoch_ends) == num_epochs
    assert all(1 <= len(step) <= accumulation for step in run.steps)
    num_general = 0
    for epoch in epochs(run):
        assert sorted(index for micro in epoch for index in micro.emotional) == list(range(len(emotional)))
        assert all(micro.emotional for micro in epoch)
        num_general += sum(len(micro.general) for micro in epoch)
    expected = num_epochs * len(emotional) * replay_ratio / (1 - replay_ratio)
    assert abs(num_general - expected) <= 0.51
    shown = Counter(index for step in run.steps for micro in step for index in micro.general)
    assert set(shown) <= set(range(len(general)))
    assert not shown or max(shown.values()) - min([shown[i] for i in range(len(general))]) <= 1, "all take turns"


@given(
    frames=st.lists(st.integers(20, 200), min_size=1, max_size=300),
    batch_size=st.integers(1, 16),
    seed=st.integers(0, 5),
)
def test_groups_are_near_the_budget_of_frames(frames: list[int], batch_size: int, seed: int) -> None:
    run = plan(frames, [50], batch_size=batch_size, num_epochs=1, seed=seed)
    budget = batch_size * 0.7 * float(np.mean(frames))
    longest = max(frames)
    for (micro,) in run.steps:
        size = sum(frames[index] for index in micro.emotional)
        # A set too small to be cut evenly is one group of up to 1.5 budgets; a border falls within half a clip.
        assert size <= 1.5 * budget + longest or len(micro.emotional) == 1


def test_groups_of_many_clips_are_within_a_clip_of_the_budget() -> None:
    frames = np.random.default_rng(0).integers(20, 200, 1000).tolist()
    run = plan(frames, [50], num_epochs=1)
    budget = 12 * 0.7 * float(np.mean(frames))
    sizes = np.array([sum(frames[index] for index in micro.emotional) for (micro,) in run.steps])
    assert np.abs(sizes - budget).max() < 0.15 * budget + 200
    assert sizes.mean() == pytest.approx(budget, rel=0.05)


def test_a_clip_longer_than_the_budget_goes_alone() -> None:
    run = plan([10] * 20 + [5000], [10], batch_size=2, replay_ratio=0.0, num_epochs=1)
    assert MicroBatch((20,), ()) in {micro for step in run.steps for micro in step}


def test_rows_of_like_length_go_together() -> None:
    frames = np.random.default_rng(0).integers(20, 200, 400).tolist()
    groups = [[frames[i] for i in micro.emotional] for (micro,) in plan(frames, [50], num_epochs=1).steps]
    padding = sum(max(group) * len(group) - sum(group) for group in groups) / sum(frames)
    assert padding < 0.2
    lengths = [np.mean(group) for group in groups]
    assert np.corrcoef(lengths[:-1], lengths[1:])[0, 1] < 0.5, "and not from the shortest to the longest"


def test_pitfall_20_share_of_general_rows_is_the_replay_ratio_in_every_large_batch() -> None:
    run = plan([50] * 240, [50] * 31, num_epochs=2)
    for (micro,) in run.steps:
        rows = len(micro.emotional) + len(micro.general)
        assert len(micro.general) / rows == pytest.approx(0.3, abs=1 / rows)
    general = sum(len(micro.general) for (micro,) in run.steps)
    assert general / (general + 480) == pytest.approx(0.3, abs=0.002)


def test_pitfall_05_epochs_differ_and_seeds_differ_and_a_plan_is_a_function_of_its_arguments() -> None:
    first, second, _ = epochs(plan([50] * 40, [50] * 30))
    assert first != second
    assert {micro.general for micro in first} != {micro.general for micro in second}
    assert plan([50] * 40, [50] * 30) == plan([50] * 40, [50] * 30)
    assert plan([50] * 40, [50] * 30) != plan([50] * 40, [50] * 30, seed=1)


def test_an_epochs_last_step_takes_what_is_left() -> None:
    run = plan([50] * 40, [50], batch_size=8, accumulation=3, num_epochs=2)
    assert [len(step) for step in run.steps] == [3, 3, 1] * 2
    assert run.epoch_ends == (3, 6)


def test_epoch_counts_from_the_steps() -> None:
    run = Plan(((),) * 5, (2, 5))
    assert [run.epoch(step) for step in range(7)] == [0, 0.5, 1, pytest.approx(4 / 3), pytest.approx(5 / 3), 2, 2]


def test_missing_clips_are_told() -> None:
    with pytest.raises(DataError, match="no emotional clip"):
        plan([], [50])
    with pytest.raises(DataError, match="set replay_ratio to 0"):
        plan([50], [])
    assert all(micro.general == () for (micro,) in plan([50], [], replay_ratio=0.0).steps)


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> tuple[list[Row], list[Row]]:
    emotional = [make_row(seed, frames=(frames,), gate=(1.0,)) for seed, frames in enumerate((5, 9, 3))]
    return emotional, [make_row(seed, frames=(frames,), gate=(1.0,)) for seed, frames in ((10, 6), (11, 4))]


@pytest.fixture
def teacher(tiny_base: Base, rows: tuple[list[Row], list[Row]], tmp_path: Path) -> TeacherCache:
    return teacher_cache(tmp_path, tiny_base.network, tiny_base.hash, [*rows[0], *rows[1]], depth_share=0.3)


def depth_frames(made: TrainBatch) -> list[tuple[int, int]]:
    """(row, position) of the frames drawn for the cross-entropy."""
    return [(r, p) for r, p in made.batch.depth_frames_M2[masks(made).ce_M].tolist()]


def test_pitfall_05_depth_frames_are_drawn_anew_from_the_given_generator(rows: tuple[list[Row], list[Row]]) -> None:
    def draws(seed: int, count: int = 3) -> list[list[tuple[int, int]]]:
        rng = np.random.default_rng(seed)
        return [depth_frames(assemble(*rows, None, UNTAUGHT, 8, 0.5, rng)) for _ in range(count)]

    first, second, third = draws(0)
    assert first != second != third
    assert draws(0) == [first, second, third]


def test_pitfall_04_the_end_frame_has_the_same_chance_as_any_other(make_row: Callable[..., Row]) -> None:
    row = [make_row(0, frames=(9,))]
    rng = np.random.default_rng(0)
    counts = np.zeros(10)
    for _ in range(600):
        made = assemble(row, [], None, UNTAUGHT, 8, 0.3, rng)
        np.add.at(counts, np.array(depth_frames(made))[:, 1] - int(made.batch.frames_N2[0, 1]), 1)
    assert counts.sum() == 1800
    assert stats.chisquare(counts).pvalue > 0.001
    assert stats.binomtest(int(counts[-1]), 600, 0.3).pvalue > 0.001


def test_shares_are_of_all_frames_of_a_stream(rows: tuple[list[Row], list[Row]]) -> None:
    for share, emotional, general in ((0.25, 5, 3), (1.0, 20, 12), (1e-6, 1, 1)):
        made = assemble(*rows, None, UNTAUGHT, 8, share, np.random.default_rng(0))
        assert masks(made).ce_M.all()
        assert (~masks(made).general_M).sum() == emotional
        assert masks(made).general_M.sum() == general
    assert masks(made).general_N.sum() == 12
    assert len(masks(made).general_N) == 32


def test_teachers_answers_stand_where_their_frames_are(
    rows: tuple[list[Row], list[Row]], teacher: TeacherCache
) -> None:
    made = assemble(*rows, teacher, {"emotion": False, "rehearsal": True}, 8, 0.5, np.random.default_rng(3))
    assert torch.equal(masks(made).kl_N, masks(made).general_N)
    assert torch.equal(made.teacher_c0, torch.cat([teacher[row.clip_id].c0_TV for row in rows[1]]))
    expected = [
        (3 + number, len(row.turns[-1].text_ids) + int(frame))
        for number, row in enumerate(rows[1])
        for frame in teacher[row.clip_id].depth_frames
    ]
    assert [(r, p) for r, p in made.batch.depth_frames_M2[masks(made).kl_M].tolist()] == expected
    assert torch.equal(made.teacher_depth, torch.cat([teacher[row.clip_id].depth_FJV for row in rows[1]]))
    # Taught frames are there for the KL alone, unless they were drawn too.
    assert (masks(made).ce_M & masks(made).general_M).sum() == 6
    assert (masks(made).kl_M & ~masks(made).ce_M).any()
    assert (masks(made).ce_M | masks(made).kl_M).all()


@pytest.mark.parametrize(("emotion", "rehearsal"), [(True, False), (False, True), (True, True), (False, False)])
def test_only_the_taught_streams_are_asked_for(
    rows: tuple[list[Row], list[Row]], teacher: TeacherCache, emotion: bool, rehearsal: bool
) -> None:
    taught = {"emotion": emotion, "rehearsal": rehearsal}
    made = assemble(*rows, teacher, taught, 8, 0.5, np.random.default_rng(0))
    assert masks(made).kl_N[~masks(made).general_N].all() == masks(made).kl_N[~masks(made).general_N].any() == emotion
    assert masks(made).kl_N[masks(made).general_N].all() == masks(made).kl_N[masks(made).general_N].any() == rehearsal
    assert len(made.teacher_c0) == masks(made).kl_N.sum()
    assert len(made.teacher_depth) == masks(made).kl_M.sum()


def test_the_teachers_frames_do_not_change_what_the_cross_entropy_draws(
    rows: tuple[list[Row], list[Row]], teacher: TeacherCache
) -> None:
    taught = {"emotion": True, "rehearsal": True}
    one = assemble(*rows, teacher, taught, 8, 0.5, np.random.default_rng(0))
    other = assemble(*rows, None, UNTAUGHT, 8, 0.5, np.random.default_rng(0))
    assert depth_frames(one) == depth_frames(other)


def test_a_batch_moves_as_a_whole(rows: tuple[list[Row], list[Row]], teacher: TeacherCache) -> None:
    made = assemble(*rows, teacher, {"emotion": True, "rehearsal": True}, 8, 0.5, np.random.default_rng(0))
    moved = made.to("meta")
    tensors = [value for value in (*moved.__dict__.values(), *moved.batch.__dict__.values()) if torch.is_tensor(value)]
    tensors += [value for mine in moved.places.values() for value in mine.__dict__.values()]
    # The host looks tokens up itself.
    tensors = [value for value in tensors if value is not moved.batch.text_ids_U]
    assert len(tensors) == 9 + 2 * 6
    assert {tensor.device.type for tensor in tensors} == {"meta"}
