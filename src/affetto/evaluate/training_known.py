"""What an adapter's folder says about its training, and whether the test clips really are held out."""

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
    """Facts about an adapter's training, with substitutes for unknown ones."""

    intensity: float
    """The intensity of the evaluation: as requested, else as recommended, else 1."""
    speakers: Mapping[str, int]
    """The base's speaker numbers by the data's names."""
    trained_speakers: Sequence[str]
    """The speakers of the emotion's training clips; if unknown, of the data's clips."""
    notes: tuple[str, ...]
    """What isn't known, for the results."""


def what_is_known(folder: Path, emotion: str, prepared: Prepared, intensity: float | None = None) -> Known:
    """Read the adapter's `folder` and check that it wasn't trained on the test clips of `prepared` (ConfigError).

    `intensity` is the requested one. What isn't known is printed.
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
        notes.append(f"{folder} doesn't say whose voices it learned: those of the data's {emotion} clips are used")
    for note in notes:
        say(note, style="yellow")
    return Known(1.0 if intensity is None else float(intensity), numbers, names, tuple(notes))


def _held_out_doubt(folder: Path, emotion: str, prepared: Prepared, facts: Mapping[str, Any]) -> str | None:
    """Why the test clips may not be held out; None if they are. ConfigError if they certainly aren't."""
    trained = read_trained(folder)
    if trained is None:
        return f"{folder} doesn't say which clips it was trained on, so the test clips may not be held out"
    test = [*prepared.select(emotion, "test"), *prepared.select(None, "test")]
    # Clips that the data itself has in both splits are the data's fault, which training reported.
    in_train = clip_hashes(prepared.keys, (clip.id for clip in prepared.clips if clip.split == "train"))
    if rehearsed := (clip_hashes(prepared.keys, (clip.id for clip in test)) & trained) - in_train:
        how = f" (it was trained by: {facts['command']})" if facts.get("command") else ""
        raise ConfigError(
            f"{counted(len(rehearsed), f'of {len(test)} test clips is', f'of {len(test)} test clips are')} among those "
            f"that {folder} was trained on, and so not held out: evaluate with the configuration and the data that it "
            f"was trained with, --config and --data{how}"
        )
    return None
