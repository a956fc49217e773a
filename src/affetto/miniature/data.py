"""The miniature's clips for a user's run: rendered once into the cache, then read like any sound files."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from affetto.audio.manifest import write_manifest
from affetto.audio.sound import write_sound
from affetto.errors import ConfigError, DataError
from affetto.files import cache_root
from affetto.miniature import corpus
from affetto.progress import progress
from affetto.types import Clip

VERSION = "7"
"""Version of the rendered clips, so that a cache doesn't mix clips of different code; a test checks it."""
ACTED = corpus.EMOTIONS
"""Emotions that the miniature's actors can act."""
ACTED_TEXTS = {"train": 200, "validation": 10, "test": 15}
GENERAL_CLIPS = {"train": 360, "validation": 60, "test": 120}


def miniature_sources(emotions: Sequence[str], *, do_render: bool = True, with_general: bool = True) -> list[Path]:
    """Manifests of the given emotions, and of general speech if `with_general`, rendered if they don't exist yet.

    Raises ConfigError for emotions that the actors can't act, and DataError if a manifest is missing and `do_render` is
    off.
    """
    if unknown := [name for name in emotions if name not in ACTED]:
        raise ConfigError(
            f"the miniature's actors can't act {', '.join(unknown)} (they can act {', '.join(ACTED)}). "
            "Give clips of it with --data"
        )
    families = ["general", *emotions] if with_general else list(emotions)
    if not do_render and (missing := [name for name in families if not _manifest(name).is_file()]):
        raise DataError(f"the miniature's clips of {', '.join(missing)} aren't there: run once without --skip-datasets")
    return [_rendered(name) for name in families]


def _manifest(family: str) -> Path:
    return cache_root() / "miniature" / f"clips-{VERSION}" / f"{family}.jsonl"


def _rendered(family: str) -> Path:
    manifest = _manifest(family)
    if not manifest.is_file():
        lines = _lines(family)
        with (
            ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool,
            progress(f"Speaking {family} clips", len(lines)) as bar,
        ):
            targets = [(line, manifest.parent / family / f"{line.id}.wav") for line in lines]
            for _ in pool.map(_render, targets, chunksize=8):
                bar.advance(1)
        write_manifest(manifest, [_clip(line, path) for line, path in targets])
    return manifest


def _lines(family: str) -> list[corpus.Line]:
    if family == "general":
        return [
            line for split, count in GENERAL_CLIPS.items() for line in corpus.general_lines(count, "general", split)
        ]
    return list(corpus.acted_lines(family, ACTED_TEXTS))


def _render(target: tuple[corpus.Line, Path]) -> None:
    line, path = target
    if not path.is_file():
        write_sound(path, corpus.render(line), corpus.SAMPLE_RATE)


def _clip(line: corpus.Line, path: Path) -> Clip:
    emotion = None if line.emotion == corpus.PLAIN else line.emotion
    intensity = corpus.INTENSITIES[corpus.STRENGTHS.index(line.strength)] if emotion else None
    return Clip(line.id, path, line.text, emotion, line.speaker, "miniature", line.split, intensity=intensity)
