"""A page about a collection of clips: counts, durations, who speaks what, pitch and level by emotion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affetto.audio.overview import durations_s, statistics
from affetto.audio.sound import SoundError, read_clip
from affetto.files import hash_text, write_text
from affetto.metrics.activity import find_activity
from affetto.metrics.prosody import measure_pitch
from affetto.progress import progress
from affetto.report.canvas import Picture
from affetto.report.data_pictures import (
    GENERAL,
    durations_picture,
    emotion_of,
    in_order,
    speakers_picture,
    strips_picture,
)
from affetto.report.page_templates import page_templates
from affetto.types import SPLITS, Clip

RATE = 16_000
MEASURED_CLIPS = 60
"""Default number of clips of each emotion whose pitch and level are measured."""


@dataclass(frozen=True)
class Voices:
    """Pitch and level of some clips, by id."""

    pitch_st: Mapping[str, float]
    """Median F0 in semitones from the speaker's baseline."""
    level_db: Mapping[str, float]
    """RMS of the parts that aren't silent, dB re full scale."""
    num_clips: int
    num_unpitched: int
    """Clips without pitch, or of speakers without a baseline."""


def measure_voices(clips: Sequence[Clip], most: int) -> Voices:
    """Pitch and level of at most `most` clips per emotion, chosen by a hash of their ids.

    A speaker's baseline is the median over their measured neutral and general clips, else over all their clips.
    """
    chosen = _drawn(clips, most)
    absolute: dict[str, float] = {}
    levels: dict[str, float] = {}
    with progress("Measuring pitch and level", len(chosen)) as bar:
        for clip in chosen:
            bar.advance(1)
            try:
                samples = read_clip(clip, RATE)
            except SoundError:
                continue
            if activity := find_activity(samples, RATE):
                levels[clip.id] = activity.level_db
            if (median_st := measure_pitch(samples, RATE).median_st) is not None:
                absolute[clip.id] = median_st
    baselines = _baselines([clip for clip in chosen if clip.id in absolute], absolute)
    relative = {clip.id: absolute[clip.id] - baselines[clip.speaker] for clip in chosen if clip.id in absolute}
    return Voices(relative, levels, len(chosen), len(chosen) - len(relative))


def _drawn(clips: Sequence[Clip], most: int) -> list[Clip]:
    chosen: list[Clip] = []
    for emotion in in_order([emotion_of(clip) for clip in clips]):
        mine = sorted((clip for clip in clips if emotion_of(clip) == emotion), key=lambda clip: hash_text(clip.id))
        chosen += mine[:most]
    return chosen


def _baselines(clips: Sequence[Clip], values: Mapping[str, float]) -> dict[str, float]:
    baselines = {}
    for speaker in {clip.speaker for clip in clips}:
        mine = [clip for clip in clips if clip.speaker == speaker]
        plain = [clip for clip in mine if emotion_of(clip) in ("neutral", GENERAL)]
        baselines[speaker] = float(np.median([values[clip.id] for clip in plain or mine]))
    return baselines


def write_data_page(clips: Sequence[Clip], output: Path, *, title: str, measured: int = MEASURED_CLIPS) -> Path:
    """Write the self-contained page about `clips` (with their splits) to `output`."""
    seconds = durations_s(clips)
    order = in_order([emotion_of(clip) for clip in clips])
    voices = measure_voices([clip for clip in clips if clip.id in seconds], measured)
    environment, texts = page_templates(("data.html.j2", "report.css"))
    page = environment.get_template("data.html.j2").render(
        title=title,
        css=texts["report.css"],
        totals=_totals(clips, seconds),
        splits=SPLITS,
        rows=sorted(statistics(clips), key=lambda row: order.index(row["emotion"])),
        durations=durations_picture(clips, seconds) if seconds else None,
        speakers=speakers_picture(clips),
        pitch=_pitch(clips, voices),
        level=_level(clips, voices),
        voices=voices,
        measured=measured,
    )  # fmt: skip
    write_text(output, page)
    return output


def _pitch(clips: Sequence[Clip], voices: Voices) -> Picture | None:
    if not voices.pitch_st:
        return None
    unit = "semitones from the speaker's own neutral"
    return strips_picture(clips, voices.pitch_st, name="pitch", unit=unit, at=0.0)


def _level(clips: Sequence[Clip], voices: Voices) -> Picture | None:
    return strips_picture(clips, voices.level_db, name="level", unit="dB re full scale") if voices.level_db else None


def _totals(clips: Sequence[Clip], seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "clips": len(clips),
        "minutes": sum(seconds.values()) / 60,
        "speakers": len({clip.speaker for clip in clips}),
        "emotions": len({clip.emotion for clip in clips if clip.emotion}),
        "corpora": sorted({clip.corpus for clip in clips}),
        "unopened": len(clips) - len(seconds),
        "without_text": sum(not clip.text for clip in clips),
        "machine_texts": sum(clip.transcribed_by is not None for clip in clips),
        "unplaced": sum(clip.split is None for clip in clips),
    }
