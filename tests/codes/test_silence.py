"""Silence in codes: what the codec says of it, coded once, as long as one likes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affetto.codes import silence
from affetto.codes.codec import load_codec
from affetto.codes.silence import silence_codes
from affetto.errors import CacheError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))


def test_silence_is_what_the_codec_says_of_zeros(moshi_folder: Path) -> None:
    """The codec is causal: shorter silence is the beginning of longer silence."""
    expected_TK = load_codec(moshi_folder).encode(np.zeros(1920 * 40, dtype=np.float32))
    np.testing.assert_array_equal(silence_codes(moshi_folder, 40), expected_TK)


def test_it_is_coded_once(moshi_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = silence_codes(moshi_folder, 7)

    def load_codec(_: Path) -> None:
        raise AssertionError("coded twice")

    monkeypatch.setattr(silence, "load_codec", load_codec)
    np.testing.assert_array_equal(silence_codes(moshi_folder, 5), first[:5])
    longer = silence_codes(moshi_folder, 700)
    assert longer.shape == (700, 4)
    assert (longer[256:] == longer[255]).all()


def test_a_damaged_cache_is_named(moshi_folder: Path, tmp_path: Path) -> None:
    silence_codes(moshi_folder, 1)
    path = next((tmp_path / "cache" / "silence").iterdir())
    path.write_bytes(b"nothing")
    with pytest.raises(CacheError, match=r"\.npy can't be read.*delete it"):
        silence_codes(moshi_folder, 1)
