"""What a set of clips contains, and which of it is doubtful: the verbs of `affetto data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from affetto.audio.checks import check_clips, good_clips
from affetto.audio.corpora import load_clips
from affetto.audio.doubts import balance, duplicate_doubts, duplicates, odd_durations, odd_tempos
from affetto.audio.labels import KNOWN_LABELS
from affetto.audio.manifest import write_manifest
from affetto.audio.sound import SoundError, sound_info
from affetto.audio.splits import assign_splits, overlaps
from affetto.types import SPLITS, Clip, Problem


@dataclass(frozen=True)
class Examined:
    """Clips and everything that is wrong or doubtful about them."""

    clips: tuple[Clip, ...]
    """The good clips, with their splits."""
    problems: tuple[Problem, ...]
    """Problems that exclude a clip."""
    leaks: tuple[Problem, ...]
    """What the splits given with the clips share: evaluation on them would measure memory."""
    doubts: tuple[Problem, ...]
    """Problems that exclude no clip: splits that can't be kept apart or filled, and `affetto.audio.doubts`."""


def sounds_beside(manifest: Path) -> Path:
    """The folder for sounds that come inside a data set's rows: `NAME_sounds` beside `NAME.jsonl`."""
    return manifest.absolute().with_name(f"{manifest.stem}_sounds")


def import_clips(
    sources: Sequence[Path], manifest: Path, emotions: Collection[str]
) -> tuple[list[Clip], list[Problem]]:
    """Write the clips of corpora, folders, tables, data sets or manifests as one manifest.

    Sound files stay where they are; sounds inside a data set's rows are written to `sounds_beside`.
    """
    clips, problems = load_clips(sources, emotions=emotions, sounds=sounds_beside(manifest))
    write_manifest(manifest, clips)
    return clips, problems


def examine(
    sources: Sequence[Path], emotions: Collection[str], *, by_speaker: bool = False, workers: int = 0
) -> Examined:
    """Open every sound, check every row and split: reports all that a run on `emotions` would, and more, at once."""
    clips, problems = load_clips(sources, emotions=emotions)
    leaks = overlaps(clips, by_speaker=by_speaker)
    placed, doubts = assign_splits(clips, by_speaker=by_speaker)
    if leaks:
        doubts = [doubt for doubt in doubts if doubt.kind != "split-overlap"]
    problems = [*problems, *check_clips(placed, emotions={*KNOWN_LABELS, *emotions}, workers=workers)]
    warnings = [problem for problem in problems if problem.costs_no_clip]
    problems = [problem for problem in problems if problem not in warnings]
    good = good_clips(placed, problems)
    seconds = durations_s(good)
    groups = duplicates(good)
    leaks += _shared_sounds(groups, {clip.id: clip.split for clip in clips})
    tempos = odd_tempos(good, seconds)
    has_odd_tempo = {doubt.where for doubt in tempos}
    lengths = [doubt for doubt in odd_durations(good, seconds) if doubt.where not in has_odd_tempo]
    odd = [*tempos, *lengths, *duplicate_doubts(groups), *balance(good, seconds)]
    return Examined(tuple(good), tuple(problems), tuple(leaks), (*warnings, *doubts, *odd))


def _shared_sounds(groups: Iterable[Sequence[Clip]], given: dict[str, str | None]) -> list[Problem]:
    """Sounds that are in two of the splits that came with the clips."""
    found = []
    for group in groups:
        splits = sorted({split for clip in group if (split := given[clip.id])}, key=SPLITS.index)
        if len(splits) > 1:
            message = f"{' and '.join(splits)} share a sound: {', '.join(clip.id for clip in group)}"
            found.append(Problem("splits", "split-overlap", message))
    return found


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


def statistics(clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """One row per emotion (`general`: none): clips, minutes, speakers, texts, clips by intensity and split, seconds."""
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
                "without_text": sum(not clip.text for clip in mine),
                "machine_texts": sum(clip.transcribed_by is not None for clip in mine),
                "intensities": dict(sorted(Counter(f"{clip.gate:g}" for clip in mine).items())) if emotion else {},
                **{split: sum(clip.split == split for clip in mine) for split in SPLITS},
                "shortest_s": round(min(lengths), 2) if lengths else None,
                "median_s": round(float(np.median(lengths)), 2) if lengths else None,
                "longest_s": round(max(lengths), 2) if lengths else None,
            }
        )
    return rows


def machine_texts(clips: Iterable[Clip]) -> dict[str, int]:
    """How many clips have a text that a model wrote, by model."""
    return dict(sorted(Counter(clip.transcribed_by for clip in clips if clip.transcribed_by is not None).items()))


def statistics_table(rows: Sequence[dict[str, Any]]) -> Table:
    """`statistics` as a table for the terminal."""
    table = Table(title=f"clips by emotion ({' / '.join(SPLITS)}; shortest, median, longest)", title_justify="left")
    for name in ("emotion", "clips", "min", "speakers", "texts", "splits", "seconds"):
        table.add_column(name, justify="left" if name == "emotion" else "right")
    is_graded = any(set(row["intensities"]) - {"1"} for row in rows)
    if is_graded:
        table.add_column("acted at", justify="right")
    for row in rows:
        acted = " ".join(f"{count}×{intensity}" for intensity, count in row["intensities"].items())
        lengths = ("–" if row[key] is None else f"{row[key]:.1f}" for key in ("shortest_s", "median_s", "longest_s"))
        splits = "/".join(str(row[split]) for split in SPLITS)
        table.add_row(
            row["emotion"], str(row["clips"]), f"{row['minutes']:.1f}", str(row["speakers"]), str(row["texts"]), splits,
            " ".join(lengths), *([acted] if is_graded else []),
        )  # fmt: skip
    return table


def placed(clips: Sequence[Clip], *, by_speaker: bool = False) -> list[Clip]:
    """`clips` with the splits that a run would give them."""
    with_splits, _ = assign_splits(clips, by_speaker=by_speaker)
    return with_splits
