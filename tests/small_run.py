"""A run of the miniature that takes seconds: two actors' happy clips beside general speech, four sentences judged."""

from __future__ import annotations

from pathlib import Path

from affetto.audio.manifest import write_manifest
from affetto.audio.sound import write_sound
from affetto.config import Config, load_config
from affetto.miniature import corpus
from affetto.types import Clip


def write_clips(folder: Path, *emotions: str, times: int = 1) -> Path:
    """The manifest of a few rendered clips in `folder`: happy ones, or those of `emotions`; `times` as many of each."""
    counts = {"train": 3 * times, "validation": times, "test": 2 * times}
    lines = [line for emotion in emotions or ("happy",) for line in corpus.acted_lines(emotion, counts)]
    for split, count in (("train", 14 * times), ("validation", 4 * times), ("test", 4 * times)):
        lines += corpus.general_lines(count, "general", split)
    found = []
    for line in lines:
        path = folder / f"{line.id}.wav"
        write_sound(path, corpus.render(line), corpus.SAMPLE_RATE)
        emotion = None if line.emotion == corpus.PLAIN else line.emotion
        weak = emotion is not None and line.strength == min(corpus.STRENGTHS)
        found.append(
            Clip(line.id, path, line.text, emotion, line.speaker, "small", line.split, intensity=0.6 if weak else None)
        )
    write_manifest(folder / "manifest.jsonl", found)
    return folder / "manifest.jsonl"


def small_config(output: Path, *data: Path) -> Config:
    return load_config(
        None, data=tuple(map(str, data)), output_dir=output, emotions=("happy",), num_epochs=1, batch_size=6,
        fisher_clips=4, rehearsal_buffer_size=8, validation_clips=4, evaluation_sentences=4, evaluation_clips=4,
        evaluation_strengths=(0.5,),
        judges={"quality": "none"}, trackers=(),
    )  # fmt: skip
