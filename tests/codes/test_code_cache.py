"""The code cache: what was added comes back, whenever the process died."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from affetto.codes.cache import CodeCache
from affetto.errors import CacheError


def codes(seed: int, length: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2048, (length, 3))


def test_codes_come_back_after_reopening(tmp_path: Path) -> None:
    clips = {f"key-{index}": codes(index, length=1 + index) for index in range(7)}
    CodeCache(tmp_path).add(clips)
    cache = CodeCache(tmp_path)
    assert len(cache) == 7
    for key, value in clips.items():
        assert key in cache
        assert cache.num_frames(key) == len(value)
        np.testing.assert_array_equal(cache[key], value)
    assert "other" not in cache


def test_codes_are_there_without_reopening(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path)
    cache.add({"a": codes(1)})
    cache.add({"b": codes(2)})
    np.testing.assert_array_equal(cache["a"], codes(1))
    np.testing.assert_array_equal(cache["b"], codes(2))


def test_adding_nothing_writes_nothing(tmp_path: Path) -> None:
    CodeCache(tmp_path / "new").add({})
    assert not (tmp_path / "new").exists()


def test_known_keys_are_not_written_again(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path)
    cache.add({"a": codes(1)})
    cache.add({"a": codes(1)})
    assert len(list(tmp_path.iterdir())) == 1
    cache.add({"a": codes(1), "b": codes(2)})
    for view in (cache, CodeCache(tmp_path)):
        assert len(view) == 2
        np.testing.assert_array_equal(view["a"], codes(1))
        np.testing.assert_array_equal(view["b"], codes(2))


def test_order_in_memory_does_not_matter(tmp_path: Path) -> None:
    """safetensors' numpy side writes memory as it lies: transposed views (Mimi's codes) came back scrambled."""
    CodeCache(tmp_path).add({"a": np.asfortranarray(codes(1)), "b": codes(2).T.copy().T})
    cache = CodeCache(tmp_path)
    np.testing.assert_array_equal(cache["a"], codes(1))
    np.testing.assert_array_equal(cache["b"], codes(2))


def test_shard_is_there_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CodeCache(tmp_path)
    cache.add({"a": codes(1)})

    def torn(_tensors: object, path: Path, **_how: object) -> None:
        path.write_bytes(b"half a shard")
        raise KeyboardInterrupt

    monkeypatch.setattr("affetto.codes.cache.save_file", torn)
    with pytest.raises(KeyboardInterrupt):
        cache.add({"b": codes(2)})
    assert "b" not in cache
    assert [key for key in ("a", "b") if key in CodeCache(tmp_path)] == ["a"]


def test_temporary_file_of_a_killed_process_is_ignored(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path)
    cache.add({"a": codes(1)})
    shard = next(tmp_path.iterdir())
    # What `write_atomically` calls it; SIGKILL leaves it behind.
    (tmp_path / f".{shard.name}.x1y2z3.safetensors").write_bytes(shard.read_bytes()[:50])
    reopened = CodeCache(tmp_path)
    assert len(reopened) == 1
    np.testing.assert_array_equal(reopened["a"], codes(1))


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 30)
    with pytest.raises(CacheError, match=r"damaged\.safetensors.*delete it"):
        CodeCache(tmp_path)


@pytest.mark.parametrize("wrong", [-1, 2**15, 70_000])
def test_codes_that_would_wrap_around_are_refused(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(AssertionError, match="15 bits"):
        CodeCache(tmp_path).add({"a": np.full((2, 3), wrong)})


def test_ten_thousand_clips_open_at_once(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path)
    for shard in range(40):
        cache.add({f"{shard}/{index}": codes(index, length=2) for index in range(250)})
    start = time.perf_counter()
    reopened = CodeCache(tmp_path)
    took_s = time.perf_counter() - start
    assert len(reopened) == 10_000
    np.testing.assert_array_equal(reopened["39/249"], codes(249, length=2))
    assert took_s < 5.0, "opening must read headers only"
