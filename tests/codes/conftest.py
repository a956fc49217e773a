"""A codec fitted to synthetic vowels, and a cache folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from code_signals import FORMANTS, hiss, vowel

from affetto.codes.vocoder import VocoderCodec, analyse


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test caches."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AFFETTO_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def codec() -> VocoderCodec:
    """A small vocoder codec: 4 codebooks of 32."""
    sounds = [vowel(hertz, 1.6, name=name, semitones=4) for hertz in (90, 120, 170, 230, 300) for name in FORMANTS]
    features = [analyse(sound) for sound in (*sounds, hiss(2.0), hiss(1.0, level=1e-4))]
    return VocoderCodec.fit(features, num_components=24, num_codebooks=4, codebook_size=32, iterations=8)


@pytest.fixture
def codec_folder(codec: VocoderCodec, tmp_path: Path) -> Path:
    """The folder of a base, as far as coding needs it."""
    codec.save(tmp_path / "base")
    return tmp_path / "base"
