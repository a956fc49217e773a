"""Reading and writing sound files: any format, rate and channel count that libsndfile reads becomes mono float32.

Samples are floats in [-1, 1]; a 16-bit code is a multiple of 1/32768, as in libsndfile.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from affetto.errors import DataError, counted
from affetto.files import as_text, write_atomically
from affetto.types import Clip

SOUND_SUFFIXES = frozenset(
    {
        ".wav",
        ".wave",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".caf",
        ".w64",
        ".rf64",
    }
)
FOREIGN_SUFFIXES = frozenset({".m4a", ".aac", ".mp4", ".wma", ".webm", ".mkv", ".mov", ".amr"})
"""Recordings that libsndfile can't decode."""
SEGMENT_TOLERANCE_S = 0.05
"""A segment may end this far after its file's last sample, because transcripts round."""
WRITTEN = {".wav": "WAV", ".wave": "WAV", ".flac": "FLAC"}
"""Formats that sounds are written in, by file suffix; all in 16 bits."""
_BAD_FILE = 7
"""libsndfile's error for a missing or irregular file. For a regular file it means an .mp3 that isn't MP3."""
_UNKNOWN_LENGTH = 0x7FFF_F000
"""Data sizes from here on are placeholders by programs that wrote to a pipe (ffmpeg, sox)."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_CONVERT = "convert it with `ffmpeg -i IN -ac 1 OUT.wav`, or leave it out"


class SoundError(DataError):
    """A sound file can't be read; `kind` is one of `affetto.types.Problem`'s kinds."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class SoundInfo:
    """What a sound file's header says."""

    duration_s: float
    sample_rate: int
    channels: int


def sound_info(path: Path) -> SoundInfo:
    """Duration, rate and channels, without decoding. Raises `SoundError` if the file can't be opened."""
    with open_sound(path) as file:
        return SoundInfo(file.frames / file.samplerate, file.samplerate, file.channels)


def read_sound(
    path: Path, sample_rate: int, *, start_s: float | None = None, end_s: float | None = None,
    channel: int | None = None,
) -> NDArray[np.float32]:  # fmt: skip
    """Mono samples (N,) at `sample_rate` of a file or a segment of it; only the segment is decoded.

    Channels are averaged unless `channel` (from 1) picks one; resampling is soxr's HQ (linear phase). N is the
    duration times `sample_rate`, rounded. Raises `SoundError` (a `DataError`) if the file is missing, unreadable,
    empty, cut off or not finite, or has no such segment or channel.
    """
    with open_sound(path) as file:
        first, stop = segment_frames(path, file, start_s, end_s)
        file.seek(first)
        samples = file.read(stop - first, dtype="float32", always_2d=True)[:, channel_slice(path, file, channel)]
        rate = file.samplerate
    if len(samples) < stop - first:
        raise ends_early(path, len(samples) / rate, (stop - first) / rate)
    mono: NDArray[np.float32] = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise SoundError("not-finite", f"{path}: samples are NaN or infinite; render the file again, or leave it out")
    if rate != sample_rate:
        mono = np.asarray(soxr.resample(mono, rate, sample_rate, quality="HQ"), dtype=np.float32)
    return mono


def read_clip(clip: Clip, sample_rate: int) -> NDArray[np.float32]:
    """`read_sound` of a clip: its file, segment and channel."""
    return read_sound(clip.audio, sample_rate, start_s=clip.start_s, end_s=clip.end_s, channel=clip.channel)


def channel_slice(path: Path, file: soundfile.SoundFile, channel: int | None) -> slice:
    """Columns of a file's samples that belong to `channel` (from 1; None is all). SoundError if there is none."""
    if channel is None:
        return slice(None)
    if channel > file.channels:
        raise SoundError(
            "bad-segment", f"{path} has {counted(file.channels, 'channel')} and no channel {channel}; mend `channel`"
        )
    return slice(channel - 1, channel)


def write_sound(path: Path, samples: NDArray[np.floating], sample_rate: int) -> None:
    """Write mono samples (N,) as a 16-bit WAV or FLAC, atomically; values beyond full scale are clipped.

    Raises `DataError` if samples are NaN or infinite or aren't a 1-D float array, if the suffix isn't one of `WRITTEN`,
    and if the file can't be written.
    """
    kind = sound_format(path)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise DataError(f"{path}: expected mono float samples (N,), got {samples.dtype} {samples.shape}")
    if not np.isfinite(samples).all():
        bad = counted(int(np.count_nonzero(~np.isfinite(samples))), "sample is", "samples are")
        raise DataError(f"{path}: {bad} NaN or infinite; not written")
    codes = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    try:
        write_atomically(path, lambda out: soundfile.write(out, codes, sample_rate, subtype="PCM_16", format=kind))
    except soundfile.SoundFileError as error:
        raise DataError(f"can't write {path} ({error}); name another place, or make room there") from error


def sound_format(path: Path) -> str:
    """The format that a sound of this name is written in. Raises `DataError` for suffixes that `WRITTEN` lacks."""
    if path.suffix.lower() not in WRITTEN:
        known = ", ".join(WRITTEN)
        raise DataError(f"{path}: sounds are written as {known}; name it {path.with_suffix('.wav').name}")
    return WRITTEN[path.suffix.lower()]


@contextmanager
def open_sound(path: Path) -> Iterator[soundfile.SoundFile]:
    """An open sound file that holds samples; decoding errors inside the block become `SoundError`."""
    _require_file(path)
    if _is_pointer(path):
        message = f"{path}: git-lfs left a pointer in place of the sound; run `git lfs pull` in its repository"
        raise SoundError("unreadable", message)
    if _is_cut_off(path):
        raise SoundError("unreadable", f"{path}: the file ends before its header says; copy or download it again")
    try:
        with _undisturbed(path) as source, soundfile.SoundFile(source) as file:
            if not 0 <= file.frames < 2**62:
                raise SoundError("unreadable", f"{path}: the header doesn't say how long it is; {_CONVERT}")
            if file.frames == 0:
                raise SoundError("empty", f"{path}: the file holds no samples; record it again, or leave it out")
            yield file
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        if getattr(error, "code", None) == _BAD_FILE:
            reason = "it is damaged, or not a sound"
        raise SoundError("unreadable", f"{path}: can't be decoded ({reason}); {_CONVERT}") from error


@contextmanager
def _undisturbed(path: Path) -> Iterator[Path | BinaryIO]:
    """What libsndfile should open. Given the name `a.mp3` it takes `._a.mp3`, which macOS leaves beside it in archives,
    for half of the sound, and then fails; and it can't be given names that aren't UTF-8."""
    if path.with_name(f"._{path.name}").is_file() or as_text(path) != str(path):
        with path.open("rb") as file:
            yield file
    else:
        yield path


def segment_frames(
    path: Path, file: soundfile.SoundFile, start_s: float | None, end_s: float | None
) -> tuple[int, int]:
    """The segment's first sample frame and the one after its last; None is the file's start or end."""
    duration_s = file.frames / file.samplerate
    first = round((start_s or 0.0) * file.samplerate)
    stop = file.frames if end_s is None else round(end_s * file.samplerate)
    if not 0 <= first < min(stop, file.frames) or stop > file.frames + SEGMENT_TOLERANCE_S * file.samplerate:
        wanted = f"{start_s or 0.0:g} s to {'the end' if end_s is None else f'{end_s:g} s'}"
        raise SoundError("bad-segment", f"{path}: no segment {wanted} in a file of {duration_s:g} s; mend its times")
    return first, min(stop, file.frames)


def ends_early(path: Path, decoded_s: float, promised_s: float) -> SoundError:
    """The error for a file that decodes to less than its header promises."""
    message = (
        f"{path}: decodes to {decoded_s:g} s where its header promises {promised_s:g} s; copy or download it again"
    )
    return SoundError("unreadable", message)


def _require_file(path: Path) -> None:
    try:
        if not path.exists():
            raise SoundError("missing-file", f"{path}: no such file; mend the path, or leave the clip out")
        if not path.is_file():
            raise SoundError("unreadable", f"{path}: not a file; mend the path")
        if not os.access(path, os.R_OK):
            raise SoundError("unreadable", f"{path}: no permission to read it; `chmod +r` it")
        if path.stat().st_size == 0:
            raise SoundError("empty", f"{path}: the file has no bytes; record or copy it again, or leave it out")
    except (OSError, ValueError) as error:
        raise SoundError("unreadable", f"{path}: can't be opened ({error}); mend the path") from error


def _is_pointer(path: Path) -> bool:
    """Whether the file is a git-lfs pointer instead of its contents (CREMA-D is published so)."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _is_cut_off(path: Path) -> bool:
    """Whether a RIFF file's data chunk is longer than the file; libsndfile quietly shortens such files."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return False
        position = 12
        while position + 8 <= size:
            file.seek(position)
            tag, length = struct.unpack("<4sI", file.read(8))
            if tag == b"data":
                return bool(length < _UNKNOWN_LENGTH and position + 8 + length > size)
            position += 8 + length + length % 2
    return False
