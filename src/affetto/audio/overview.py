"""What a set of clips holds, and what of it is doubtful: the verbs of `affetto data`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from affetto.audio.checks import check_clips, good_clips
from affetto.audio.corpora import load_clips
from affetto.audio.manifest import write_manifest
from affetto.audio.sound import SoundError, sound_info
from affetto.audio.splits import assign_splits
from affetto.types import SPLITS, Clip, Problem

OUTLIER = 6.0
"""Robust standard deviations (1.4826 MAD) of log seconds per letter within a speaker; beyond, a clip is doubtful."""
_FEW = 8
"""A speaker with fewer clips has no usual tempo."""


@dataclass(frozen=True)
class Examined:
    """Clips and everything that was found wrong or doubtful about them."""

    clips: tuple[Clip, ...]
    """The good ones, with their splits."""
    problems: tuple[Problem, ...]
    doubts: tuple[Problem, ...]
    """Clips that are kept: splits that overlap or are missing, tempos out of the ordinary."""


def import_clips(
    sources: Sequence[Path], manifest: Path, emotions: Collection[str]
) -> tuple[list[Clip], list[Problem]]:
    """Write the clips of published layouts, folders or manifests as one manifest; their sounds stay where they are."""
    clips, problems = load_clips(sources, emotions=emotions)
    write_manifest(manifest, clips)
    return clips, problems


def examine(
    sources: Sequence[Path], emotions: Collection[str], *, by_speaker: bool = False, workers: int = 0
) -> Examined:
    """Open every sound, check every row, split: everything that a run would meet, and more, at once."""
    clips, problems = load_clips(sources, emotions=emotions)
    placed, doubts = assign_splits(clips, by_speaker=by_speaker)
    problems = [*problems, *check_clips(placed, emotions=None, workers=workers)]
    warnings = [problem for problem in problems if problem.kind == "mislabelled"]
    problems = [problem for problem in problems if problem not in warnings]
    good = good_clips(placed, problems)
    return Examined(tuple(good), tuple(problems), (*warnings, *doubts, *odd_tempos(good, durations_s(good))))


def durations_s(clips: Sequence[Clip]) -> dict[str, float]:
    """Seconds of every clip that can be opened."""

    def seconds(clip: Clip) -> float | None:
        if clip.start_s is not None and clip.end_s is not None:
            return clip.end_s - clip.start_s
        try:
            whole = sound_info(clip.audio).duration_s
        except SoundError:
            return None
        return (whole if clip.end_s is None else clip.end_s) - (clip.start_s or 0.0)

    with ThreadPoolExecutor() as pool:
        found = zip(clips, pool.map(seconds, clips), strict=True)
        return {clip.id: value for clip, value in found if value is not None}


def odd_tempos(clips: Sequence[Clip], seconds: dict[str, float]) -> list[Problem]:
    """Clips much slower or faster than their speaker usually reads: often another text, or silence left in."""
    by_speaker: dict[tuple[str, str], list[Clip]] = {}
    for clip in clips:
        if clip.text and seconds.get(clip.id, 0.0) > 0:
            by_speaker.setdefault((clip.corpus, clip.speaker), []).append(clip)
    found = []
    for mine in by_speaker.values():
        if len(mine) < _FEW:
            continue
        tempo = np.log([seconds[clip.id] / max(1, len(clip.text or "")) for clip in mine])
        centre = float(np.median(tempo))
        spread = max(1.4826 * float(np.median(np.abs(tempo - centre))), 0.05)
        for clip, value in zip(mine, tempo, strict=True):
            if abs(value - centre) > OUTLIER * spread:
                how = "slower" if value > centre else "faster"
                factor = float(np.exp(abs(value - centre)))
                message = (
                    f"{factor:.1f} times {how} than {clip.speaker} usually reads; listen whether text and sound fit"
                )
                found.append(Problem(clip.id, "odd-tempo", message))
    return found


def statistics(clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """A row per emotion (`general` is none): clips, minutes, speakers, texts, clips by split, seconds of a clip."""
    seconds = durations_s(clips)
    rows = []
    for emotion in sorted({clip.emotion or "" for clip in clips}):
        mine = [clip for clip in clips if (clip.emotion or "") == emotion]
        lengths = [seconds[clip.id] for clip in mine if clip.id in seconds]
        rows.append(
            {
                "emotion": emotion or "general",
                "clips": len(mine),
                "minutes": round(sum(lengths) / 60, 2),
                "speakers": len({clip.speaker for clip in mine}),
                "texts": len({clip.text for clip in mine if clip.text}),
                **{split: sum(clip.split == split for clip in mine) for split in SPLITS},
                "shortest_s": round(min(lengths), 2) if lengths else None,
                "median_s": round(float(np.median(lengths)), 2) if lengths else None,
                "longest_s": round(max(lengths), 2) if lengths else None,
            }
        )
    return rows


def statistics_table(rows: Sequence[dict[str, Any]]) -> Table:
    """`statistics` on the terminal."""
    table = Table(title=f"clips by emotion ({' / '.join(SPLITS)}; shortest, median, longest)", title_justify="left")
    for name in ("emotion", "clips", "min", "speakers", "texts", "splits", "seconds"):
        table.add_column(name, justify="left" if name == "emotion" else "right")
    for row in rows:
        lengths = ("–" if row[key] is None else f"{row[key]:.1f}" for key in ("shortest_s", "median_s", "longest_s"))
        splits = "/".join(str(row[split]) for split in SPLITS)
        table.add_row(
            row["emotion"], str(row["clips"]), f"{row['minutes']:.1f}", str(row["speakers"]), str(row["texts"]), splits,
            " ".join(lengths),
        )  # fmt: skip
    return table


def placed(clips: Sequence[Clip], *, by_speaker: bool = False) -> list[Clip]:
    """`clips` with the splits that a run would give them."""
    found, _ = assign_splits(clips, by_speaker=by_speaker)
    return found
