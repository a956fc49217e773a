"""Tones on disk, clips, and the real recordings where they are at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from audio_signals import sine

from affetto.types import Clip

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def tone(tmp_path: Path) -> Callable[..., Path]:
    """Write a tone to a file in `tmp_path`: tone("a.wav", duration_s=1.0, rate=24000, subtype="PCM_16")."""

    def write(name: str, *, duration_s: float = 1.0, rate: int = 24_000, subtype: str = "PCM_16", **how: float) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sine(duration_s, rate, **how), rate, subtype=subtype)
        return path

    return write


@pytest.fixture
def make_clip() -> Callable[..., Clip]:
    """A clip that is fine unless told otherwise."""

    def make(name: str, **fields: object) -> Clip:
        plain = {
            "audio": Path(f"/nowhere/{name}.wav"), "text": f"words of {name}", "emotion": None, "speaker": "0",
            "corpus": "test",
        }  # fmt: skip
        return Clip(id=name, **(plain | fields))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """RAVDESS and LJSpeech as FLAC."""
    if not (SHARED_DATA / "RAVDESS" / "Actor_01").is_dir():
        pytest.skip(f"no real recordings at {SHARED_DATA}")
    return SHARED_DATA
