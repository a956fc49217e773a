"""affetto's C is compiled once, and done without where it can't be."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from affetto.model.base import Base
from affetto.native import compiler
from affetto.speak.engine import Engine
from affetto.speak.weights import SpeakingWeights


@pytest.fixture
def no_library() -> Iterator[None]:
    """Ask anew, and let others ask anew afterwards."""
    compiler.library.cache_clear()
    yield
    compiler.library.cache_clear()


@pytest.mark.usefixtures("no_library")
def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is here")
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert compiler.library("frames") is not None
    (made,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert made.suffix == ".so"
    assert made.parent.name == "native"
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("it is there"))
    assert compiler.library("frames") is not None


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("reason", ["told not to", "no compiler", "fails", "missing", "no room", "too slow", "quotes"])
def test_without_it_numpy_speaks(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if reason == "told not to":
        monkeypatch.setenv("AFFETTO_NATIVE", "0")
    elif reason == "no compiler":
        monkeypatch.setattr(compiler.shutil, "which", lambda _: None)
    elif reason == "no room":
        (tmp_path / "native").write_text("a file where the folder should be")
    else:
        broken = tmp_path / "broken"
        if reason == "fails":
            broken.write_text("#!/bin/sh\necho unknown flag >&2; exit 1\n")
            broken.chmod(0o755)
        elif reason == "too slow":
            broken.write_text("#!/bin/sh\necho wait >&2; exec sleep 60\n")
            broken.chmod(0o755)
            monkeypatch.setattr(compiler, "_COMPILING_S", 0.5)
        monkeypatch.setenv("CC", str(broken) if reason != "quotes" else "'cc")
    weights = SpeakingWeights(tiny_base.network)
    assert Engine(weights).arithmetic == Engine(weights).arithmetic == "numpy"
    told = " ".join(capsys.readouterr().err.split())
    if reason in ("told not to", "no compiler"):
        assert told == ""
    else:
        assert told.count("frames.c couldn't be compiled") == 1
        assert "AFFETTO_NATIVE=0" in told
        assert reason != "fails" or "unknown flag" in told
    assert not list(tmp_path.rglob("*.so"))
