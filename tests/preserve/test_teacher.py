"""Cached answers are the live ones, and belong to one base, one set of rows, one draw of frames."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from affetto.adapters.bank import AdapterBank
from affetto.errors import CacheError
from affetto.model.base import Base
from affetto.model.batch import Batch, Logits, Row, Turn, collate
from affetto.preserve import teacher as teacher_module
from affetto.preserve.distillation import distillation_kl
from affetto.preserve.teacher import (
    TeacherCache,
    ask_teacher,
    cache_bytes,
    fixed_frames,
    row_hash,
    teacher_cache,
    teacher_key,
)


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> list[Row]:
    return [make_row(seed, frames=frames, gate=(1.0,)) for seed, frames in enumerate([(4,), (9,), (2,), (3, 6), (5,)])]


@pytest.fixture
def cache(tiny_base: Base, rows: list[Row], tmp_path: Path) -> TeacherCache:
    return teacher_cache(tmp_path, tiny_base.network, tiny_base.hash, rows, depth_share=0.5, rows_per_batch=2)


def live(base: Base, row: Row) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits = base.network(collate([Row(row.clip_id, row.turns)], base.num_codebooks))
    return logits.c0_NV.log_softmax(-1), logits.depth_MJV.log_softmax(-1)


def test_cached_answers_are_the_live_ones(tiny_base: Base, rows: list[Row], cache: TeacherCache) -> None:
    for row in rows:
        answer, (c0_TV, depth_TJV) = cache[row.clip_id], live(tiny_base, row)
        assert len(answer.c0_TV) == row.num_frames, "codebook zero has an answer for every frame, the last included"
        assert answer.depth_FJV.shape[0] == len(answer.depth_frames) == max(1, round(0.5 * row.num_frames))
        torch.testing.assert_close(answer.c0_TV.float(), c0_TV, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(answer.depth_FJV.float(), depth_TJV[answer.depth_frames], rtol=1e-3, atol=1e-3)
        assert c0_TV.std() > 0.1
        assert depth_TJV.std() > 0.1


def test_kl_against_the_cache_is_the_live_kl(tiny_base: Base, rows: list[Row], cache: TeacherCache) -> None:
    """Half precision costs parts in a thousand of a small KL, and next to nothing where base and student are equal."""
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    bank.add("happy", 4, 8.0, 0)
    generator = torch.Generator().manual_seed(0)
    for _, _, b_OR, _ in bank.factors("happy"):
        b_OR.data.normal_(std=0.02, generator=generator)
    cached, true, floor = 0.0, 0.0, 0.0
    for row in rows:
        with torch.no_grad():
            changed = tiny_base.network(collate([row], tiny_base.num_codebooks)).c0_NV
        before = live(tiny_base, row)[0]
        cached += distillation_kl(cache[row.clip_id].c0_TV, changed).total.item()
        true += distillation_kl(before, changed).total.item()
        floor += distillation_kl(cache[row.clip_id].c0_TV, before).total.item()
    frames = sum(row.num_frames for row in rows)
    assert 1e-3 < true / frames < 0.1
    assert cached == pytest.approx(true, rel=2e-3)
    assert abs(floor / frames) < 2e-6


def test_the_teacher_answers_with_every_gate_at_zero(tiny_base: Base, rows: list[Row], tmp_path: Path) -> None:
    plain = teacher_cache(tmp_path / "a", tiny_base.network, tiny_base.hash, rows, depth_share=1.0)
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    bank.add("happy", 4, 8.0, 0)
    for _, _, b_OR, _ in bank.factors("happy"):
        b_OR.data.fill_(0.1)
    adapted = teacher_cache(tmp_path / "b", tiny_base.network, tiny_base.hash, rows, depth_share=1.0)
    for row in rows:
        assert torch.equal(plain[row.clip_id].c0_TV, adapted[row.clip_id].c0_TV)
        assert torch.equal(plain[row.clip_id].depth_FJV, adapted[row.clip_id].depth_FJV)


def test_frames_of_a_clip_are_always_the_same(rows: list[Row]) -> None:
    for row in rows:
        frames = fixed_frames(row, 0.5, seed=0)
        assert frames.tolist() == fixed_frames(Row(row.clip_id, row.turns), 0.5, seed=0).tolist()
        assert frames.tolist() == sorted(set(frames.tolist()))
        assert frames.min() >= 0
        assert frames.max() < row.num_frames
        assert fixed_frames(row, 1.0, seed=0).tolist() == list(range(row.num_frames))
        assert len(fixed_frames(row, 1e-6, seed=0)) == 1
    long = Row("long", (Turn((0, 1), np.zeros((50, 8), dtype=np.int64)),))
    assert fixed_frames(long, 0.3, 0).tolist() != fixed_frames(long, 0.3, 1).tolist()
    assert fixed_frames(long, 0.3, 0).tolist() != fixed_frames(replace(long, clip_id="other"), 0.3, 0).tolist()


def test_a_second_run_reads_what_the_first_wrote(
    tiny_base: Base, rows: list[Row], cache: TeacherCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(teacher_module, "ask_teacher", unexpected)
    again = teacher_cache(tmp_path, tiny_base.network, tiny_base.hash, rows, depth_share=0.5)
    assert torch.equal(again["clip-1"].c0_TV, cache["clip-1"].c0_TV)
    with pytest.raises(AssertionError, match="asked again"):
        teacher_cache(tmp_path, tiny_base.network, "another base", rows, depth_share=0.5)


def test_pitfall_19_key_changes_with_base_prompt_codes_share_and_seed(rows: list[Row]) -> None:
    keys = [teacher_key("base", rows, 0.5, 0)]
    turn = rows[0].turns[-1]
    assert turn.codes_TK is not None
    other_codes = np.array(turn.codes_TK)
    other_codes[0, 0] += 1
    keys += [
        teacher_key("another base", rows, 0.5, 0),
        teacher_key("base", rows[1:], 0.5, 0),
        teacher_key("base", rows, 0.25, 0),
        teacher_key("base", rows, 0.5, 1),
        teacher_key("base", [replace(rows[0], turns=(Turn((*turn.text_ids, 7), turn.codes_TK),)), *rows[1:]], 0.5, 0),
        teacher_key("base", [replace(rows[0], turns=(Turn(turn.text_ids, other_codes),)), *rows[1:]], 0.5, 0),
        teacher_key("base", [replace(rows[0], clip_id="renamed"), *rows[1:]], 0.5, 0),
    ]
    assert len(set(keys)) == len(keys)
    # The gate decides nothing about the base, nor does the codes' integer type.
    same = replace(rows[0], gate=(0.5, 0.5), turns=(Turn(turn.text_ids, turn.codes_TK.astype(np.int16)),))
    assert row_hash(same) == row_hash(rows[0])


def test_a_cache_of_something_else_is_refused(rows: list[Row], cache: TeacherCache, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="another base, other clips or another template; delete it"):
        TeacherCache(cache.path, teacher_key("another base", rows, 0.5, 0))
    with pytest.raises(CacheError, match="has no clip 'nobody'"):
        cache["nobody"]
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(cache.path.read_bytes()[:100])
    with pytest.raises(CacheError, match="can't be read"):
        TeacherCache(damaged, "key")


def test_a_cache_that_lies_in_anothers_place_is_refused(
    tiny_base: Base, rows: list[Row], cache: TeacherCache, tmp_path: Path
) -> None:
    other = tmp_path / f"{teacher_key('another base', rows, 0.5, 0)[:24]}.safetensors"
    other.write_bytes(cache.path.read_bytes())
    with pytest.raises(CacheError, match="another base, other clips or another template; delete it"):
        teacher_cache(tmp_path, tiny_base.network, "another base", rows, depth_share=0.5)


def test_bytes_of_a_cache_are_foretold(tiny_base: Base, rows: list[Row], tmp_path: Path) -> None:
    for share in (1.0, 0.3, 1 / 16):
        cache = teacher_cache(tmp_path, tiny_base.network, tiny_base.hash, rows, depth_share=share)
        content = cache.path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")  # safetensors: the header's length, the header, the data
        foretold = cache_bytes([row.num_frames for row in rows], 8, tiny_base.network.vocab_size, share)
        assert foretold == len(content) - header
    # By hand: 2 frames of 3 codebooks and 5 codes, one of them with depth logits.
    assert cache_bytes([2], 3, 5, 0.5) == 2 * (2 * 5 + 1 * 2 * 5) + 8


@pytest.mark.parametrize("has_text", [False, True])
def test_the_file_is_what_safetensors_would_write(
    tiny_base: Base, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_text: bool
) -> None:
    """Batch by batch, byte by byte what one `save_file` of all answers gives, with ids that JSON has to escape."""
    rows = [replace(row, clip_id=f'{row.clip_id}/é "{number}"\n') for number, row in enumerate(rows)]
    all_answers: dict[str, Tensor] = {}

    def asked(network: object, part: list[Row], frames: list[NDArray[np.int64]]) -> dict[str, Tensor]:
        answers = ask_teacher(network, part, frames)
        if has_text:
            answers |= {f"{row.clip_id}/text": torch.randn(row.num_frames, 11).half() for row in part}
        all_answers.update(answers)
        return answers

    monkeypatch.setattr(teacher_module, "ask_teacher", asked)
    cache = teacher_cache(tmp_path, tiny_base.network, "hash", rows, depth_share=0.5, rows_per_batch=2)
    expected = tmp_path / "expected.safetensors"
    save_file(all_answers, expected, metadata={"key": teacher_key("hash", rows, 0.5, 0)})
    assert cache.path.read_bytes() == expected.read_bytes()
    assert (cache[rows[3].clip_id].text_TW is not None) == has_text


def test_answers_are_kept_no_longer_than_it_takes_to_write_them(
    tiny_base: Base, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def asked(network: object, part: list[Row], frames: list[NDArray[np.int64]]) -> dict[str, Tensor]:
        nonlocal most
        answers = ask_teacher(network, part, frames)
        alive.extend(weakref.ref(tensor) for tensor in answers.values())
        most = max(most, sum(tensor() is not None for tensor in alive))
        return answers

    monkeypatch.setattr(teacher_module, "ask_teacher", asked)
    many = [replace(rows[number % 5], clip_id=f"clip-{number}") for number in range(40)]
    cache = teacher_cache(tmp_path, tiny_base.network, "hash", many, depth_share=0.5, rows_per_batch=2)
    assert len(alive) == 3 * 40
    assert most <= 2 * 3 * 2, "those of a batch and of the one before it"
    assert len(cache["clip-39"].c0_TV) == many[39].num_frames


def test_a_killed_run_leaves_no_half_cache(tiny_base: Base, rows: list[Row], tmp_path: Path) -> None:
    class Killed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.num_codebooks, self.calls = tiny_base.network, tiny_base.num_codebooks, 0

        def forward(self, batch: Batch) -> Logits:
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return self.inner(batch)  # type: ignore[no-any-return]

    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        teacher_cache(folder, Killed(), tiny_base.hash, rows, depth_share=0.5, rows_per_batch=2)
    assert not list(folder.glob("*.safetensors")), "its lock alone is left"


def test_an_impossible_code_keeps_the_kl_finite(rows: list[Row]) -> None:
    class Certain(torch.nn.Module):
        num_codebooks = 8

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, batch: Batch) -> Logits:
            logits = torch.zeros(len(batch.frames_N2), 5)
            logits[:, 0] = -torch.inf
            return Logits(logits, torch.zeros(len(batch.depth_M), 7, 5))

    answers = ask_teacher(Certain(), rows[:1], [np.arange(2)])
    kl = distillation_kl(answers["clip-0/c0"], torch.zeros(5, 5)).mean.item()
    assert kl == pytest.approx(np.log(5 / 4), rel=1e-3)
