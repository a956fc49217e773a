"""Processes that would work in the same folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from affetto.errors import DataError
from affetto.files import lock_of, one_at_a_time
from affetto.processes import alone_in


def test_a_process_is_alone_in_its_folders_and_may_ask_again(tmp_path: Path) -> None:
    one, other = tmp_path / "happy", tmp_path / "sad"

    def is_free(folder: Path) -> bool:
        with one_at_a_time(lock_of(folder), do_wait=False) as is_ours:
            return is_ours

    with alone_in([one]):
        assert (is_free(one), is_free(other)) == (False, True)
        with alone_in([one, other]):
            assert (is_free(one), is_free(other)) == (False, False)
        assert (is_free(one), is_free(other)) == (False, True)
    assert is_free(one)
    with one_at_a_time(lock_of(other)):
        with (
            pytest.raises(DataError, match="sad; wait until it has ended, or name another place"),
            alone_in([one, other]),
        ):
            raise AssertionError
        assert is_free(one), "what was taken before is given back"
