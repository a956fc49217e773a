"""What an adapter's folder tells an evaluation of its training, and whether what is called held out is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affetto.adapters.peft_files import read_facts
from affetto.adapters.trained_clips import clip_hashes, read_trained
from affetto.codes.prepare import Prepared
from affetto.errors import ConfigError, counted
from affetto.progress import say


@dataclass(frozen=True)
class Known:
    """An adapter's training, as far as it is known; where it isn't, what is taken instead."""

    intensity: float
    """At which it is evaluated: as asked, as recommended, or 1 of an adapter made elsewhere."""
    speakers: Mapping[str, int]
    """The base's speaker number by the data's name."""
    trained_speakers: Sequence[str]
    """Who acts the emotion; of an adapter made elsewhere, in the data."""
    notes: tuple[str, ...]
    """What isn't known, for the results."""


def what_is_known(folder: Path, emotion: str, prepared: Prepared, intensity: float | None = None) -> Known:
    """Read the adapter's `folder` and hold its training clips against the test clips of `prepared`.

    `intensity` is as asked. What isn't known is told. ConfigError where it was trained on test clips.
    """
    facts, notes = read_facts(folder), []
    if (note := _held_out_doubt(folder, emotion, prepared, facts)) is not None:
        notes.append(note)
    intensity = facts.get("recommended_intensity") if intensity is None else intensity
    if intensity is None:
        notes.append(f"{folder} recommends no intensity: {emotion} is evaluated at 1")
    names, numbers = facts.get("trained_speakers"), facts.get("speakers")
    if not names or not numbers:
        names = sorted({clip.speaker for clip in prepared.clips if clip.emotion == emotion} or prepared.speakers)
        numbers = prepared.speakers
        notes.append(f"{folder} doesn't say whose voices it learned: those of the data's {emotion} clips are taken")
    for note in notes:
        say(note, style="yellow")
    return Known(1.0 if intensity is None else float(intensity), numbers, names, tuple(notes))


def _held_out_doubt(folder: Path, emotion: str, prepared: Prepared, facts: Mapping[str, Any]) -> str | None:
    """Why it can't be told whether the test clips are held out; None where they are. ConfigError where they aren't."""
    trained = read_trained(folder)
    if trained is None:
        return f"{folder} doesn't say which clips it was trained on: whether the test clips are held out can't be told"
    test = [*prepared.select(emotion, "test"), *prepared.select(None, "test")]
    # What the data itself has in both is the data's fault, and training told it.
    known = clip_hashes(prepared.keys, (clip.id for clip in prepared.clips if clip.split == "train"))
    if rehearsed := (clip_hashes(prepared.keys, (clip.id for clip in test)) & trained) - known:
        how = f" (it was trained by: {facts['command']})" if facts.get("command") else ""
        raise ConfigError(
            f"{counted(len(rehearsed), f'of {len(test)} test clips is', f'of {len(test)} test clips are')} among those "
            f"that {folder} was trained on, and so not held out: evaluate with the configuration and the data that it "
            f"was trained with, --config and --data{how}"
        )
    return None
