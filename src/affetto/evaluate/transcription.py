"""Transcribes clips without a text by a word judge; resumable, and marked as a machine's.

Transcripts go to a journal beside the manifest, one line per clip, as soon as a batch is done; at the end the manifest
is written and the journal deleted. Existing texts stay as they are, whoever wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affetto.audio.sound import SoundError, read_clip
from affetto.errors import DataError
from affetto.evaluate.scoring import MIN_DURATION_S
from affetto.files import hash_text, write_text
from affetto.judges.choice import WordJudge
from affetto.progress import progress
from affetto.types import Clip, Problem

BATCH_CLIPS = 32
"""Sounds held in memory at once."""


@dataclass(frozen=True)
class Transcribed:
    """All clips, and the outcome for those without a text."""

    clips: tuple[Clip, ...]
    problems: tuple[Problem, ...]
    """Clips that couldn't be opened, are too short, or have no words."""
    num_written: int
    num_resumed: int
    """How many had been transcribed by an earlier run."""


def heard_batches(
    clips: Sequence[Clip], sample_rate: int, problems: list[Problem], title: str
) -> Iterator[tuple[list[Clip], list[NDArray[np.float32]]]]:
    """Batches of clips and their sounds at `sample_rate`; clips that can't be opened or are too short for a judge go to
    `problems`."""
    with progress(title, len(clips)) as bar:
        for start in range(0, len(clips), BATCH_CLIPS):
            batch = clips[start : start + BATCH_CLIPS]
            opened, sounds = [], []
            for clip in batch:
                try:
                    samples = read_clip(clip, sample_rate)
                except SoundError as error:
                    problems.append(Problem(clip.id, error.kind, str(error)))
                    continue
                if len(samples) < MIN_DURATION_S * sample_rate:
                    message = f"lasts {len(samples) / sample_rate:.3f} s, and a judge needs {MIN_DURATION_S:g} s"
                    problems.append(Problem(clip.id, "too-short", f"{message}; leave the clip out"))
                    continue
                opened.append(clip)
                sounds.append(samples)
            if opened:
                yield opened, sounds
            bar.advance(len(batch))


def transcribe(clips: Sequence[Clip], judge: WordJudge, journal: Path) -> Transcribed:
    """The clips with every missing text transcribed by `judge`, whose id becomes their `transcribed_by`.

    `journal` keeps transcripts across runs; lines of another judge, or of a file that changed, are ignored. The caller
    deletes it once the clips are written. Raises DataError if it can't be written.
    """
    missing = [clip for clip in clips if not (clip.text or "").strip()]
    keys = {clip.id: _key(clip, judge) for clip in missing}
    said = {key: text for key, text in _read(journal).items() if key in set(keys.values())}
    problems: list[Problem] = []
    waiting = [clip for clip in missing if keys[clip.id] not in said]
    num_resumed = len(missing) - len(waiting)
    try:
        write_text(journal, "".join(_line(key, text) for key, text in said.items()))  # drops a truncated last line
        with journal.open("a", encoding="utf-8") as file:
            for batch, sounds in heard_batches(waiting, judge.sample_rate, problems, "Writing down what is said"):
                for clip, text in zip(batch, judge.transcribe(sounds), strict=True):
                    said[keys[clip.id]] = " ".join(text.split())
                    file.write(_line(keys[clip.id], said[keys[clip.id]]))
                file.flush()
    except OSError as error:
        raise DataError(f"{journal}: can't be written ({error.strerror}); choose another --out") from error
    texts = {clip.id: said[keys[clip.id]] for clip in missing if said.get(keys[clip.id])}
    for clip in missing:
        if said.get(keys[clip.id]) == "":
            message = f"{judge.id} hears no words; write the text by hand, or leave the clip out"
            problems.append(Problem(clip.id, "missing-text", message))
    done = tuple(
        replace(clip, text=texts[clip.id], transcribed_by=judge.id) if clip.id in texts else clip for clip in clips
    )
    return Transcribed(done, tuple(problems), len(texts), num_resumed)


def journal_of(manifest: Path) -> Path:
    """`manifest.transcripts.tmp` beside `manifest.jsonl`."""
    return manifest.with_suffix(".transcripts.tmp")


def _key(clip: Clip, judge: WordJudge) -> str:
    try:
        state = clip.audio.stat()
    except (OSError, ValueError):
        return hash_text(str(clip.audio), judge.id)
    channel = [] if clip.channel is None else [str(clip.channel)]
    segment = [str(clip.audio), str(clip.start_s), str(clip.end_s), *channel]
    return hash_text(*segment, str(state.st_size), str(state.st_mtime_ns), judge.id)


def _line(key: str, text: str) -> str:
    return json.dumps({"heard": key, "text": text}, ensure_ascii=False) + "\n"


def _read(journal: Path) -> dict[str, str]:
    """Texts by key; lines that a killed run left truncated are skipped."""
    said: dict[str, str] = {}
    if not journal.is_file():
        return said
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            said[str(row["heard"])] = str(row["text"])
        except (ValueError, KeyError, TypeError):
            continue
    return said
