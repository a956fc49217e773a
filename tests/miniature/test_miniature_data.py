"""The miniature's clips as a source of data: rendered once, read like anybody's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from affetto.audio.corpora import load_clips
from affetto.audio.sound import read_sound
from affetto.errors import ConfigError, DataError
from affetto.miniature import corpus, data


@pytest.fixture(autouse=True)
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "ACTED_TEXTS", {"train": 1, "test": 1})
    monkeypatch.setattr(data, "GENERAL_CLIPS", {"train": 2, "validation": 1})


def test_clips_are_rendered_once_and_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = data.miniature_sources(["sad"])
    clips, problems = load_clips(sources)
    assert not problems
    lines = {line.id: line for family in ("general", "sad") for line in data._lines(family)}
    assert {clip.id for clip in clips} == lines.keys()
    assert sorted((clip.emotion or "", clip.split or "") for clip in clips) == sorted(
        [("", "train"), ("", "train"), ("", "validation"), *4 * [("sad", "train")], *4 * [("sad", "test")]]
    )
    for clip in clips[::4]:
        line = lines[clip.id]
        assert (clip.text, clip.speaker, clip.corpus) == (line.text, line.speaker, "miniature")
        weaker = line.emotion != corpus.PLAIN and line.strength == min(corpus.STRENGTHS)
        assert (clip.gate < 1.0) == weaker
        found = read_sound(clip.audio, corpus.SAMPLE_RATE)
        np.testing.assert_allclose(found, corpus.render(line), atol=1 / 32768)
    monkeypatch.setattr(data, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("rendered twice"))
    assert data.miniature_sources(["sad"]) == sources


RENDERED = ("7", "7f2e1c7ea92cd487")
"""`data.VERSION` and what its clips are: texts, voices, lengths and levels of some."""


def test_clips_that_are_rendered_otherwise_have_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    facts = []
    for family in ("general", *corpus.EMOTIONS):
        lines = data._lines(family)
        for line in (*lines[:3], lines[-1]):
            samples = corpus.render(line)
            level_db = 10 * np.log10(np.mean(samples**2))
            facts.append(f"{line.id} {line.text} {line.voice} {len(samples)} {level_db:.1f}")
    found = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    assert (data.VERSION, found) == RENDERED, "raise VERSION, so that no cache holds both kinds, and note both here"


def test_unknown_emotions_are_named() -> None:
    with pytest.raises(ConfigError, match=r"can't act proud \(they can act happy, sad"):
        data.miniature_sources(["happy", "proud"])


def test_without_rendering_the_clips_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("nothing is rendered"))
    with pytest.raises(DataError, match="general, sad aren't there"):
        data.miniature_sources(["sad"], do_render=False)
