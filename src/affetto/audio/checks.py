"""Checks that open every sound file once and report all problems together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
from rich.table import Table
from rich.text import Text

from affetto.audio.manifest import broken_context
from affetto.audio.sound import SoundError, channel_slice, ends_early, open_sound, segment_frames
from affetto.errors import did_you_mean
from affetto.types import Clip, Problem

SILENT_PEAK = 10 ** (-60 / 20)
"""-60 dBFS. The quietest peak of 361 RAVDESS clips is at -39 dBFS."""
FULL_SCALE = 0.99
CLIPPED_SHARE = 0.001
"""Share of samples within 1 % of full scale. Undistorted speech reaches its maximum a few times per clip: of 471
RAVDESS and LJSpeech clips, most of them peak-normalised, the worst has 0.00008. Cut-off peaks come in runs."""
MIN_CHARS_PER_S = 1.0
MAX_CHARS_PER_S = 40.0
"""Read English has 10 to 20 characters a second (LJSpeech 7 to 18, RAVDESS 5 to 9); outside these limits the text is
another clip's."""
_BLOCK_FRAMES = 1 << 18


@dataclass(frozen=True)
class _Levels:
    """What one pass over the samples measures."""

    duration_s: float
    peak: float
    """Peak of the mean of the channels, which is what a model hears."""
    clipped_share: float
    """Share of the samples of all channels."""
    is_finite: bool


def check_clips(
    clips: Sequence[Clip],
    *,
    emotions: Collection[str] | None,
    min_s: float = 0.3,
    max_s: float = 30.0,
    workers: int = 0,
) -> list[Problem]:
    """Every problem of every clip, in the order of the clips; `where` is the clip's id.

    `emotions` are the allowed labels besides None (general speech); None allows any. `workers` threads open
    the files (0: this thread). Kinds: duplicate-id, missing-file, unreadable, empty, bad-segment, not-finite, silent,
    clipped, too-short, too-long, missing-text, wrong-text, unknown-emotion, bad-context. Files are read in blocks, so
    memory doesn't grow with their length. Nothing is raised for a bad clip.
    """

    def check(clip: Clip) -> list[Problem]:
        return _check_clip(clip, emotions, min_s, max_s)

    if workers > 0:
        with ThreadPoolExecutor(workers) as pool:
            by_clip = list(pool.map(check, clips))
    else:
        by_clip = [check(clip) for clip in clips]
    problems = list(chain.from_iterable(by_clip))
    counts = Counter(clip.id for clip in clips)
    for name, count in counts.items():
        if count > 1:
            problems.append(Problem(name, "duplicate-id", f"{count} clips share this id; give each its own"))
    bad = {problem.where for problem in problems}
    broken = broken_context({clip.id: clip for clip in clips}, bad)
    problems += [Problem(name, "bad-context", message) for name, message in broken.items()]
    order = {clip.id: index for index, clip in enumerate(clips)}
    return sorted(problems, key=lambda problem: order[problem.where])


def good_clips(clips: Iterable[Clip], problems: Iterable[Problem]) -> list[Clip]:
    """The clips without a problem, in their order."""
    bad = {problem.where for problem in problems}
    return [clip for clip in clips if clip.id not in bad]


def problem_table(problems: Sequence[Problem], noun: str = "problems") -> Table:
    """A rich table of all problems; the title calls them `noun`, the caption counts them by kind."""
    counts = Counter(problem.kind for problem in problems)
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    table = Table("where", "kind", "what to do", title=f"{len(problems)} {noun}", caption=Text(summary))
    for problem in problems:
        table.add_row(Text(problem.where, overflow="fold"), Text(problem.kind), Text(problem.message, overflow="fold"))
    return table


def _check_clip(clip: Clip, emotions: Collection[str] | None, min_s: float, max_s: float) -> list[Problem]:
    problems: list[tuple[str, str]] = []
    duration_s: float | None = None
    try:
        levels = _levels(clip)
    except SoundError as error:
        problems.append((error.kind, str(error)))
    else:
        duration_s = levels.duration_s
        problems += _sound_problems(levels, min_s, max_s)
    problems += _text_problems(clip.text, duration_s)
    if clip.emotion is not None and emotions is not None and clip.emotion not in emotions:
        message = (
            f"emotion {clip.emotion!r} isn't known{did_you_mean(clip.emotion, emotions)}; mend the label, or add it to "
            "`emotions` in the configuration. Known labels are those and those of published corpora (docs/data.md)"
        )
        problems.append(("unknown-emotion", message))
    return [Problem(clip.id, kind, message) for kind, message in problems]


def _levels(clip: Clip) -> _Levels:
    peak, num_clipped, num_frames, is_finite = 0.0, 0, 0, True
    with open_sound(clip.audio) as file:
        first, stop = segment_frames(clip.audio, file, clip.start_s, clip.end_s)
        own = channel_slice(clip.audio, file, clip.channel)
        file.seek(first)
        rate, channels = file.samplerate, len(range(file.channels)[own])
        for block in file.blocks(_BLOCK_FRAMES, frames=stop - first, dtype="float32", always_2d=True):
            block = block[:, own]
            num_frames += len(block)
            if not np.isfinite(block).all():
                is_finite = False
                block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
            peak = max(peak, float(np.abs(block.mean(axis=1)).max(initial=0.0)))
            num_clipped += int(np.count_nonzero(np.abs(block) >= FULL_SCALE))
    if num_frames < stop - first:
        raise ends_early(clip.audio, num_frames / rate, (stop - first) / rate)
    return _Levels(num_frames / rate, peak, num_clipped / (num_frames * channels), is_finite)


def _sound_problems(levels: _Levels, min_s: float, max_s: float) -> list[tuple[str, str]]:
    problems = []
    if not levels.is_finite:
        problems.append(("not-finite", "samples are NaN or infinite; render the file again, or leave it out"))
    elif levels.peak < SILENT_PEAK:
        peak_db = f"{20 * np.log10(levels.peak):.0f} dBFS" if levels.peak > 0 else "zero"
        problems.append(("silent", f"peak is {peak_db}, under -60 dBFS; record it again, or leave it out"))
    if levels.clipped_share >= CLIPPED_SHARE:
        message = f"{levels.clipped_share:.1%} of the samples are at full scale; record it again at a lower level"
        problems.append(("clipped", message))
    if levels.duration_s < min_s:
        problems.append(("too-short", f"lasts {levels.duration_s:.2f} s, the shortest allowed is {min_s:g} s"))
    if levels.duration_s > max_s:
        message = f"lasts {levels.duration_s:.1f} s, the longest allowed is {max_s:g} s; cut it with start_s and end_s"
        problems.append(("too-long", message))
    return problems


def _text_problems(text: str | None, duration_s: float | None) -> list[tuple[str, str]]:
    if text is None or not text.strip():
        message = "the clip has no text; add it (`affetto data transcribe`), or use the clip for scoring only"
        return [("missing-text", message)]
    if not any(letter.isalpha() for letter in text):
        return [("wrong-text", f"text {text!r} has no letters; write numbers and signs as words")]
    if not duration_s:
        return []
    rate = len(text.strip()) / duration_s
    if not MIN_CHARS_PER_S <= rate <= MAX_CHARS_PER_S:
        message = f"{rate:.1f} characters a second can't be speech; is {_shortened(text)!r} this clip's text?"
        return [("wrong-text", message)]
    return []


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
